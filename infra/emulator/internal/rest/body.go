package rest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// readBody reads a body of at most limit bytes.
func readBody(r request, limit int) ([]byte, error) {
	if r.ContentLength > int64(limit) {
		return nil, tooLarge(limit)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, int64(limit)+1))
	switch {
	case err != nil:
		return nil, hub.Errorf(hub.CodeArgumentInvalid, "the request ends before its body does")
	case len(body) > limit:
		return nil, tooLarge(limit)
	}
	// From here on the server reads to learn that the client has gone: the end
	// of a deadline would look like that.
	_ = r.control.SetReadDeadline(time.Time{})
	return body, nil
}

func tooLarge(limit int) error {
	return hub.Errorf(hub.CodeMessageTooLarge, "the body has more than %d bytes", limit)
}

// readJSON decodes a body into v. Fields that v doesn't have are ignored: SDKs
// send back whatever they once received.
func readJSON(r request, limit int, v any) error {
	body, err := readBody(r, limit)
	if err != nil {
		return err
	}
	err = json.Unmarshal(body, v)
	var wrongType *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrongType):
		part := "the body"
		if wrongType.Field != "" {
			part = fmt.Sprintf("field %q of the body", wrongType.Field)
		}
		return hub.Errorf(hub.CodeFormatError, "%s can't be a %s", part, wrongType.Value)
	case err != nil:
		return hub.Errorf(hub.CodeFormatError, "the body is not JSON")
	}
	return nil
}
