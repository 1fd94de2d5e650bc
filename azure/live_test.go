package azure_test

import (
	"os"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/azure/eventhubs"
	"github.com/hubjobs/hubjobs/azure/iothub"
	"github.com/hubjobs/hubjobs/azure/servicebus"
)

// Settings of a live hub to test against. It needs the pipeline's entities and routes, and nobody else may read them
// meanwhile.
const (
	envHub        = "HUBJOBS_LIVE_IOTHUB_CONNECTION_STRING"
	envServiceBus = "HUBJOBS_LIVE_SERVICEBUS_CONNECTION_STRING"
	envEventHub   = "HUBJOBS_LIVE_EVENTHUB_CONNECTION_STRING" // of the built-in endpoint, with its EntityPath
)

func TestLive(t *testing.T) {
	to := target{
		hub:        iothub.Config{ConnectionString: os.Getenv(envHub)},
		servicebus: servicebus.Config{ConnectionString: os.Getenv(envServiceBus)},
		eventhubs:  eventhubs.Config{ConnectionString: os.Getenv(envEventHub)},
		patience:   3 * time.Minute,
		poll:       5 * time.Second,
	}
	if to.hub.ConnectionString == "" || to.servicebus.ConnectionString == "" || to.eventhubs.ConnectionString == "" {
		t.Skipf("no live hub to test against: set %s, %s and %s", envHub, envServiceBus, envEventHub)
	}
	run(t, to)
}
