package azure_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/azure/eventhubs"
	"github.com/hubjobs/hubjobs/azure/iotdevice"
	"github.com/hubjobs/hubjobs/azure/iothub"
	"github.com/hubjobs/hubjobs/azure/servicebus"
	"github.com/hubjobs/hubjobs/infra/emulator/emulatortest"
)

func TestEmulator(t *testing.T) {
	t.Parallel()
	run(t, emulatorTarget(t))
}

func emulatorTarget(t *testing.T, options ...emulatortest.Option) target {
	t.Helper()
	e := emulatortest.Start(t, options...)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(e.CAPEM()) {
		t.Fatal("the emulator's CA is no certificate")
	}
	return target{
		hub:        iothub.Config{ConnectionString: e.HubConnectionString(), HTTPSAddr: e.HTTPSAddr(), AMQPSAddr: e.AMQPSAddr(), RootCAs: roots},
		device:     iotdevice.Options{Addr: e.MQTTSAddr(), RootCAs: roots},
		servicebus: servicebus.Config{ConnectionString: e.ServiceBusConnectionString(), Addr: e.AMQPAddr()},
		eventhubs:  eventhubs.Config{ConnectionString: e.EventsConnectionString(), Addr: e.AMQPAddr()},
		patience:   time.Minute,
		poll:       20 * time.Millisecond,
	}
}
