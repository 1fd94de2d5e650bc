package mqtt

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"
)

// property is one entry of a property bag: the part of a topic that carries a
// message's properties.
type property struct {
	key, value string
	// null is set when the key stands without an equals sign (IoT Hub docs:
	// "Communicate with an IoT hub using the MQTT protocol").
	null bool
}

// parseBag decodes key=value pairs joined by &, each percent-encoded. A leading
// question mark is allowed. A plus sign stays one: the SDKs write a space as
// %20.
func parseBag(s string) ([]property, error) {
	s = strings.TrimPrefix(s, "?")
	if s == "" {
		return nil, nil
	}
	bag := make([]property, 0, strings.Count(s, "&")+1)
	for pair := range strings.SplitSeq(s, "&") {
		if pair == "" {
			continue
		}
		p, err := parseProperty(pair)
		if err != nil {
			return nil, err
		}
		bag = append(bag, p)
	}
	return bag, nil
}

func parseProperty(pair string) (property, error) {
	key, value, hasValue := strings.Cut(pair, "=")
	if key == "" {
		return property{}, errors.New("property without a name")
	}
	k, known := encodedKeys[key]
	if !known {
		var err error
		if k, err = url.PathUnescape(key); err != nil {
			return property{}, fmt.Errorf("name of a property: %w", err)
		}
	}
	v, err := url.PathUnescape(value)
	if err != nil {
		return property{}, fmt.Errorf("property %q: %w", k, err)
	}
	if !utf8.ValidString(k) || !utf8.ValidString(v) {
		return property{}, errors.New("property that is not UTF-8")
	}
	return property{key: k, value: v, null: !hasValue}, nil
}

// encodedKeys spare the decoding of the names that nearly all messages have, as
// the SDKs encode them.
var encodedKeys = map[string]string{
	"%24.mid": keyMessageID,
	"%24.cid": keyCorrelationID,
	"%24.uid": keyUserID,
	"%24.to":  keyTo,
	"%24.ct":  keyContentType,
	"%24.ce":  keyContentEncoding,
}

// formatBag encodes properties for a delivery topic. Every byte but the
// unreserved ones of RFC 3986 §2.3 is percent-encoded, for the sake of two
// parsers: azure-iot-device-mqtt splits the topic on slashes before it decodes,
// and amenzhinsky/iothub takes a plus sign for a space and a raw $ or ; amiss.
func formatBag(bag []property) string {
	var b strings.Builder
	for i, p := range bag {
		if i > 0 {
			b.WriteByte('&')
		}
		escape(&b, p.key)
		if p.null {
			continue
		}
		b.WriteByte('=')
		escape(&b, p.value)
	}
	return b.String()
}

func escape(b *strings.Builder, s string) {
	const digits = "0123456789ABCDEF"
	for i := range len(s) {
		c := s[i]
		if isUnreserved(c) {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(digits[c>>4])
		b.WriteByte(digits[c&0xf])
	}
}

func isUnreserved(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return c == '-' || c == '.' || c == '_' || c == '~'
}
