package sas

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Scheme is the word a token starts with, followed by one space.
const Scheme = "SharedAccessSignature"

// maxExpiry is the last second that RFC 3339 can show (year 9999). Tokens that
// claim to live longer are cut to it, so that time arithmetic stays defined.
const maxExpiry = 253402300799

// Token is a parsed but not yet verified shared access signature.
type Token struct {
	// Resource is what the token grants access to, percent-decoded.
	Resource string
	// Policy is the shared access policy whose key signed the token; empty
	// for a token signed with a device's or module's own key.
	Policy string
	// Expires is the end of the token's life.
	Expires time.Time

	signature []byte
	signed    string // the text under the signature: raw sr, newline, raw se
}

// Parse takes a token apart. It verifies nothing; all its errors wrap
// ErrMalformed.
func Parse(text string) (Token, error) {
	params, err := parameters(text)
	if err != nil {
		return Token{}, err
	}
	for _, name := range []string{"sr", "sig", "se"} {
		if params[name] == "" {
			return Token{}, fmt.Errorf("%w: parameter %s is missing or empty", ErrMalformed, name)
		}
	}
	t := Token{signed: params["sr"] + "\n" + params["se"]}
	if t.Resource, err = parseTokenResource(params["sr"]); err != nil {
		return Token{}, err
	}
	if t.Policy, err = unescape("skn", params["skn"]); err != nil {
		return Token{}, err
	}
	if t.Expires, err = parseExpiry(params["se"]); err != nil {
		return Token{}, err
	}
	if t.signature, err = parseSignature(params["sig"]); err != nil {
		return Token{}, err
	}
	return t, nil
}

// parameters splits the token into its raw, still encoded values. Names it
// doesn't know are ignored, as the signature covers sr and se alone.
func parameters(text string) (map[string]string, error) {
	rest, ok := strings.CutPrefix(text, Scheme+" ")
	if !ok {
		return nil, fmt.Errorf("%w: it must start with %q and a space", ErrMalformed, Scheme)
	}
	params := make(map[string]string, 4)
	for pair := range strings.SplitSeq(rest, "&") {
		name, value, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, fmt.Errorf("%w: a parameter has no value", ErrMalformed)
		}
		switch name {
		case "sr", "sig", "se", "skn":
		default:
			continue
		}
		if _, twice := params[name]; twice {
			return nil, fmt.Errorf("%w: parameter %s stands there twice", ErrMalformed, name)
		}
		params[name] = value
	}
	return params, nil
}

// parseTokenResource decodes the parameter sr. The module clients of
// amenzhinsky/iothub encode all of it twice (iotdevice/transport/mqtt,
// mqtt_module.go), which shows as slashes that are encoded still.
func parseTokenResource(value string) (string, error) {
	resource, err := unescape("sr", value)
	if err == nil && !strings.Contains(resource, "/") {
		resource, err = unescape("sr", resource)
	}
	return resource, err
}

// unescape decodes percent-encoding only: a plus sign is a legal character of
// device IDs and of base64, and no client writes a space in a token.
func unescape(name, value string) (string, error) {
	s, err := url.PathUnescape(value)
	if err != nil {
		// The error of net/url quotes the value, so it is not wrapped.
		return "", fmt.Errorf("%w: parameter %s is not percent-encoded", ErrMalformed, name)
	}
	return s, nil
}

func parseExpiry(value string) (time.Time, error) {
	seconds, err := strconv.ParseUint(value, 10, 63)
	if err != nil {
		return time.Time{}, fmt.Errorf("%w: parameter se is not a number of seconds since 1970", ErrMalformed)
	}
	return time.Unix(int64(min(seconds, maxExpiry)), 0).UTC(), nil
}

func parseSignature(value string) ([]byte, error) {
	decoded, err := unescape("sig", value)
	if err != nil {
		return nil, err
	}
	sig, err := base64.StdEncoding.DecodeString(decoded)
	if err != nil || len(sig) != sha256.Size {
		return nil, fmt.Errorf("%w: parameter sig is not a base64 HMAC-SHA256", ErrMalformed)
	}
	return sig, nil
}

// SignedBy reports whether key, already in the form that the service uses as
// HMAC key, made the token's signature. The comparison takes constant time.
func (t Token) SignedBy(key []byte) bool {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(t.signed))
	return hmac.Equal(mac.Sum(nil), t.signature)
}
