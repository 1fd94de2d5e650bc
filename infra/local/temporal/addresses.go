package temporal

import (
	"context"
	"fmt"
	"net"
	"strconv"

	"go.temporal.io/server/common/config"
	"go.temporal.io/server/common/membership/static"
	"go.temporal.io/server/common/primitives"
)

// loopback is where everything listens that only this process talks to.
const loopback = "127.0.0.1"

// addresses is where the services of one server listen. With every service at a fixed address of its own there
// is no gossip between them, and so none of the membership ports over which two servers could find each other.
type addresses struct {
	client string       // what a client on this machine dials
	ui     *net.TCPAddr // of the web UI; nil without one
	listen map[primitives.ServiceName]*net.TCPAddr
}

// newAddresses resolves the addresses of the frontend and, unless empty, of the web UI, and finds free ports for the
// other services.
func newAddresses(ctx context.Context, frontend, ui string) (addresses, error) {
	addr, err := resolve(ctx, frontend)
	if err != nil {
		return addresses{}, fmt.Errorf("frontend address %q: %w", frontend, err)
	}
	a := addresses{client: dialable(addr), listen: map[primitives.ServiceName]*net.TCPAddr{
		primitives.FrontendService: addr,
	}}
	if ui != "" {
		if a.ui, err = resolve(ctx, ui); err != nil {
			return addresses{}, fmt.Errorf("web UI address %q: %w", ui, err)
		}
	}
	for _, service := range []primitives.ServiceName{
		primitives.HistoryService, primitives.MatchingService, primitives.WorkerService,
	} {
		if a.listen[service], err = resolve(ctx, net.JoinHostPort(loopback, "0")); err != nil {
			return addresses{}, fmt.Errorf("address of the %s service: %w", service, err)
		}
	}
	return a, nil
}

// services is the part of the server's configuration that says where to listen.
func (a addresses) services() map[string]config.Service {
	services := make(map[string]config.Service, len(a.listen))
	for name, addr := range a.listen {
		services[string(name)] = config.Service{RPC: config.RPC{GRPCPort: addr.Port, BindOnIP: addr.IP.String()}}
	}
	return services
}

// hosts says the same to the services' membership: each of them has this one host.
func (a addresses) hosts() map[primitives.ServiceName]static.Hosts {
	hosts := make(map[primitives.ServiceName]static.Hosts, len(a.listen))
	for name, addr := range a.listen {
		hosts[name] = static.SingleLocalHost(dialable(addr))
	}
	return hosts
}

// resolve turns a host and port into an address that is free at this moment, choosing a port where it is 0. The
// server and the web UI open their ports themselves and end the process when one is taken, so it is found out here.
func resolve(ctx context.Context, hostPort string) (*net.TCPAddr, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", hostPort)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	addr := listener.Addr().(*net.TCPAddr)
	if addr.IP.IsUnspecified() {
		addr = &net.TCPAddr{IP: net.IPv4zero, Port: addr.Port}
	}
	return addr, lingerOn(ctx, listener)
}

// lingerOn leaves a closed connection behind on the listener's port. As long as the kernel remembers it (a minute on
// Linux), it gives the port to nobody who asks for any free one, neither for listening nor for connecting, while
// listening on it by number goes on to work.
func lingerOn(ctx context.Context, listener net.Listener) error {
	var dialer net.Dialer
	outgoing, err := dialer.DialContext(ctx, "tcp", dialable(listener.Addr().(*net.TCPAddr)))
	if err != nil {
		return err
	}
	defer outgoing.Close()
	incoming, err := listener.Accept()
	if err != nil {
		return err
	}
	return incoming.Close() // first, because the side that closes first is the one that lingers
}

// dialable is the address to connect to for something that listens on addr.
func dialable(addr *net.TCPAddr) string {
	host := addr.IP.String()
	if addr.IP.IsUnspecified() {
		host = loopback
	}
	return net.JoinHostPort(host, strconv.Itoa(addr.Port))
}
