package job

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Role is the part that a device plays in a job: the word before "::" in its device ID.
type Role string

// The two roles of a pair.
const (
	RoleScheduler Role = "device-scheduler"
	RoleSolver    Role = "device-solver"
)

// Short returns the role's word in message IDs: "scheduler" or "solver".
func (r Role) Short() string { return strings.TrimPrefix(string(r), "device-") }

const pairSeparator = "::"

// NewID returns "job-<user>-<UTC yyyy-MM-dd-HH-mm-ss>-<random>". Characters of user that a job ID can't hold are left
// out; random should be a few random letters or digits.
func NewID(user string, at time.Time, random string) string {
	keep := func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '_':
			return r
		case r >= 'A' && r <= 'Z':
			return r + ('a' - 'A')
		}
		return -1
	}
	user = strings.Map(keep, user)
	if user == "" {
		user = "user"
	}
	if len(user) > 32 {
		user = user[:32]
	}
	return fmt.Sprintf("job-%s-%s-%s", user, at.UTC().Format("2006-01-02-15-04-05"), random)
}

// ValidateID reports why id can't be a job ID. It must be usable inside device IDs, message IDs and workflow IDs.
func ValidateID(id string) error {
	if id == "" {
		return invalid("the job ID is empty")
	}
	if len(id) > MaxIDLength {
		return invalid("the job ID is %d characters long, the limit is %d", len(id), MaxIDLength)
	}
	if strings.Contains(id, pairSeparator) {
		return invalid("the job ID %q contains %q, which separates a device's role from its job", id, pairSeparator)
	}
	return validateCharacters("job ID", id)
}

// ValidateDeviceID reports why id can't be the ID of a device identity (IoT Hub identity registry: up to 128
// characters, case-sensitive, ASCII letters and digits plus - : . + % _ # * ? ! ( ) , = @ ; $ ').
func ValidateDeviceID(id string) error {
	if id == "" {
		return invalid("the device ID is empty")
	}
	if len(id) > MaxDeviceIDLength {
		return invalid("the device ID is %d characters long, the limit is %d", len(id), MaxDeviceIDLength)
	}
	return validateCharacters("device ID", id)
}

func validateCharacters(what, id string) error {
	for _, r := range id {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && !strings.ContainsRune("-:.+%_#*?!(),=@;$'", r) {
			return invalid("the %s %q contains %q: use letters, digits and - . _ and the like", what, id, r)
		}
	}
	return nil
}

// DeviceID returns the device ID of role in the pair: "device-solver::job-1".
func DeviceID(role Role, pair string) string { return string(role) + pairSeparator + pair }

// ParseDeviceID splits a device ID at its first "::" into role and pair; ok is false when there is none.
func ParseDeviceID(id string) (role Role, pair string, ok bool) {
	before, after, ok := strings.Cut(id, pairSeparator)
	if !ok || before == "" || after == "" {
		return "", "", false
	}
	return Role(before), after, true
}

// Counterpart returns the other device of the pair; ok is false when id names neither a scheduler nor a solver.
func Counterpart(id string) (string, bool) {
	role, pair, ok := ParseDeviceID(id)
	switch {
	case ok && role == RoleScheduler:
		return DeviceID(RoleSolver, pair), true
	case ok && role == RoleSolver:
		return DeviceID(RoleScheduler, pair), true
	}
	return "", false
}

// MessageID returns the ID of the message number sequence (1, 2, ...) that role sends in a job. A message keeps its ID
// over every hop and every repetition, so that a repeat is recognised.
func MessageID(jobID string, role Role, sequence int) string {
	return jobID + "." + role.Short() + "." + strconv.Itoa(sequence)
}

// ReceiptID returns the ID of the receipt number n (1, 2, ...) that role sends in a job. Receipts are counted apart:
// they may overtake updates, and arriving twice does no harm.
func ReceiptID(jobID string, role Role, n int) string {
	return jobID + "." + role.Short() + ".receipt-" + strconv.Itoa(n)
}
