package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
)

// The log has the batches that were acknowledged since the last checkpoint, in
// segments: files that are written from front to back, one batch after the
// other. A batch is acknowledged when it has been synced, and only then is the
// next one written, so only the last can be incomplete.
//
// Segments are made longer ahead of the writing, and what isn't written yet
// reads as zeros. Payloads are masked so that written sectors never do. That is
// how a batch that was cut off by a loss of power, which may have any of its
// sectors and not others, is told from one that was damaged later.
const (
	// segmentSize is when a segment is full and a checkpoint begins. The last
	// batch may go beyond it.
	segmentSize = 8 << 20
	// segmentStep is how much longer a segment is made at a time, and how much
	// of it is kept free for the next batch. A file that was cut off is thereby
	// shorter than its last batch says.
	segmentStep = 1 << 20
	// sectorSize is what a disk writes as a whole or not at all.
	sectorSize = 512
	// recordStart keeps the header in a sector of its own.
	recordStart = sectorSize
	// recordAlign makes the pieces of a record in different sectors long enough
	// to tell zeros that were written from those that weren't.
	recordAlign = 8
	// maxPayload is what the header of a batch can say.
	maxPayload = 1 << 31
	// maxBatch is how many bytes of changes make a batch at once, so that a disk
	// that stalls for long doesn't leave more behind than maxPayload. A change
	// that is larger is a batch by itself.
	maxBatch = 64 << 20
)

// segmentHeader is the beginning of a segment.
type segmentHeader struct {
	Magic  [8]byte
	Number uint64 // of the segment
	First  uint64 // number of its first batch
	Sum    uint32 // CRC-32C of the above
}

// recordHeader comes before the payload of a batch.
type recordHeader struct {
	Magic  [4]byte
	Length uint32 // of the payload; a multiple of recordAlign, never 0
	Number uint64 // of the batch: 1, 2, ...
	Size   uint64 // that the file has at least
	Pay    uint32 // CRC-32C of the payload as it is in the file
	Sum    uint32 // CRC-32C of the above
}

var (
	segmentMagic = [8]byte{'h', 'u', 'b', 'l', 'o', 'g', '0', '1'}
	recordMagic  = [4]byte{'r', 'e', 'c', '1'}

	recordHeaderSize = binary.Size(recordHeader{})
)

const sumSize = 4

// encodeHeader encodes a header whose last field is its checksum.
func encodeHeader(h any) []byte {
	// A header has fields of fixed sizes only, so this never fails.
	b, _ := binary.Append(nil, binary.BigEndian, h)
	body := b[:len(b)-sumSize]
	binary.BigEndian.PutUint32(b[len(body):], crc32.Checksum(body, castagnoli))
	return b
}

// decodeHeader reads a header, and reports whether its checksum is right.
func decodeHeader(b []byte, h any) bool {
	n := binary.Size(h)
	if len(b) < n {
		return false
	}
	body := b[:n-sumSize]
	if binary.BigEndian.Uint32(b[n-sumSize:]) != crc32.Checksum(body, castagnoli) {
		return false
	}
	_, err := binary.Decode(b[:n], binary.BigEndian, h)
	return err == nil
}

// segment is the one that is written to.
type segment struct {
	f      *os.File
	number uint64
	next   uint64 // number of the next batch
	end    int64  // where it goes
	size   int64  // of the file
	buf    []byte // of the batch before, to be used again
}

func segmentName(number uint64) string { return fmt.Sprintf("state-%08d.log", number) }

func segmentPath(dir string, number uint64) string { return filepath.Join(dir, segmentName(number)) }

// unfinishedSuffix ends the name of a segment that is being made.
const unfinishedSuffix = ".tmp"

// createSegment makes a segment under a name of its own and then gives it its
// name, so that a file of that name is always a whole one.
func createSegment(dir string, number, first uint64) (*segment, error) {
	path := segmentPath(dir, number)
	s := &segment{number: number, next: first, end: recordStart}
	if err := s.format(path+unfinishedSuffix, first); err != nil {
		return nil, err
	}
	// It is closed meanwhile, because not all systems rename what is open.
	err := os.Rename(path+unfinishedSuffix, path)
	if err == nil {
		err = syncDir(dir)
	}
	if err == nil {
		s.f, err = os.OpenFile(path, os.O_RDWR, 0)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// format writes a segment without batches.
func (s *segment) format(path string, first uint64) (err error) {
	if s.f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.f.Close()) }()
	if _, err := s.f.WriteAt(encodeHeader(segmentHeader{Magic: segmentMagic, Number: s.number, First: first}), 0); err != nil {
		return err
	}
	return s.grow(0)
}

