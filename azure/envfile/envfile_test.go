package envfile_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hubjobs/hubjobs/azure/envfile"
)

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "hubjobs.env")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestLoad(t *testing.T) {
	t.Parallel()
	const file = `# what a local run left
TEMPORAL_ADDRESS=127.0.0.1:7233

export TEMPORAL_NAMESPACE = jobs
IOTHUB_CONNECTION_STRING=HostName=localhost;SharedAccessKeyName=iothubowner;SharedAccessKey=a2V5PT0=
QUOTED="a b"
SINGLE='c # d'
ODD="e
EMPTY=
TWICE=first
TWICE=second
`
	environ := []string{"TEMPORAL_ADDRESS=temporal:7233", "TEMPORAL_NAMESPACE=", "HOME=/home/ann", "=C:=odd"}
	s, err := envfile.Load(environ, write(t, file))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"TEMPORAL_ADDRESS":         "temporal:7233", // the environment wins
		"TEMPORAL_NAMESPACE":       "jobs",          // unless it is empty there
		"IOTHUB_CONNECTION_STRING": "HostName=localhost;SharedAccessKeyName=iothubowner;SharedAccessKey=a2V5PT0=",
		"QUOTED":                   "a b",
		"SINGLE":                   "c # d",
		"ODD":                      `"e`,
		"EMPTY":                    "",
		"TWICE":                    "first",
		"HOME":                     "/home/ann",
	} {
		if got := s.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if _, ok := s.LookupEnv("EMPTY"); ok {
		t.Error("an empty value counts as a value")
	}
	if all := s.Environ(); !slices.Contains(all, "TEMPORAL_NAMESPACE=jobs") || slices.Contains(all, "TEMPORAL_NAMESPACE=") {
		t.Errorf("Environ is %q", all)
	}
}

func TestLoadErrors(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, text, want string
	}{
		{"no equals sign", "A=1\n\nSharedAccessKey secret\n", "hubjobs.env:3: this is not NAME=VALUE"},
		{"no name", "=secret\n", "hubjobs.env:1: this is not NAME=VALUE"},
		{"a name of two words", "# c\nA B=secret\n", "hubjobs.env:2: this is not NAME=VALUE"},
		{"a line without end", "A=" + strings.Repeat("secret", 20_000), "token too long"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := envfile.Load(nil, write(t, test.text))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want %q", err, test.want)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the error shows the value: %v", err)
			}
		})
	}
}

func TestLoadMissingFile(t *testing.T) {
	t.Parallel()
	if _, err := envfile.Load(nil, filepath.Join(t.TempDir(), "absent.env")); err == nil {
		t.Error("a file that was named and is missing is no error")
	}
	if _, err := envfile.Load([]string{"A=1"}, ""); err != nil {
		t.Errorf("the default file is missing: %v", err)
	}
}

func TestWhichFile(t *testing.T) {
	t.Parallel()
	named, other := write(t, "A=named\n"+envfile.Variable+"=nowhere.env\n"), write(t, "A=other\n")
	for _, test := range []struct {
		name, file, variable, want string
	}{
		{"named", named, other, named},
		{"of the environment", "", other, other},
		{"a file can't name another", named, "", named},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s, err := envfile.Load([]string{envfile.Variable + "=" + test.variable}, test.file)
			if err != nil {
				t.Fatal(err)
			}
			if s.File() != test.want {
				t.Errorf("read %q, want %q", s.File(), test.want)
			}
		})
	}
	if _, err := envfile.Load([]string{envfile.Variable + "=" + named + ".absent"}, ""); err == nil {
		t.Error("a file that the environment names and is missing is no error")
	}
	if s, err := envfile.Load([]string{"A=1"}, os.DevNull); err != nil || s.Get("A") != "1" {
		t.Errorf("the null device is no empty file: %v", err)
	}
}
