//go:build unix

package store_test

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// limitFileSize makes this process unable to write files larger than n bytes, as
// if the disk were full.
func limitFileSize(n uint64) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	limit.Cur = n
	return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit)
}

func init() { beforeWriting = func() error { return limitFileSize(4 << 20) } }

func TestFullDiskIsReportedAndLosesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "STORE_TEST_WRITER="+dir, "STORE_TEST_LIMIT=1")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err == nil || stderr.Len() == 0 {
		t.Fatalf("the writer ended with %v and said %q", err, stderr.String())
	}
	for _, part := range []string{"write state to " + dir, "nothing more is accepted until a restart"} {
		if !strings.Contains(stderr.String(), part) {
			t.Errorf("%q doesn't say %q", stderr.String(), part)
		}
	}
	s := open(t, dir) // the file is whole
	acknowledged := 0
	for lines := bufio.NewScanner(&stdout); lines.Scan(); acknowledged++ {
		if key := lines.Text(); !strings.HasPrefix(contents(t, s, key), key+"=") {
			t.Fatalf("%s was acknowledged and is not there", key)
		}
	}
	if acknowledged < 10 {
		t.Errorf("only %d changes fitted", acknowledged)
	}
	update(t, s, store.Put("again", nil)) // with room, it goes on
}
