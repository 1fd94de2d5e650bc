package emulator_test

import (
	"go/parser"
	gotoken "go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Anybody can use the emulator for an IoT Hub project of their own, so it knows
// nothing of the pipeline in this module.
func TestImportsNothingOfThePipeline(t *testing.T) {
	t.Parallel()
	const module, own = "github.com/hubjobs/hubjobs", "github.com/hubjobs/hubjobs/infra/emulator"
	files := 0
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") {
			return err
		}
		if strings.HasPrefix(path, "conformance"+string(filepath.Separator)) && strings.HasSuffix(path, "_test.go") {
			return nil // judges with all clients that there are, the pipeline's too
		}
		files++
		f, err := parser.ParseFile(gotoken.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			ours := name == module || strings.HasPrefix(name, module+"/")
			if ours && name != own && !strings.HasPrefix(name, own+"/") {
				t.Errorf("%s imports %s", path, name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 10 {
		t.Errorf("only %d files were looked at", files)
	}
}
