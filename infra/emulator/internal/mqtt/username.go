package mqtt

import (
	"errors"
	"net/url"
	"strings"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// userName is a parsed MQTT user name.
type userName struct {
	host   string
	target hub.Target
	// modelID is the model that the device says it implements (IoT Hub docs:
	// "IoT Plug and Play device developer guide"), empty if it doesn't say.
	modelID string
}

// parseUserName reads {host}/{deviceId}[/{moduleId}][/?{query}]. The query may
// lack its question mark, as amenzhinsky/iothub sends it (iotdevice
// transport/mqtt/mqtt.go), so a third segment that starts with api-version is a
// query and no module. Whether there is one, and what it says beside the model,
// makes no difference to the hub (IoT Hub docs: "Communicate with an IoT hub
// using the MQTT protocol").
func parseUserName(s string) (userName, error) {
	host, rest, ok := strings.Cut(s, "/")
	if !ok || host == "" {
		return userName{}, errors.New("user name is not of the form {host}/{deviceId}/?api-version={version}")
	}
	u := userName{host: host}
	u.target.DeviceID, rest, _ = strings.Cut(rest, "/")
	if u.target.DeviceID == "" {
		return userName{}, errors.New("user name has no device ID after the host")
	}
	if rest != "" && !isUserQuery(rest) {
		u.target.ModuleID, rest, _ = strings.Cut(rest, "/")
	}
	if rest != "" && !isUserQuery(rest) {
		return userName{}, errors.New("user name has more segments than host, device and module")
	}
	u.modelID = modelID(rest)
	return u, nil
}

func isUserQuery(s string) bool {
	return strings.HasPrefix(s, "?") || strings.HasPrefix(s, "api-version=")
}

// modelID finds the model in the query of a user name.
func modelID(query string) string {
	for pair := range strings.SplitSeq(strings.TrimPrefix(query, "?"), "&") {
		if value, ok := strings.CutPrefix(pair, "model-id="); ok {
			// It goes into messages, where text has to be UTF-8.
			if decoded, err := url.QueryUnescape(value); err == nil && isText(decoded) {
				return decoded
			}
		}
	}
	return ""
}

// clientID is what the CONNECT must carry beside the user name.
func (u userName) clientID() string {
	if u.target.ModuleID != "" {
		return u.target.DeviceID + "/" + u.target.ModuleID
	}
	return u.target.DeviceID
}

// resource is what a token must be good for.
func (u userName) resource() string { return u.host + "/" + u.target.Path() }
