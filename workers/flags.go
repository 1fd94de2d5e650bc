package main

import (
	"github.com/urfave/cli/v2"

	"github.com/hubjobs/hubjobs/activities/steps"
	"github.com/hubjobs/hubjobs/azure/envfile"
	"github.com/hubjobs/hubjobs/workers/solver"
)

// Environment variables that hold secrets. They have no flags: what is in a process's arguments can be read by others.
const (
	envHubConnection        = "IOTHUB_CONNECTION_STRING"
	envServiceBusConnection = "SERVICEBUS_CONNECTION_STRING"
	envAPIKey               = "HUBJOBS_API_KEY"
	envDaprToken            = "APP_API_TOKEN"
)

// instead says which flag stands for which secret: the one that is given nearer to the command line counts.
var instead = map[string]string{
	flagAPIKeyFile: envAPIKey,
	flagHubHost:    envHubConnection,
	flagNamespace:  envServiceBusConnection,
}

const (
	flagEnvFile     = "env-file"
	flagHTTPAddr    = "http-addr"
	flagLogLevel    = "log-level"
	flagLogFormat   = "log-format"
	flagAPIKeyFile  = "api-key-file"
	flagHubHost     = "iothub-hostname"
	flagNamespace   = "servicebus-namespace"
	flagClientID    = "azure-client-id"
	flagCAFile      = "emulator-ca-file"
	flagHTTPSAddr   = "emulator-https-addr"
	flagAMQPSAddr   = "emulator-amqps-addr"
	flagMQTTSAddr   = "emulator-mqtts-addr"
	flagHost        = "host"
	flagManagerURL  = "manager-url"
	flagJobsFrom    = "jobs-from"
	flagPubSub      = "dapr-pubsub"
	flagStepRunner  = "step-runner"
	flagStepDir     = "step-dir"
	flagStepTime    = "step-time"
	flagStepTimeout = "step-timeout"
	flagStepRetries = "step-retries"
	flagReceipts    = "receipt-timeout"
)

func commonFlags(httpAddr string) []cli.Flag {
	return []cli.Flag{
		&cli.PathFlag{Name: flagEnvFile, EnvVars: []string{envfile.Variable}, DefaultText: envfile.Default + " if it exists", Usage: "read what neither a flag nor the environment says from `FILE`, lines of NAME=VALUE"},
		&cli.StringFlag{Name: flagHTTPAddr, EnvVars: []string{"HUBJOBS_HTTP_ADDR"}, Value: httpAddr, Usage: "`HOST:PORT` to listen on for HTTP; in a container, :8080"},
		&cli.StringFlag{Name: flagLogLevel, EnvVars: []string{"HUBJOBS_LOG_LEVEL"}, Value: "info", Usage: "`LEVEL` from which on to log: debug, info, warn or error"},
		&cli.StringFlag{Name: flagLogFormat, EnvVars: []string{"HUBJOBS_LOG_FORMAT"}, Value: formatAuto, Usage: "`FORMAT` of the log: json, console, or auto, which is console on a terminal"},
	}
}

func keyFlags() []cli.Flag {
	return []cli.Flag{
		&cli.PathFlag{Name: flagAPIKeyFile, EnvVars: []string{"HUBJOBS_API_KEY_FILE"}, Usage: "`FILE` that holds the manager's API key, instead of " + envAPIKey},
	}
}

func hubFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: flagHubHost, EnvVars: []string{"IOTHUB_HOSTNAME"}, Usage: "`HOST` of the hub, to use a managed identity instead of " + envHubConnection},
	}
}

func serviceBusFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: flagNamespace, EnvVars: []string{"SERVICEBUS_NAMESPACE"}, Usage: "`HOST` of the Service Bus namespace, to use a managed identity instead of " + envServiceBusConnection},
	}
}

func azureFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: flagClientID, EnvVars: []string{"AZURE_CLIENT_ID"}, Usage: "client `ID` of the user-assigned managed identity"},
	}
}

// emulatorFlags are the local overrides, under the names that the emulator writes into its emulator.env.
func emulatorFlags(addresses ...string) []cli.Flag {
	flags := []cli.Flag{
		&cli.PathFlag{Name: flagCAFile, EnvVars: []string{"EMULATOR_CA_FILE"}, Usage: "PEM `FILE` with the authorities to trust, instead of the system's"},
	}
	for _, name := range addresses {
		flags = append(flags, map[string]cli.Flag{
			flagHTTPSAddr: &cli.StringFlag{Name: flagHTTPSAddr, EnvVars: []string{"EMULATOR_HTTPS_ADDR"}, Usage: "`HOST:PORT` to reach the hub's REST API at, instead of port 443 of the hub"},
			flagAMQPSAddr: &cli.StringFlag{Name: flagAMQPSAddr, EnvVars: []string{"EMULATOR_AMQPS_ADDR"}, Usage: "`HOST:PORT` to reach the hub over AMQP at, instead of port 5671 of the hub"},
			flagMQTTSAddr: &cli.StringFlag{Name: flagMQTTSAddr, EnvVars: []string{"EMULATOR_MQTTS_ADDR"}, Usage: "`HOST:PORT` to connect devices to, instead of port 8883 of the hub"},
		}[name])
	}
	return flags
}

func hostFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: flagHost, EnvVars: []string{"HUBJOBS_HOST"}, DefaultText: "<hostname>-<pid>-<random>", Usage: "`NAME` of this process, unique among those of its role"},
		&cli.StringFlag{Name: flagManagerURL, EnvVars: []string{"HUBJOBS_MANAGER_URL"}, Usage: "`URL` of the manager, like http://manager:8080"},
	}
}

func stepFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: flagJobsFrom, EnvVars: []string{"HUBJOBS_JOBS_FROM"}, Value: fromServiceBus, Usage: "`SOURCE` of jobs: servicebus for the topic, or http for a Dapr sidecar alone"},
		&cli.StringFlag{Name: flagPubSub, EnvVars: []string{"HUBJOBS_DAPR_PUBSUB"}, Value: solver.DefaultPubSub, Usage: "`NAME` of the sidecar's pub/sub component"},
		&cli.StringFlag{Name: flagStepRunner, EnvVars: []string{"HUBJOBS_STEP_RUNNER"}, Value: runnerSimulate, Usage: "how steps are run: simulate only waits, exec runs executables of --" + flagStepDir},
		&cli.PathFlag{Name: flagStepDir, EnvVars: []string{"HUBJOBS_STEP_DIR"}, Usage: "`DIRECTORY` with an executable for each step, of exactly its name"},
		&cli.DurationFlag{Name: flagStepTime, EnvVars: []string{"HUBJOBS_STEP_TIME"}, Value: steps.DefaultStepTime, Usage: "how `LONG` a simulated step takes, if its job doesn't say"},
		&cli.DurationFlag{Name: flagStepTimeout, EnvVars: []string{"HUBJOBS_STEP_TIMEOUT"}, Usage: "how `LONG` a step may take, if its job doesn't say; 0 for no limit"},
		&cli.IntFlag{Name: flagStepRetries, EnvVars: []string{"HUBJOBS_STEP_RETRIES"}, Usage: "how `OFTEN` a failed step is run again, if its job doesn't say"},
		&cli.DurationFlag{Name: flagReceipts, EnvVars: []string{"HUBJOBS_RECEIPT_TIMEOUT"}, DefaultText: "10m", Usage: "how `LONG` to wait for the last read receipts, if the job doesn't say"},
	}
}
