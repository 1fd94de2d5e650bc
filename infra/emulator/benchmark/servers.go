package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"time"
)

// errNotInstalled leaves a broker out.
var errNotInstalled = errors.New("not installed")

// server is a broker that runs.
type server struct {
	name string
	*process
	helper *process // of a broker that needs a second process
	mqtt   mqttAccess
	amqp   amqpAccess
}

// mqttAccess is how devices connect.
type mqttAccess struct {
	addr string
	tls  *tls.Config
	// login returns user name and password of a device; nil without.
	login func(device string) (user, password string)
	// keepsNothing means that a broker forgets messages without a subscriber.
	keepsNothing bool
}

// amqpAccess is how a queue is reached.
type amqpAccess struct {
	addr           string
	user, password string
	queue          string
	// durable marks messages to be kept on the disk, for a broker that leaves it
	// to the sender.
	durable bool
}

func (s *server) stop() error {
	err := s.process.stop()
	if s.helper != nil {
		err = errors.Join(err, s.helper.stop())
	}
	return err
}

// command finds a program of a broker, in a place of its own if it has one.
func command(ctx context.Context, names ...string) (*exec.Cmd, error) {
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return exec.CommandContext(ctx, path), nil
		}
	}
	return nil, fmt.Errorf("%s is %w", names[0], errNotInstalled)
}

// saveInterval is how often Mosquitto writes its state to the disk in the
// measurements with a disk: as often as it can be told.
const saveInterval = "1"

// startMosquitto starts Mosquitto with TLS on the algorithms that the Go server
// chooses. With onDisk, it writes all its state every second.
func startMosquitto(ctx context.Context, dir string, onDisk bool) (*server, error) {
	cmd, err := command(ctx, "mosquitto", "/usr/sbin/mosquitto")
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	pool, err := writeCertificate(dir)
	if err != nil {
		return nil, err
	}
	me, err := user.Current()
	if err != nil {
		return nil, err
	}
	conf := fmt.Sprintf(`user %s
listener %s 127.0.0.1
certfile %s/cert.pem
keyfile %[3]s/key.pem
allow_anonymous true
max_queued_messages 0
log_type error
log_type warning
persistence %[4]v
persistence_location %[3]s/
autosave_interval %[5]s
`, me.Username, port, dir, onDisk, saveInterval)
	file := filepath.Join(dir, "mosquitto.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	cmd.Args = append(cmd.Args, "-c", file)
	p, err := start(cmd)
	if err != nil {
		return nil, err
	}
	s := &server{name: "mosquitto", process: p, mqtt: mqttAccess{
		addr:         "127.0.0.1:" + port,
		tls:          &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		keepsNothing: true,
	}}
	if err := p.awaitPort(ctx, s.mqtt.addr); err != nil {
		return nil, errors.Join(fmt.Errorf("start mosquitto: %w", err), s.stop())
	}
	return s, nil
}

// writeCertificate makes a certificate of the kind that the emulator makes.
func writeCertificate(dir string) (*x509.CertPool, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "localhost"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return pool, errors.Join(
		os.WriteFile(filepath.Join(dir, "cert.pem"), certPEM, 0o600),
		os.WriteFile(filepath.Join(dir, "key.pem"), keyPEM, 0o600))
}

// rabbitPaths are where the server script is when it isn't in the path, or what
// is in the path changes user first (Debian).
var rabbitPaths = []string{"/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server"}

// startRabbitMQ starts RabbitMQ with its AMQP 1.0 plug-in and a port mapper of
// its own, which would otherwise stay behind. With onDisk, messages are sent as
// durable ones.
func startRabbitMQ(ctx context.Context, dir string, onDisk bool) (*server, error) {
	cmd, err := command(ctx, rabbitPaths...)
	if err != nil {
		return nil, err
	}
	mapper, err := command(ctx, "epmd", "/usr/lib/erlang/bin/epmd")
	if err != nil {
		return nil, err
	}
	var ports [3]string
	for i := range ports {
		if ports[i], err = freePort(); err != nil {
			return nil, err
		}
	}
	conf := "listeners.tcp.1 = 127.0.0.1:" + ports[0] + "\n"
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, "rabbitmq.conf"), []byte(conf), 0o600),
		os.WriteFile(filepath.Join(dir, "plugins"), []byte("[rabbitmq_amqp1_0].\n"), 0o600))
	if err != nil {
		return nil, err
	}
	mapper.Args = append(mapper.Args, "-port", ports[2], "-address", "127.0.0.1")
	helper, err := start(mapper)
	if err != nil {
		return nil, err
	}
	cmd.Env = append(os.Environ(),
		"HOME="+dir, // for the cookie of the node
		"ERL_EPMD_PORT="+ports[2],
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_NODENAME=benchmark@localhost",
		"RABBITMQ_DIST_PORT="+ports[1],
		"RABBITMQ_MNESIA_BASE="+filepath.Join(dir, "mnesia"),
		"RABBITMQ_LOG_BASE="+filepath.Join(dir, "log"),
		"RABBITMQ_CONFIG_FILE="+filepath.Join(dir, "rabbitmq.conf"),
		"RABBITMQ_ENABLED_PLUGINS_FILE="+filepath.Join(dir, "plugins"),
		"RABBITMQ_CONF_ENV_FILE=/dev/null",
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}",
	)
	s := &server{name: "rabbitmq", helper: helper, amqp: amqpAccess{
		addr:     "127.0.0.1:" + ports[0],
		user:     "guest",
		password: "guest",
		queue:    "/queue/benchmark", // is made with the first link
		durable:  onDisk,
	}}
	if s.process, err = start(cmd); err != nil {
		return nil, errors.Join(err, helper.stop())
	}
	if err := s.awaitPort(ctx, s.amqp.addr); err != nil {
		return nil, errors.Join(fmt.Errorf("start rabbitmq: %w", err), s.stop())
	}
	return s, nil
}
