// Package hubjobs_test holds the rules of the whole module.
package hubjobs_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/hubjobs/hubjobs/"

// rules say, for the folder of a package, which other folders of the module it may import. The longest prefix counts.
// Tests may import anything.
var rules = []struct {
	folder string
	may    []string
	why    string
}{
	{"job", nil, "the contract imports nothing of ours"},
	{"workflows", []string{"job"}, "workflows decide, by job and activity names only"},
	{"activities", []string{"job", "activities"}, "activities declare the interfaces that they need"},
	{"azure", []string{"job", "azure"}, "adapters satisfy interfaces that they don't import"},
	{"workers", []string{"job", "workflows", "activities", "azure", "workers"}, "workers wire, and run against any hub"},
	{"starter", []string{"job", "azure", "starter"}, "the command line talks to Temporal, its hub commands to the hub"},
	{"infra/emulator", []string{"infra/emulator"}, "anyone can use the emulator for a project of their own"},
	{"infra/local", []string{"job", "workflows", "activities", "azure", "workers", "starter", "infra"}, "the one place where all meet"},
}

// foreign names modules that only some folders may import.
var foreign = []struct {
	prefix string
	only   []string
	why    string
}{
	{"go.temporal.io/server", []string{"infra/local"}, "the Temporal server is embedded by the local stack alone"},
	{"github.com/temporalio/ui-server", []string{"infra/local"}, "the web UI is embedded by the local stack alone"},
	{"go.temporal.io/sdk/client", []string{"workers", "starter", "infra/local", "activities"}, "workflows and adapters have no client"},
}

func TestImportsPointDown(t *testing.T) {
	t.Parallel()
	packages := 0
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (file == "consoles" || strings.HasPrefix(d.Name(), ".") && file != "."):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go"):
			return nil
		}
		packages++
		return checkFile(t, filepath.ToSlash(file))
	})
	if err != nil {
		t.Fatal(err)
	}
	if packages == 0 {
		t.Fatal("no Go file was found")
	}
}

func checkFile(t *testing.T, file string) error {
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
	if err != nil {
		return err
	}
	folder := path.Dir(file)
	for _, spec := range parsed.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return err
		}
		if why := forbidden(folder, name); why != "" {
			t.Errorf("%s imports %s: %s", file, name, why)
		}
	}
	return nil
}

func forbidden(folder, name string) string {
	for _, f := range foreign {
		if within(name, f.prefix) && !withinAny(folder, f.only) {
			return f.why
		}
	}
	ours, ok := strings.CutPrefix(name, module)
	if !ok {
		return ""
	}
	for _, r := range rules {
		if within(folder, r.folder) {
			if withinAny(ours, r.may) {
				return ""
			}
			return r.why
		}
	}
	return "no rule covers the folder " + folder
}

func within(name, folder string) bool {
	return name == folder || strings.HasPrefix(name, folder+"/")
}

func withinAny(name string, folders []string) bool {
	for _, f := range folders {
		if within(name, f) {
			return true
		}
	}
	return false
}
