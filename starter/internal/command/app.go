package command

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/hubjobs/hubjobs/azure/envfile"
)

const description = `Settings come from flags, else from the environment, else from an env file: --env-file, or ` + envfile.Default + `
when it exists, so that in the folder of a local run ("go run ./infra/local up") nothing needs to be set.
The connection to Temporal also follows Temporal's own settings: TEMPORAL_* variables and temporal.toml.
Connection strings are never flags: IOTHUB_CONNECTION_STRING and EVENTHUB_CONNECTION_STRING for hub,
SERVICEBUS_CONNECTION_STRING for deadletter.

run and attach follow a job. Ctrl-C asks whether to cancel it; Ctrl-C again, or where nobody can be asked, detaches:
the job goes on.

Exit codes: 0 done or Completed, 1 error, 2 Failed, 3 Cancelled, 4 Rejected, 5 Expired, 6 Unconfirmed,
130 Ctrl-C (a followed job goes on), 143 SIGTERM (a followed job goes on).`

func (p *program) app() *cli.App {
	app := &cli.App{
		Name:                      "starter",
		Usage:                     "start jobs, follow them, and see what became of their messages",
		Description:               description,
		Reader:                    p.Stdin,
		Writer:                    p.Stdout,
		ErrWriter:                 p.Stderr,
		HideVersion:               true,
		HideHelpCommand:           true,
		DisableSliceFlagSeparator: true, // a step's name may hold a comma
		ExitErrHandler:            func(*cli.Context, error) {},
		Commands: []*cli.Command{
			p.runCommand(), p.attachCommand(), p.statusCommand(), p.listCommand(), p.cancelCommand(), p.auditCommand(),
			p.hubCommand(), p.deadLetterCommand(),
		},
		Action: noCommand,
	}
	app.OnUsageError = onUsageError
	for _, c := range app.Commands {
		p.finish(c, nil)
	}
	return app
}

// finish adds to a command what all have in common; path is where it stands.
func (p *program) finish(c *cli.Command, path []string) {
	path = append(path, c.Name)
	c.HideHelpCommand = true
	c.OnUsageError = onUsageError
	if len(c.Subcommands) > 0 {
		c.Action = noCommand
		for _, sub := range c.Subcommands {
			p.finish(sub, path)
		}
		return
	}
	own := variables(c.Flags, "HUBJOBS_"+strings.ToUpper(strings.Join(path, "_"))+"_")
	c.Flags = append(c.Flags, commonFlags()...)
	for name, variable := range variables(commonFlags(), "HUBJOBS_") {
		own[name] = variable
	}
	mention(c.Flags, own)
	c.Before = func(ctx *cli.Context) error { return p.configure(ctx, own) }
	action := c.Action
	c.Action = func(ctx *cli.Context) error {
		p.action = func() error { return action(ctx) }
		return nil
	}
}

// noCommand is what happens without a command, or with an unknown one.
func noCommand(c *cli.Context) error {
	if !c.Args().Present() {
		return cli.ShowSubcommandHelp(c)
	}
	return fmt.Errorf("unknown command %q: see starter --help", c.Args().First())
}

func onUsageError(c *cli.Context, err error, _ bool) error {
	name := "starter"
	if c.Command != nil && c.Command.HelpName != "" {
		name = c.Command.HelpName
	}
	return fmt.Errorf("%w (see: %s --help)", err, name)
}
