package steps

import "strings"

// MaxOutput is how many bytes of a step's output are kept: the last ones, where a failing program says why.
const MaxOutput = 4 << 10

const cutMark = "..."

// tail keeps the end of what is written to it. os/exec writes from one goroutine at a time when standard output and
// error are the same writer.
type tail struct {
	kept []byte
	cut  bool
}

// Write never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - MaxOutput; over > 0 {
		t.kept = append(t.kept[:0], t.kept[over:]...)
		t.cut = true
	}
	return len(p), nil
}

// String returns at most MaxOutput bytes of valid UTF-8; what was cut off in front is marked.
func (t *tail) String() string {
	kept := t.kept
	if t.cut {
		kept = kept[len(cutMark):]
	}
	text := strings.ToValidUTF8(string(kept), "")
	if t.cut {
		text = cutMark + text
	}
	return text
}