// grow makes the file long enough for n more bytes and a step beyond.
func (s *segment) grow(n int64) error {
	if s.end+n+segmentStep <= s.size {
		return nil
	}
	size := (s.end+n)/segmentStep*segmentStep + 2*segmentStep
	if err := s.f.Truncate(size); err != nil {
		return err
	}
	s.size = size
	return s.f.Sync()
}

// append writes a batch and makes it durable.
func (s *segment) append(batch []change) error {
	b := append(s.buf[:0], make([]byte, recordHeaderSize)...)
	b = appendBatch(b, batch)
	for (len(b)-recordHeaderSize)%recordAlign != 0 {
		b = append(b, 0)
	}
	payload := b[recordHeaderSize:]
	if len(payload) > maxPayload {
		return fmt.Errorf("a batch has %d bytes of at most %d", len(payload), maxPayload)
	}
	if err := s.grow(int64(len(b))); err != nil {
		return err
	}
	mask(payload, s.next)
	copy(b, encodeHeader(recordHeader{
		Magic:  recordMagic,
		Length: uint32(len(payload)),
		Number: s.next,
		Size:   uint64(s.size),
		Pay:    crc32.Checksum(payload, castagnoli),
	}))
	if _, err := s.f.WriteAt(b, s.end); err != nil {
		return err
	}
	if err := syncData(s.f); err != nil {
		return err
	}
	s.next++
	s.end += int64(len(b))
	if s.buf = b; cap(b) > segmentStep {
		s.buf = nil // after a burst, give the memory back
	}
	return nil
}

func (s *segment) close() error { return s.f.Close() }

// mask hides a payload behind pseudo-random numbers, and shows it again. It is
// no protection: it only keeps zeros from being written as such.
func mask(b []byte, number uint64) {
	x := number
	for ; len(b) >= 8; b = b[8:] {
		x += 0x9e3779b97f4a7c15 // the constants of SplitMix64
		z := (x ^ x>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^z^z>>31)
	}
}

// Kinds of changes in a batch.
const (
	kindPut byte = iota + 1
	kindDelete
	kindDeletePrefix
)

func appendBatch(b []byte, batch []change) []byte {
	n := 0
	for _, c := range batch {
		n += len(c.ops)
	}
	b = binary.AppendUvarint(b, uint64(n))
	for _, c := range batch {
		for _, op := range c.ops {
			b = appendOp(b, op)
		}
	}
	return b
}

func appendOp(b []byte, op Op) []byte {
	kind := kindPut
	switch {
	case op.Prefix:
		kind = kindDeletePrefix
	case op.Value == nil:
		kind = kindDelete
	}
	b = append(b, kind)
	b = binary.AppendUvarint(b, uint64(len(op.Key)))
	b = append(b, op.Key...)
	if kind == kindPut {
		b = binary.AppendUvarint(b, uint64(len(op.Value)))
		b = append(b, op.Value...)
	}
	return b
}

var errBatch = errors.New("a batch can't be read")

// readBatch calls f for each change of a payload.
func readBatch(b []byte, f func(Op)) error {
	n, b, err := readUvarint(b)
	for ; err == nil && n > 0; n-- {
		var op Op
		if op, b, err = readOp(b); err == nil {
			f(op)
		}
	}
	return err
}

func readOp(b []byte) (Op, []byte, error) {
	if len(b) == 0 {
		return Op{}, nil, errBatch
	}
	kind := b[0]
	key, b, err := readBytes(b[1:])
	op := Op{Key: string(key), Prefix: kind == kindDeletePrefix}
	switch {
	case err != nil:
	case kind == kindPut:
		op.Value, b, err = readBytes(b)
	case kind != kindDelete && kind != kindDeletePrefix:
		err = errBatch
	}
	return op, b, err
}

func readBytes(b []byte) (value, rest []byte, err error) {
	n, b, err := readUvarint(b)
	if err != nil || n > uint64(len(b)) {
		return nil, nil, errBatch
	}
	// An empty value is not nil, which would mean none.
	return b[:n:n], b[n:], nil
}

func readUvarint(b []byte) (uint64, []byte, error) {
	n, size := binary.Uvarint(b)
	if size <= 0 {
		return 0, nil, errBatch
	}
	return n, b[size:], nil
}
