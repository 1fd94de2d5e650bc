package command

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// interleave puts the flags of a command before its other arguments, so that "cancel JOB --reason late" means what it
// says: the flag parser stops at the first argument that isn't a flag.
func interleave(commands []*cli.Command, args []string) []string {
	at := 1
	var leaf *cli.Command
	for at < len(args) {
		next := find(commands, args[at])
		if next == nil {
			break
		}
		leaf, commands, at = next, next.Subcommands, at+1
	}
	if leaf == nil {
		return args
	}
	flags, rest := split(leaf.Flags, args[at:])
	ordered := append(append([]string{}, args[:at]...), flags...)
	if len(rest) > 0 {
		ordered = append(append(ordered, "--"), rest...)
	}
	return ordered
}

func find(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

// split separates flags with their values from all other arguments. What follows "--" is no flag.
func split(known []cli.Flag, args []string) (flags, rest []string) {
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "--":
			return flags, append(rest, args[i+1:]...)
		case len(arg) < 2 || arg[0] != '-':
			rest = append(rest, arg)
		default:
			flags = append(flags, arg)
			if takesValue(known, arg) && i+1 < len(args) {
				i++
				flags = append(flags, args[i])
			}
		}
	}
	return flags, rest
}

// takesValue reports whether the value of a flag is the next argument.
func takesValue(known []cli.Flag, arg string) bool {
	name := strings.TrimLeft(arg, "-")
	if strings.Contains(name, "=") {
		return false
	}
	for _, f := range known {
		for _, n := range f.Names() {
			if n == name {
				_, isBool := f.(*cli.BoolFlag)
				return !isBool
			}
		}
	}
	return false
}
