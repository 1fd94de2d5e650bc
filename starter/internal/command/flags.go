package command

import (
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hubjobs/hubjobs/azure/envfile"
)

const (
	outputText = "text"
	outputJSON = "json"
)

// commonFlags are the flags that every command has.
func commonFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: outputText, Usage: "`FORM` of the output: text or json (one object a line)"},
		&cli.StringFlag{Name: "env-file", Usage: "read settings from `FILE`, lines of NAME=VALUE", DefaultText: envfile.Default + " if it exists"},
		&cli.BoolFlag{Name: "verbose", Usage: "let the Temporal SDK log to the error output, and say why a connection failed"},
	}
}

// temporalFlags are the flags of commands that talk to Temporal.
func temporalFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "address", Usage: "`HOST:PORT` of the Temporal server", DefaultText: defaultAddress},
		&cli.StringFlag{Name: "namespace", Usage: "Temporal `NAMESPACE`", DefaultText: "default"},
		&cli.DurationFlag{Name: "connect-timeout", Value: 5 * time.Second, Usage: "`TIME` to reach the Temporal server"},
	}
}

// uiFlag tells where the web UI is.
func uiFlag() cli.Flag {
	return &cli.StringFlag{Name: "ui-url", Usage: "`URL` of Temporal's web UI, to print a job's page"}
}

// shared are the flags whose variable doesn't start with the name of their command.
var shared = map[string]string{
	"address":         "TEMPORAL_ADDRESS",
	"namespace":       "TEMPORAL_NAMESPACE",
	"connect-timeout": "HUBJOBS_CONNECT_TIMEOUT",
	"ui-url":          "HUBJOBS_UI_URL",
	"user":            "HUBJOBS_USER",
}

// variables gives each flag its variable.
func variables(flags []cli.Flag, prefix string) map[string]string {
	all := make(map[string]string)
	for _, f := range flags {
		name := f.Names()[0]
		all[name] = prefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		if variable, ok := shared[name]; ok {
			all[name] = variable
		}
	}
	return all
}

// mention names each flag's variable in its help, in the form that cli has for it. cli's own reading of the
// environment is not used: it knows nothing of env files.
func mention(flags []cli.Flag, variables map[string]string) {
	for _, f := range flags {
		suffix := " [$" + variables[f.Names()[0]] + "]"
		switch f := f.(type) {
		case *cli.StringFlag:
			f.Usage += suffix
		case *cli.StringSliceFlag:
			f.Usage += suffix
		case *cli.BoolFlag:
			f.Usage += suffix
		case *cli.IntFlag:
			f.Usage += suffix
		case *cli.DurationFlag:
			f.Usage += suffix
		}
	}
}

// configure loads the settings and gives each flag that wasn't set its variable's value.
func (p *program) configure(c *cli.Context, variables map[string]string) error {
	environment, err := envfile.Load(p.Environ, c.String("env-file"))
	if err != nil {
		return err
	}
	p.settings = environment
	for name, variable := range variables {
		if value := environment.Get(variable); value != "" && !c.IsSet(name) {
			if err := setFlag(c, name, value); err != nil {
				return fmt.Errorf("%s: %w", variable, err)
			}
		}
	}
	switch form := c.String("output"); form {
	case outputText, outputJSON:
		return nil
	default:
		return usageError(c, "--output is %q: it can be text or json", form)
	}
}

// setFlag sets a flag; a flag that may be repeated has one value a line.
func setFlag(c *cli.Context, name, value string) error {
	if _, repeated := c.Value(name).(cli.StringSlice); !repeated {
		return c.Set(name, value)
	}
	for line := range strings.Lines(value) {
		if err := c.Set(name, strings.TrimRight(line, "\r\n")); err != nil {
			return err
		}
	}
	return nil
}

func asJSON(c *cli.Context) bool { return c.String("output") == outputJSON }
