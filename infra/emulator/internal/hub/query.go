package hub

import (
	"encoding/base64"
	"encoding/json"
	"strconv"
	"strings"
)

// maxQueryPage is the largest page of a query (IoT Hub docs: "IoT Hub query
// language").
const maxQueryPage = 100

// Query is a query of the registry.
type Query struct {
	// Text is SELECT [TOP n] * FROM devices, the one query that there is so far.
	Text string
	// PageSize is 1 to 100; other values mean 100.
	PageSize int
	// Continuation is that of the page before; empty for the first page.
	Continuation string
}

// QueryPage is one page of the answer.
type QueryPage struct {
	// Type is the value of the header x-ms-item-type.
	Type  string
	Items []Twin
	// Continuation is empty on the last page.
	Continuation string
}

// continuation is where the next page starts.
type continuation struct {
	Behind string `json:"behind"` // device ID
	Served int    `json:"served"` // items on earlier pages
}

func (c continuation) String() string {
	text, err := json.Marshal(c)
	if err != nil {
		return "" // a string and a number: it never fails
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

func parseContinuation(s string) (continuation, error) {
	var c continuation
	if s == "" {
		return c, nil
	}
	text, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err != nil || c.Served < 0 {
		return c, refuse(CodeArgumentInvalid, "continuation token is not one of this hub")
	}
	return c, nil
}

// Query answers a query; CodeArgumentInvalid for one that it can't.
func (h *Hub) Query(q Query) (QueryPage, error) {
	top, err := parseQuery(q.Text)
	if err != nil {
		return QueryPage{}, err
	}
	from, err := parseContinuation(q.Continuation)
	if err != nil {
		return QueryPage{}, err
	}
	size := q.PageSize
	if size < 1 || size > maxQueryPage {
		size = maxQueryPage
	}
	devices := h.sorted(from.Behind)
	if top >= 0 {
		devices = devices[:min(len(devices), max(0, top-from.Served))]
	}
	page := QueryPage{Type: "twin", Items: []Twin{}}
	for _, d := range devices[:min(size, len(devices))] {
		page.Items = append(page.Items, d.twin())
	}
	if len(devices) > size {
		page.Continuation = continuation{devices[size-1].id, from.Served + size}.String()
	}
	return page, nil
}

// parseQuery returns the n of TOP n, or -1 without it.
func parseQuery(text string) (int, error) {
	words := strings.Fields(strings.ReplaceAll(text, "*", " * "))
	top := -1
	if len(words) == 6 && strings.EqualFold(words[1], "top") {
		n, err := strconv.Atoi(words[2])
		if err != nil || n < 1 {
			return 0, refuse(CodeArgumentInvalid, "TOP %q is not a positive number", words[2])
		}
		top = n
		words = append(words[:1], words[3:]...)
	}
	if !strings.EqualFold(strings.Join(words, " "), "SELECT * FROM devices") {
		return 0, refuse(CodeArgumentInvalid, "the emulator answers SELECT [TOP n] * FROM devices only, without a WHERE clause")
	}
	return top, nil
}

// Twin is a device twin as the service side sees it.
type Twin struct {
	DeviceID                  string          `json:"deviceId"`
	ETag                      string          `json:"etag"`
	DeviceETag                string          `json:"deviceEtag"`
	Status                    Status          `json:"status"`
	StatusReason              *string         `json:"statusReason,omitempty"`
	StatusUpdateTime          Time            `json:"statusUpdateTime"`
	ConnectionState           ConnectionState `json:"connectionState"`
	LastActivityTime          Time            `json:"lastActivityTime"`
	CloudToDeviceMessageCount int             `json:"cloudToDeviceMessageCount"`
	AuthenticationType        string          `json:"authenticationType"`
	X509Thumbprint            X509Thumbprint  `json:"x509Thumbprint"`
	Version                   int64           `json:"version"`
	Tags                      json.RawMessage `json:"tags"`
	Properties                TwinProperties  `json:"properties"`
	Capabilities              Capabilities    `json:"capabilities"`
	DeviceScope               string          `json:"deviceScope,omitempty"`
}

// TwinProperties are the two halves of a twin.
type TwinProperties struct {
	Desired  json.RawMessage `json:"desired"`
	Reported json.RawMessage `json:"reported"`
}

// A twin that nobody has written yet.
const (
	newTwinETag       = "AAAAAAAAAAE="
	newTwinVersion    = 1
	newTwinProperties = `{"$metadata":{"$lastUpdated":"0001-01-01T00:00:00Z"},"$version":1}`
)

// GetTwin returns the twin of a device, or CodeDeviceNotFound.
func (h *Hub) GetTwin(deviceID string) (Twin, error) {
	d, err := h.find(deviceID)
	if err != nil {
		return Twin{}, err
	}
	return d.twin(), nil
}

func (d *device) twin() Twin {
	id := d.snapshot()
	return Twin{
		DeviceID:                  id.DeviceID,
		ETag:                      newTwinETag,
		DeviceETag:                id.ETag,
		Status:                    id.Status,
		StatusReason:              id.StatusReason,
		StatusUpdateTime:          id.StatusUpdatedTime,
		ConnectionState:           id.ConnectionState,
		LastActivityTime:          id.LastActivityTime,
		CloudToDeviceMessageCount: id.CloudToDeviceMessageCount,
		AuthenticationType:        id.Authentication.Type,
		X509Thumbprint:            id.Authentication.X509Thumbprint,
		Version:                   newTwinVersion,
		Tags:                      json.RawMessage(`{}`),
		Properties:                TwinProperties{json.RawMessage(newTwinProperties), json.RawMessage(newTwinProperties)},
		Capabilities:              id.Capabilities,
		DeviceScope:               id.DeviceScope,
	}
}
