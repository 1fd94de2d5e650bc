package main

import (
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/contrib/envconfig"

	"github.com/hubjobs/hubjobs/activities"
	"github.com/hubjobs/hubjobs/activities/steps"
	"github.com/hubjobs/hubjobs/azure/credential"
	"github.com/hubjobs/hubjobs/azure/envfile"
	"github.com/hubjobs/hubjobs/azure/iothub"
	"github.com/hubjobs/hubjobs/azure/servicebus"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workers/host"
	"github.com/hubjobs/hubjobs/workers/manager"
	"github.com/hubjobs/hubjobs/workers/scheduler"
	"github.com/hubjobs/hubjobs/workers/solver"
)

// Values of --jobs-from and --step-runner.
const (
	fromServiceBus = "servicebus"
	fromHTTP       = "http"
	runnerSimulate = "simulate"
	runnerExec     = "exec"
)

// common is what every role needs.
type common struct {
	secrets  map[string]string // by the names of their variables
	temporal client.Options
	roots    *x509.CertPool
	apiKey   string
	log      *slog.Logger
}

func commonSettings(c *cli.Context, stderr io.Writer) (s common, err error) {
	if c.Args().Present() {
		return s, fmt.Errorf("%s takes no arguments, but got %q", c.Command.Name, c.Args().First())
	}
	env, err := envfile.Load(os.Environ(), c.Path(flagEnvFile))
	if err != nil {
		return s, err
	}
	s.secrets = secrets(c, env)
	if err := fill(c, env); err != nil {
		return s, err
	}
	if s.log, err = newLogger(stderr, c.String(flagLogLevel), c.String(flagLogFormat)); err != nil {
		return s, err
	}
	if s.temporal, err = envconfig.LoadClientOptions(envconfig.LoadClientOptionsRequest{EnvLookup: env}); err != nil {
		return s, fmt.Errorf("settings of the Temporal client: %w", err)
	}
	if s.apiKey, err = apiKey(c, s.secrets); err != nil {
		return s, err
	}
	if s.roots, err = credential.RootCAs(c.Path(flagCAFile)); err != nil {
		return s, err
	}
	if env.File() != "" {
		s.log.Info("settings that neither flags nor the environment gave are from a file", "file", env.File())
	}
	return s, nil
}

// secrets returns what has no flag. A secret of the file doesn't count where the flag that stands for it was given.
func secrets(c *cli.Context, env *envfile.Settings) map[string]string {
	all := make(map[string]string)
	for _, name := range []string{envHubConnection, envServiceBusConnection, envAPIKey, envDaprToken} {
		all[name] = env.Get(name)
	}
	for flag, name := range instead {
		if given(c, flag) && os.Getenv(name) == "" {
			all[name] = ""
		}
	}
	return all
}

// given reports whether the command line or the environment has a flag's value.
func given(c *cli.Context, flag string) bool { return c.IsSet(flag) && c.String(flag) != "" }

// fill gives each flag that neither the command line nor the environment has given its value of the file. A flag that
// stands for a secret gets none when the environment has the secret.
func fill(c *cli.Context, env *envfile.Settings) error {
	for _, f := range c.Command.Flags {
		name := f.Names()[0]
		documented, ok := f.(cli.DocGenerationFlag)
		if !ok || name == flagEnvFile || given(c, name) || os.Getenv(instead[name]) != "" {
			continue
		}
		for _, variable := range documented.GetEnvVars() {
			value := env.Get(variable)
			if value == "" {
				continue
			}
			if err := c.Set(name, value); err != nil {
				return fmt.Errorf("%s: %s: %w", env.File(), variable, err)
			}
		}
	}
	return nil
}

// apiKey reads the key from its file, or takes the secret.
func apiKey(c *cli.Context, secrets map[string]string) (string, error) {
	key := secrets[envAPIKey]
	if path := c.Path(flagAPIKeyFile); path != "" {
		content, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("read the API key: %w", err)
		}
		key = string(content)
	}
	if key = strings.TrimSpace(key); key == "" {
		return "", fmt.Errorf("the API key is missing: set %s, or --%s", envAPIKey, flagAPIKeyFile)
	}
	return key, nil
}

func managerSettings(c *cli.Context, stderr io.Writer) (manager.Settings, error) {
	base, err := commonSettings(c, stderr)
	if err != nil {
		return manager.Settings{}, err
	}
	hub, err := hubConfig(c, base)
	if err != nil {
		return manager.Settings{}, err
	}
	bus, err := serviceBusConfig(c, base)
	if err != nil {
		return manager.Settings{}, err
	}
	s := manager.Settings{
		Temporal: base.temporal, Hub: hub, ServiceBus: bus, APIKey: base.apiKey,
		HTTPAddr: c.String(flagHTTPAddr), Logger: base.log,
		Limits: manager.Limits{Tier: manager.Tier(strings.ToUpper(c.String("hub-tier"))), Units: c.Int("hub-units")},
	}
	return s, s.Limits.Validate()
}

