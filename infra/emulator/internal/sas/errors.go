package sas

import "errors"

// Reasons why a token is refused; match them with errors.Is. Every other error
// that Verify returns comes from the Keyring and says nothing about the token.
var (
	// ErrMalformed means that the text is no shared access signature.
	ErrMalformed = errors.New("malformed shared access signature")
	// ErrExpired means that the token's life is over: make a new one, and
	// check the clocks of both machines.
	ErrExpired = errors.New("shared access signature has expired")
	// ErrScope means that the token is good but for another resource.
	ErrScope = errors.New("shared access signature is for another resource")
	// ErrSignature means that neither of the two keys signed the token.
	ErrSignature = errors.New("shared access signature is not signed with this key")
	// ErrUnknownPolicy means that skn names no shared access policy.
	ErrUnknownPolicy = errors.New("no such shared access policy")
	// ErrUnknownDevice means that the identity, of a device or of a module,
	// isn't in the registry.
	ErrUnknownDevice = errors.New("no such device identity")
	// ErrDeviceDisabled means that the device is there but disabled.
	ErrDeviceDisabled = errors.New("device identity is disabled")
)

// Refused reports whether err says that the token was judged and refused, as
// opposed to a failure to look up its key.
func Refused(err error) bool {
	for _, reason := range []error{
		ErrMalformed, ErrExpired, ErrScope, ErrSignature,
		ErrUnknownPolicy, ErrUnknownDevice, ErrDeviceDisabled,
	} {
		if errors.Is(err, reason) {
			return true
		}
	}
	return false
}
