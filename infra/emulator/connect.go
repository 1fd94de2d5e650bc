package emulator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/tlsca"
)

// NamespacePolicy is the policy of the Service Bus and Event Hubs entities, with
// all rights, as in every namespace of the cloud.
const NamespacePolicy = "RootManageSharedAccessKey"

// EnvFile is the name of the file in the data directory that tells other programs
// how to connect.
const EnvFile = "emulator.env"

// Names of the settings in EnvFile.
const (
	EnvHub        = "IOTHUB_CONNECTION_STRING"
	EnvServiceBus = "SERVICEBUS_CONNECTION_STRING"
	EnvEventHub   = "EVENTHUB_CONNECTION_STRING"
	EnvCAFile     = "EMULATOR_CA_FILE"
	EnvHTTPSAddr  = "EMULATOR_HTTPS_ADDR"
	EnvAMQPSAddr  = "EMULATOR_AMQPS_ADDR"
	EnvAMQPAddr   = "EMULATOR_AMQP_ADDR"
	EnvMQTTSAddr  = "EMULATOR_MQTTS_ADDR"
	// EnvControlAddr is there if there is a control API.
	EnvControlAddr = "EMULATOR_CONTROL_ADDR"
)

// keyring holds the policy of the namespace; it implements sas.Keyring.
type keyring struct{ root sas.Keys }

func openKeyring(s store.Store) (keyring, error) {
	keys, err := hub.OpenKeys(s, "namespace/"+NamespacePolicy)
	return keyring{keys}, err
}

func (k keyring) Policy(name string) (sas.Policy, error) {
	if name != NamespacePolicy {
		return sas.Policy{}, sas.ErrUnknownPolicy
	}
	return sas.Policy{Keys: k.root, Permissions: sas.Listen | sas.Send | sas.Manage}, nil
}

func (keyring) Device(string) (sas.Device, error) { return sas.Device{}, sas.ErrUnknownDevice }

// Module implements sas.Keyring: nor modules.
func (keyring) Module(string, string) (sas.Device, error) {
	return sas.Device{}, sas.ErrUnknownDevice
}

// AMQPAddr is where AMQP without TLS is served, as a client dials it. Like those
// of the other addresses, its host is the hub's name if the emulator listens on
// all interfaces.
func (e *Emulator) AMQPAddr() string { return e.addr(ListenerAMQP) }

// AMQPSAddr is where AMQP over TLS is served.
func (e *Emulator) AMQPSAddr() string { return e.addr(ListenerAMQPS) }

// MQTTSAddr is where MQTT over TLS is served.
func (e *Emulator) MQTTSAddr() string { return e.addr(ListenerMQTTS) }

// HTTPSAddr is where HTTPS is served.
func (e *Emulator) HTTPSAddr() string { return e.addr(ListenerHTTPS) }

// ControlAddr is where the control API is served over HTTP, or empty.
func (e *Emulator) ControlAddr() string {
	if e.listeners[ListenerControl] == nil {
		return ""
	}
	return e.addr(ListenerControl)
}

func (e *Emulator) addr(listener string) string {
	addr := e.listeners[listener].Addr().String()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort(e.opts.HubName, port)
	}
	return addr
}

// HubName returns the hub's host name. A client that dials one of the addresses
// expects it in the certificate.
func (e *Emulator) HubName() string { return e.opts.HubName }

// CAPEM returns the certificate of the emulator's authority in PEM. Clients that
// use TLS need it among their trust roots.
func (e *Emulator) CAPEM() []byte { return append([]byte(nil), e.certs.CAPEM...) }

// CAFile returns the file that holds CAPEM, or nothing without a data directory.
func (e *Emulator) CAFile() string { return e.certs.CAPath }

// HubConnectionString is that of the policy iothubowner. It has no port, as no SDK
// takes one for all its protocols: the addresses say where to dial.
func (e *Emulator) HubConnectionString() string {
	text, err := e.PolicyConnectionString(hub.PolicyOwner)
	if err != nil {
		return "" // every hub has this policy
	}
	return text
}

// PolicyConnectionString is that of one of the hub's policies: iothubowner,
// service, device, registryRead or registryReadWrite.
func (e *Emulator) PolicyConnectionString(policy string) (string, error) {
	p, err := e.hub.Policy(policy)
	if err != nil {
		return "", fmt.Errorf("hub policy %q: %w", policy, err)
	}
	return fmt.Sprintf("HostName=%s;SharedAccessKeyName=%s;SharedAccessKey=%s", e.opts.HubName, policy, p.Keys.Primary), nil
}

