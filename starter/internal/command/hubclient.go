package command

import (
	"fmt"
	"log/slog"

	"github.com/urfave/cli/v2"

	"github.com/hubjobs/hubjobs/azure/credential"
	"github.com/hubjobs/hubjobs/azure/envfile"
	"github.com/hubjobs/hubjobs/azure/eventhubs"
	"github.com/hubjobs/hubjobs/azure/iothub"
)

// Settings of the hub commands. An emulator writes them all into its env file.
const (
	variableHub       = "IOTHUB_CONNECTION_STRING"   // of a shared access policy with service connect and registry read
	variableEvents    = "EVENTHUB_CONNECTION_STRING" // of the built-in endpoint
	variableCAFile    = "EMULATOR_CA_FILE"
	variableHTTPSAddr = "EMULATOR_HTTPS_ADDR"
	variableAMQPSAddr = "EMULATOR_AMQPS_ADDR"
)

// missing says what to do about a setting that isn't there.
func missing(variable string) error {
	return fmt.Errorf(`%s is not set: run a local hub with "go run ./infra/local up", or set it in the environment or in an env file`, variable)
}

func openRegistry(s *envfile.Settings) (registry, error) {
	connectionString := s.Get(variableHub)
	if connectionString == "" {
		return nil, missing(variableHub)
	}
	roots, err := credential.RootCAs(s.Get(variableCAFile))
	if err != nil {
		return nil, err
	}
	return iothub.New(iothub.Config{
		ConnectionString: connectionString, RootCAs: roots,
		HTTPSAddr: s.Get(variableHTTPSAddr), AMQPSAddr: s.Get(variableAMQPSAddr),
	})
}

func openEvents(s *envfile.Settings, logger *slog.Logger) (events, error) {
	connectionString := s.Get(variableEvents)
	if connectionString == "" {
		return nil, missing(variableEvents)
	}
	roots, err := credential.RootCAs(s.Get(variableCAFile))
	if err != nil {
		return nil, err
	}
	return eventhubs.New(eventhubs.Config{ConnectionString: connectionString, RootCAs: roots, Logger: logger})
}

// monitorLogger lets a monitor say that its connection was lost and is made again: it would look like silence.
func (p *program) monitorLogger(c *cli.Context) *slog.Logger {
	level := slog.LevelWarn
	if c.Bool("verbose") {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(p.Stderr, &slog.HandlerOptions{Level: level}))
}
