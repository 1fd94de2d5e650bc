package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/hubjobs/hubjobs/azure/envfile"
	"github.com/hubjobs/hubjobs/workers/manager"
	"github.com/hubjobs/hubjobs/workers/scheduler"
	"github.com/hubjobs/hubjobs/workers/solver"
)

// roles are what the subcommands run.
type roles struct {
	manager   func(context.Context, manager.Settings) error
	scheduler func(context.Context, scheduler.Settings) error
	solver    func(context.Context, solver.Settings) error
}

// run runs the command line until the role ends. A role that is interrupted while it starts has ended as it should.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	err := newApp(stdout, stderr, roles{manager.Run, scheduler.Run, solver.Run}).RunContext(ctx, args)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func newApp(stdout, stderr io.Writer, r roles) *cli.App {
	return &cli.App{
		Name:      "workers",
		Usage:     "run one role of the hubjobs pipeline",
		Writer:    stdout,
		ErrWriter: stderr,
		Description: "Settings come from flags, else from the environment, else from an env file: --env-file, or " + envfile.Default + "\n" +
			"when it exists.\n" +
			"The Temporal server is found by TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE, TEMPORAL_API_KEY, TEMPORAL_TLS...,\n" +
			"or a profile of the file that TEMPORAL_CONFIG_FILE names; by default it is localhost:7233.\n" +
			"Interrupt ends a role in an orderly way, a second interrupt at once.",
		Commands: []*cli.Command{
			managerCommand(stderr, r.manager),
			schedulerCommand(stderr, r.scheduler),
			solverCommand(stderr, r.solver),
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return fmt.Errorf("there is no role %q: use manager, scheduler or solver", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
		HideHelpCommand: true,
		ExitErrHandler:  func(*cli.Context, error) {}, // main prints the error, once
		OnUsageError:    usageError,
	}
}

// usageError keeps a wrong flag's error one line, without the whole help in front of it.
func usageError(_ *cli.Context, err error, _ bool) error { return err }

func managerCommand(stderr io.Writer, run func(context.Context, manager.Settings) error) *cli.Command {
	return &cli.Command{
		Name:  "manager",
		Usage: "run workflows, route messages, hand out device connections; holds the hub's credentials",
		Description: "Secrets come from the environment or the env file: IOTHUB_CONNECTION_STRING and SERVICEBUS_CONNECTION_STRING, unless a\n" +
			"managed identity is used, and HUBJOBS_API_KEY.",
		Flags: join(commonFlags("127.0.0.1:8080"), keyFlags(), hubFlags(), serviceBusFlags(), azureFlags(), emulatorFlags(flagHTTPSAddr, flagAMQPSAddr),
			[]cli.Flag{
				&cli.StringFlag{Name: "hub-tier", EnvVars: []string{"HUBJOBS_HUB_TIER"}, Usage: "`TIER` of the hub (F1, S1, S2, S3), to stay below its throttles; without it there is no limit"},
				&cli.IntFlag{Name: "hub-units", EnvVars: []string{"HUBJOBS_HUB_UNITS"}, Usage: "`NUMBER` of the hub's units; with several managers, the exact part of the limit is for each of them"},
			}),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			s, err := managerSettings(c, stderr)
			if err != nil {
				return err
			}
			return run(c.Context, s)
		},
	}
}

func schedulerCommand(stderr io.Writer, run func(context.Context, scheduler.Settings) error) *cli.Command {
	return &cli.Command{
		Name:         "scheduler",
		Usage:        "hold the schedulers' device connections",
		Description:  "The API key of the manager comes from the environment or the env file: HUBJOBS_API_KEY.",
		Flags:        join(commonFlags("127.0.0.1:8082"), keyFlags(), hostFlags(), emulatorFlags(flagMQTTSAddr)),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			s, err := schedulerSettings(c, stderr)
			if err != nil {
				return err
			}
			return run(c.Context, s)
		},
	}
}

func solverCommand(stderr io.Writer, run func(context.Context, solver.Settings) error) *cli.Command {
	return &cli.Command{
		Name:  "solver",
		Usage: "take jobs and run their steps; hold the solvers' device connections",
		Description: "Secrets come from the environment or the env file: HUBJOBS_API_KEY of the manager, SERVICEBUS_CONNECTION_STRING unless a\n" +
			"managed identity is used, and APP_API_TOKEN when a Dapr sidecar shows one.",
		Flags:        join(commonFlags("127.0.0.1:8081"), keyFlags(), hostFlags(), serviceBusFlags(), azureFlags(), emulatorFlags(flagMQTTSAddr), stepFlags()),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			s, err := solverSettings(c, stderr)
			if err != nil {
				return err
			}
			return run(c.Context, s)
		},
	}
}

func join(groups ...[]cli.Flag) []cli.Flag {
	var all []cli.Flag
	for _, g := range groups {
		all = append(all, g...)
	}
	return all
}
