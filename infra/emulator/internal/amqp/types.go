package amqp

import (
	"encoding/hex"
	"errors"
)

// ErrMalformed is wrapped by every error about bytes that are not valid AMQP, or
// that use a type which none of the supported clients can read.
var ErrMalformed = errors.New("malformed amqp data")

// Symbol is a name from a constrained domain, such as a capability or an error
// condition (§1.6.21).
type Symbol string

// UUID is a universally unique identifier in network (RFC 4122) byte order
// (§1.6.18).
type UUID [16]byte

// String gives the usual lower-case form, 8-4-4-4-12 digits.
func (u UUID) String() string {
	var b [36]byte
	hex.Encode(b[0:8], u[0:4])
	hex.Encode(b[9:13], u[4:6])
	hex.Encode(b[14:18], u[6:8])
	hex.Encode(b[19:23], u[8:10])
	hex.Encode(b[24:], u[10:16])
	for _, i := range []int{8, 13, 18, 23} {
		b[i] = '-'
	}
	return string(b[:])
}

// Described is a value with a descriptor that says what it stands for (§1.2.2),
// for example a source filter. Composites that this package knows by type are
// not decoded to it.
type Described struct {
	Descriptor any // a uint64 or a Symbol in practice
	Value      any
}

// UbyteArray is an array of ubyte. It has a type of its own because a []byte is
// a binary.
type UbyteArray []uint8

// Constructor codes of the primitive types (§1.6).
const (
	codeDescribed  = 0x00
	codeNull       = 0x40
	codeTrue       = 0x41
	codeFalse      = 0x42
	codeUint0      = 0x43
	codeUlong0     = 0x44
	codeList0      = 0x45
	codeUbyte      = 0x50
	codeByte       = 0x51
	codeSmallUint  = 0x52
	codeSmallUlong = 0x53
	codeSmallInt   = 0x54
	codeSmallLong  = 0x55
	codeBoolean    = 0x56
	codeUshort     = 0x60
	codeShort      = 0x61
	codeUint       = 0x70
	codeInt        = 0x71
	codeFloat      = 0x72
	codeUlong      = 0x80
	codeLong       = 0x81
	codeDouble     = 0x82
	codeTimestamp  = 0x83
	codeUUID       = 0x98
	codeBinary8    = 0xa0
	codeString8    = 0xa1
	codeSymbol8    = 0xa3
	codeBinary32   = 0xb0
	codeString32   = 0xb1
	codeSymbol32   = 0xb3
	codeList8      = 0xc0
	codeMap8       = 0xc1
	codeList32     = 0xd0
	codeMap32      = 0xd1
	codeArray8     = 0xe0
	codeArray32    = 0xf0
)

// Descriptor codes of the composites of parts 2, 3 and 5.
const (
	typeOpen        = 0x10
	typeBegin       = 0x11
	typeAttach      = 0x12
	typeFlow        = 0x13
	typeTransfer    = 0x14
	typeDisposition = 0x15
	typeDetach      = 0x16
	typeEnd         = 0x17
	typeClose       = 0x18

	typeError    = 0x1d
	typeReceived = 0x23
	typeAccepted = 0x24
	typeRejected = 0x25
	typeReleased = 0x26
	typeModified = 0x27
	typeSource   = 0x28
	typeTarget   = 0x29

	typeCoordinator = 0x30

	typeSASLMechanisms = 0x40
	typeSASLInit       = 0x41
	typeSASLChallenge  = 0x42
	typeSASLResponse   = 0x43
	typeSASLOutcome    = 0x44

	typeHeader                = 0x70
	typeDeliveryAnnotations   = 0x71
	typeMessageAnnotations    = 0x72
	typeProperties            = 0x73
	typeApplicationProperties = 0x74
	typeData                  = 0x75
	typeSequence              = 0x76
	typeValue                 = 0x77
	typeFooter                = 0x78
)
