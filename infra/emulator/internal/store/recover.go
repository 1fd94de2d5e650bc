package store

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// logMark is where the log begins, as the state file knows it.
type logMark struct {
	Segment uint64 // the first one that holds batches beyond the state file; 0 if none does
	Applied uint64 // the last batch that the state file has
	Sum     uint32
}

// readLog reads the batches that are in the log and not in the state file. It
// changes nothing.
func readLog(dir string, mark logMark) (*table, error) {
	t := newTable()
	next := mark.Applied + 1
	for number := mark.Segment; number > 0; number++ {
		path := segmentPath(dir, number)
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) && number > mark.Segment {
			return t, nil
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %s is missing", ErrDamaged, path)
		}
		if err != nil {
			return nil, err
		}
		_, err = os.Stat(segmentPath(dir, number+1))
		s := segmentReader{b: b, next: next, last: errors.Is(err, fs.ErrNotExist), table: t}
		if err := s.read(number); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, path, err)
		}
		next = s.next
	}
	return t, nil
}

// allSegments is above every number of a segment.
const allSegments = math.MaxUint64

// removeLog removes all segments below a number, and what a crash left behind.
func removeLog(dir string, below uint64) error {
	files, err := segmentFiles(dir)
	for name, number := range files {
		if number < below {
			err = errors.Join(err, os.Remove(filepath.Join(dir, name)))
		}
	}
	return err
}

// segmentFiles returns the names of all segments, those included that were being
// made, with their numbers.
func segmentFiles(dir string) (map[string]uint64, error) {
	entries, err := os.ReadDir(dir)
	files := make(map[string]uint64)
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), unfinishedSuffix)
		var number uint64
		if n, _ := fmt.Sscanf(name, "state-%d.log", &number); n == 1 && name == segmentName(number) {
			files[e.Name()] = number
		}
	}
	return files, err
}

// segmentReader reads one segment.
type segmentReader struct {
	b     []byte
	next  uint64 // number of the next batch
	last  bool   // no segment follows
	table *table
}

func (s *segmentReader) read(number uint64) error {
	var h segmentHeader
	if !decodeHeader(s.b, &h) || h.Magic != segmentMagic || h.Number != number {
		return errors.New("it has no header of the log")
	}
	if h.First != s.next {
		return fmt.Errorf("it begins with batch %d and not %d", h.First, s.next)
	}
	if len(s.b) < 2*segmentStep {
		return fmt.Errorf("it is cut off after %d bytes", len(s.b))
	}
	at := recordStart
	for {
		n, err := s.record(at)
		switch {
		case err == nil:
			at += n
		case s.last && s.unfinished(at):
			return nil
		case !s.last && zeros(s.b[at:]):
			return nil // all that was written; the next segment says whether that was all
		default:
			return fmt.Errorf("batch %d at byte %d: %w", s.next, at, err)
		}
	}
}

var errRecordHeader = errors.New("its header is not in order")

// record reads the batch at an offset and returns its length.
func (s *segmentReader) record(at int) (int, error) {
	b := s.b[at:]
	var h recordHeader
	if !decodeHeader(b, &h) || h.Magic != recordMagic || h.Number != s.next {
		return 0, errRecordHeader
	}
	if h.Size > uint64(len(s.b)) {
		return 0, fmt.Errorf("the file is cut off after %d of at least %d bytes", len(s.b), h.Size)
	}
	n := recordHeaderSize + int(h.Length)
	if n > len(b) {
		return 0, errRecordHeader
	}
	payload := b[recordHeaderSize:n]
	if crc32.Checksum(payload, castagnoli) != h.Pay {
		return 0, errors.New("its checksum is wrong")
	}
	payload = bytes.Clone(payload) // values are parts of it
	mask(payload, h.Number)
	if err := readBatch(payload, s.table.apply); err != nil {
		return 0, err
	}
	s.next++
	return n, nil
}

// unfinished reports whether what is at an offset was never acknowledged: there
// is nothing, or a batch that lacks one of its sectors. A batch was acknowledged
// for certain if another one follows it.
func (s *segmentReader) unfinished(at int) bool {
	rest := s.b[at:]
	if zeros(rest) {
		return true
	}
	for i := recordAlign; i < len(rest); i += recordAlign {
		var h recordHeader
		if bytes.HasPrefix(rest[i:], recordMagic[:]) && decodeHeader(rest[i:], &h) {
			return false
		}
	}
	end := at + recordHeaderSize
	var h recordHeader
	if decodeHeader(rest, &h) {
		if h.Number != s.next || h.Size > uint64(len(s.b)) || int(h.Length) > len(rest)-recordHeaderSize {
			return false
		}
		end += int(h.Length)
	}
	return s.lacksSector(at, end)
}

// lacksSector reports whether the bytes from one offset to another are zeros in
// any of the sectors that they are in.
func (s *segmentReader) lacksSector(from, to int) bool {
	for from < to {
		end := min(from/sectorSize*sectorSize+sectorSize, to)
		if zeros(s.b[from:end]) {
			return true
		}
		from = end
	}
	return false
}

var zeroBlock [4096]byte

func zeros(b []byte) bool {
	for len(b) > len(zeroBlock) {
		if !bytes.Equal(b[:len(zeroBlock)], zeroBlock[:]) {
			return false
		}
		b = b[len(zeroBlock):]
	}
	return bytes.Equal(b, zeroBlock[:len(b)])
}