func schedulerSettings(c *cli.Context, stderr io.Writer) (scheduler.Settings, error) {
	base, err := commonSettings(c, stderr)
	if err != nil {
		return scheduler.Settings{}, err
	}
	h, err := hostSettings(c, base)
	if err != nil {
		return scheduler.Settings{}, err
	}
	return scheduler.Settings{Temporal: base.temporal, Host: h, HTTPAddr: c.String(flagHTTPAddr), Logger: base.log}, nil
}

func solverSettings(c *cli.Context, stderr io.Writer) (solver.Settings, error) {
	base, err := commonSettings(c, stderr)
	if err != nil {
		return solver.Settings{}, err
	}
	h, err := hostSettings(c, base)
	if err != nil {
		return solver.Settings{}, err
	}
	runner, err := stepRunner(c)
	if err != nil {
		return solver.Settings{}, err
	}
	s := solver.Settings{
		Temporal: base.temporal, Host: h, Steps: runner,
		Defaults: job.SolverOptions{
			StepTimeout:    c.Duration(flagStepTimeout),
			StepRetries:    c.Int(flagStepRetries),
			ReceiptTimeout: c.Duration(flagReceipts),
		},
		HTTPAddr: c.String(flagHTTPAddr), PubSub: c.String(flagPubSub), DaprToken: base.secrets[envDaprToken],
		Logger: base.log,
	}
	switch from := c.String(flagJobsFrom); from {
	case fromHTTP:
	case fromServiceBus:
		bus, err := serviceBusConfig(c, base)
		if err != nil {
			return solver.Settings{}, err
		}
		s.ServiceBus = &bus
	default:
		return solver.Settings{}, fmt.Errorf("--%s is %q: use %s or %s", flagJobsFrom, from, fromServiceBus, fromHTTP)
	}
	return s, nil
}

func stepRunner(c *cli.Context) (activities.StepRunner, error) {
	switch name := c.String(flagStepRunner); name {
	case runnerSimulate:
		if c.IsSet(flagStepDir) && !c.IsSet(flagStepRunner) {
			return nil, fmt.Errorf("--%s is for programs: it needs --%s %s as well", flagStepDir, flagStepRunner, runnerExec)
		}
		if c.Duration(flagStepTime) < 0 {
			return nil, fmt.Errorf("--%s is negative: %s", flagStepTime, c.Duration(flagStepTime))
		}
		return steps.Simulate{StepTime: c.Duration(flagStepTime)}, nil
	case runnerExec:
		if c.Path(flagStepDir) == "" {
			return nil, fmt.Errorf("--%s is %s, so --%s must name the directory of the executables", flagStepRunner, runnerExec, flagStepDir)
		}
		return steps.NewExec(c.Path(flagStepDir))
	default:
		return nil, fmt.Errorf("--%s is %q: use %s or %s", flagStepRunner, name, runnerSimulate, runnerExec)
	}
}

func hostSettings(c *cli.Context, base common) (host.Settings, error) {
	s := host.Settings{
		Name: c.String(flagHost), ManagerURL: c.String(flagManagerURL), APIKey: base.apiKey,
		MQTTAddr: c.String(flagMQTTSAddr), RootCAs: base.roots,
	}
	if s.ManagerURL == "" {
		return s, fmt.Errorf("the manager is not known: set HUBJOBS_MANAGER_URL, or --%s", flagManagerURL)
	}
	return s, s.Validate()
}

func hubConfig(c *cli.Context, base common) (iothub.Config, error) {
	cfg := iothub.Config{
		ConnectionString: base.secrets[envHubConnection],
		HTTPSAddr:        c.String(flagHTTPSAddr),
		AMQPSAddr:        c.String(flagAMQPSAddr),
		RootCAs:          base.roots,
		Logger:           base.log,
	}
	if cfg.ConnectionString != "" {
		return cfg, nil
	}
	if cfg.HostName = c.String(flagHubHost); cfg.HostName == "" {
		return cfg, fmt.Errorf("the hub is not known: set %s, or IOTHUB_HOSTNAME to use a managed identity", envHubConnection)
	}
	var err error
	cfg.Credential, err = credential.Azure(c.String(flagClientID))
	return cfg, err
}

func serviceBusConfig(c *cli.Context, base common) (servicebus.Config, error) {
	cfg := servicebus.Config{ConnectionString: base.secrets[envServiceBusConnection], Logger: base.log}
	if cfg.ConnectionString != "" {
		return cfg, nil
	}
	if cfg.Namespace = c.String(flagNamespace); cfg.Namespace == "" {
		return cfg, fmt.Errorf("the Service Bus is not known: set %s, or SERVICEBUS_NAMESPACE to use a managed identity", envServiceBusConnection)
	}
	var err error
	cfg.Credential, err = credential.Azure(c.String(flagClientID))
	return cfg, err
}