// AddDevice registers a device with generated keys, as a client of the registry
// does, and returns its connection string. It is an error if there is one of that
// ID.
func (e *Emulator) AddDevice(ctx context.Context, deviceID string) (connectionString string, err error) {
	if _, err := e.hub.CreateDevice(ctx, hub.Identity{DeviceID: deviceID}); err != nil {
		return "", fmt.Errorf("add device %q: %w", deviceID, err)
	}
	return e.DeviceConnectionString(deviceID)
}

// DeviceConnectionString is that of a device which is registered and has keys.
func (e *Emulator) DeviceConnectionString(deviceID string) (string, error) {
	d, err := e.hub.Device(deviceID)
	if err != nil {
		return "", fmt.Errorf("device %q: %w", deviceID, err)
	}
	if d.Keys.Primary == "" {
		return "", fmt.Errorf("device %q has no symmetric key", deviceID)
	}
	return fmt.Sprintf("HostName=%s;DeviceId=%s;SharedAccessKey=%s", e.opts.HubName, deviceID, d.Keys.Primary), nil
}

// ServiceBusConnectionString is for azservicebus, on AMQP without TLS.
func (e *Emulator) ServiceBusConnectionString() string {
	return e.endpoint(NamespacePolicy, e.keys.root.Primary)
}

// EventHubsConnectionString is for azeventhubs and the event hubs of the
// configuration; their name is to be added as EntityPath or given to the SDK.
func (e *Emulator) EventHubsConnectionString() string { return e.ServiceBusConnectionString() }

// EventsConnectionString is for azeventhubs and the hub's built-in endpoint. It
// names the endpoint as EntityPath.
func (e *Emulator) EventsConnectionString() string {
	p, err := e.hub.Policy(hub.PolicyOwner)
	if err != nil {
		return "" // every hub has this policy
	}
	return e.endpoint(hub.PolicyOwner, p.Keys.Primary) + ";EntityPath=" + e.EventsName()
}

// EventsName is the name of the hub's built-in Event Hubs endpoint.
func (e *Emulator) EventsName() string { return e.opts.eventsName() }

// endpoint makes the connection string that azservicebus v1.11 and azeventhubs
// v2.0 take for an emulator: internal/exported/connection_string_parser.go.
func (e *Emulator) endpoint(policy, key string) string {
	addr := e.AMQPAddr()
	// The other loopback addresses, ::1 among them, don't have this name everywhere.
	if host, port, err := net.SplitHostPort(addr); err == nil && host == "127.0.0.1" {
		addr = net.JoinHostPort("localhost", port)
	}
	return fmt.Sprintf("Endpoint=sb://%s;SharedAccessKeyName=%s;SharedAccessKey=%s;UseDevelopmentEmulator=true", addr, policy, key)
}

// Env returns the settings of EnvFile by name.
func (e *Emulator) Env() map[string]string {
	env := make(map[string]string)
	for _, s := range e.settings(e.CAFile()) {
		env[s.name] = s.value
	}
	return env
}

type setting struct{ name, value string }

// settings are in the order of the file.
func (e *Emulator) settings(caFile string) []setting {
	all := []setting{
		{EnvHub, e.HubConnectionString()},
		{EnvServiceBus, e.ServiceBusConnectionString()},
		{EnvEventHub, e.EventsConnectionString()},
	}
	if caFile != "" {
		all = append(all, setting{EnvCAFile, caFile})
	}
	all = append(all,
		setting{EnvHTTPSAddr, e.HTTPSAddr()},
		setting{EnvAMQPSAddr, e.AMQPSAddr()},
		setting{EnvAMQPAddr, e.AMQPAddr()},
		setting{EnvMQTTSAddr, e.MQTTSAddr()},
	)
	if addr := e.ControlAddr(); addr != "" {
		all = append(all, setting{EnvControlAddr, addr})
	}
	return all
}

// WriteEnv writes EnvFile into a directory, so that readers see a whole file or
// none, and beside it the authority's certificate if there is no CAFile. Start
// does it in the data directory. The file holds keys, and only its owner can read
// it.
func (e *Emulator) WriteEnv(dir string) error {
	caFile := e.CAFile()
	if caFile == "" {
		caFile = filepath.Join(dir, tlsca.CAFile)
		if err := writeFile(caFile, e.certs.CAPEM); err != nil {
			return err
		}
	}
	var text bytes.Buffer
	for _, s := range e.settings(caFile) {
		fmt.Fprintf(&text, "%s=%s\n", s.name, s.value)
	}
	return writeFile(filepath.Join(dir, EnvFile), text.Bytes())
}

// writeFile replaces a file in one step.
func writeFile(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name()) // the error that counts is the first one
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
