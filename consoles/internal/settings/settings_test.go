package settings

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

var setting = Setting{Flag: "color", Variable: "COLOR", Default: "red"}

// read runs a command line with the setting before and after a subcommand, and returns what the subcommand reads.
func read(t *testing.T, environment map[string]string, args ...string) (got string, err error) {
	t.Helper()
	app := &cli.App{
		HideHelp: true,
		Flags:    []cli.Flag{setting.CLI(), Files()},
		Commands: []*cli.Command{{Name: "sub", HideHelp: true, Flags: []cli.Flag{setting.CLI(), Files()}, Action: func(c *cli.Context) error {
			variables, err := Load(c, func(name string) string { return environment[name] })
			if err != nil {
				return err
			}
			got = setting.Read(c, variables)
			return nil
		}}},
		ExitErrHandler: func(*cli.Context, error) {},
	}
	err = app.RunContext(t.Context(), append([]string{"app"}, args...))
	return got, err
}

func write(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "settings.env")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestPrecedence(t *testing.T) {
	t.Parallel()
	file, other := write(t, "COLOR=file\n"), write(t, "COLOR=other\n")
	environment := map[string]string{"COLOR": "environment"}
	tests := map[string]struct {
		environment map[string]string
		args        []string
		want        string
	}{
		"default":                       {nil, []string{"sub"}, "red"},
		"file over default":             {nil, []string{"--env-file", file, "sub"}, "file"},
		"file after the subcommand":     {nil, []string{"sub", "--env-file", file}, "file"},
		"last file":                     {nil, []string{"sub", "--env-file", file, "--env-file", other}, "other"},
		"file of the environment":       {map[string]string{FileVariable: file}, []string{"sub"}, "file"},
		"flag for the file over it":     {map[string]string{FileVariable: file}, []string{"sub", "--env-file", other}, "other"},
		"environment over file":         {environment, []string{"sub", "--env-file", file}, "environment"},
		"flag over environment":         {environment, []string{"--color", "flag", "sub"}, "flag"},
		"later flag over earlier":       {environment, []string{"--color", "early", "sub", "--color", "late"}, "late"},
		"empty flag is a value":         {environment, []string{"--color", "", "sub"}, ""},
		"empty environment is no value": {map[string]string{"COLOR": ""}, []string{"sub", "--env-file", file}, "file"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := read(t, test.environment, test.args...)
			if got != test.want || err != nil {
				t.Errorf("got %q, %v, want %q", got, err, test.want)
			}
		})
	}
}

func TestFileForms(t *testing.T) {
	t.Parallel()
	for content, want := range map[string]string{
		"COLOR=a=b;c=d\n":                    "a=b;c=d",
		"COLOR='a;b'\n":                      "a;b",
		"COLOR=\"a b\"\r\n":                  "a b",
		"# COLOR=x\n\n  COLOR=y":             "y",
		"OTHER=1\nCOLOR=\n":                  "red",
		"COLOR='\n":                          "'",
		"COLOR=Endpoint=sb://h/;Key=QUJD==;": "Endpoint=sb://h/;Key=QUJD==;",
	} {
		if got, err := read(t, nil, "sub", "--env-file", write(t, content)); got != want || err != nil {
			t.Errorf("file %q gives %q, %v, want %q", content, got, err, want)
		}
	}
}

func TestFileErrors(t *testing.T) {
	t.Parallel()
	for _, content := range []string{"s3cret\n", "A=1\n=s3cret\n", "export COLOR=s3cret\n"} {
		_, err := read(t, nil, "sub", "--env-file", write(t, content))
		if !errors.Is(err, errLine) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("file %q: error %v", content, err)
		}
	}
	if _, err := read(t, nil, "sub", "--env-file", filepath.Join(t.TempDir(), "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: error %v", err)
	}
}
