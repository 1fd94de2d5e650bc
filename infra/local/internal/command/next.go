package command

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/hubjobs/hubjobs/infra/local/internal/datadir"
	"github.com/hubjobs/hubjobs/infra/local/pipeline"
)

// upLine says that everything runs.
const upLine = "hubjobs is up."

// What becomes of the data after Ctrl-C.
const (
	continues = "Ctrl-C stops it; the next start with the same data directory continues what was going on."
	vanishes  = "Ctrl-C stops it and removes its data."
)

// writeNextSteps tells what is there now, what to do with it, and how it ends.
func writeNextSteps(w io.Writer, running *pipeline.Pipeline, dir *datadir.Dir, end string) {
	fmt.Fprintf(w, "\n%s\n\n", upLine)
	places := append(running.Places(),
		pipeline.Place{Name: "settings", Where: shortest(running.EnvFile())},
		pipeline.Place{Name: "log", Where: shortest(dir.File(pipeline.LogFileName))},
	)
	for _, place := range places {
		fmt.Fprintf(w, "  %-10s %s\n", place.Name, place.Where)
	}
	flag := envFileFlag(shortest(running.EnvFile()))
	fmt.Fprint(w, "\nNext, in another terminal:\n\n")
	list, help := "list"+flag, "--help"
	for _, step := range [][2]string{
		{"run" + flag, "start a job and follow it"},
		{list, "list all jobs"},
		{help, "see what else there is"},
	} {
		fmt.Fprintf(w, "  go run ./starter %-*s  %s\n", max(len(list), len(help)), step[0], step[1])
	}
	fmt.Fprintf(w, "\n%s\n", end)
}

// envFileFlag tells the starter where the settings are, unless it looks there by itself.
func envFileFlag(file string) string {
	switch {
	case filepath.ToSlash(file) == defaultDataDir+"/"+pipeline.EnvFileName:
		return ""
	case strings.ContainsAny(file, " '$`\\"):
		return fmt.Sprintf(" --env-file %q", file)
	}
	return " --env-file " + file
}

// shortest is the path as seen from the current folder when it lies below it.
func shortest(path string) string {
	current, err := os.Getwd()
	if err != nil {
		return path
	}
	relative, err := filepath.Rel(current, path)
	if err != nil || !filepath.IsLocal(relative) {
		return path
	}
	return relative
}
