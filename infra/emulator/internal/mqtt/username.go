package mqtt

import (
	"errors"
	"strings"
)

// userName is a parsed MQTT user name.
type userName struct {
	host     string
	deviceID string
	moduleID string // empty for a device
}

// parseUserName reads {host}/{deviceId}[/{moduleId}][/?{query}]. The query may
// lack its question mark, as amenzhinsky/iothub sends it (iotdevice
// transport/mqtt/mqtt.go), so a third segment that starts with api-version is a
// query and no module. What the query says, and whether there is one, makes no
// difference to the hub (IoT Hub docs: "Communicate with an IoT hub using the
// MQTT protocol").
func parseUserName(s string) (userName, error) {
	host, rest, ok := strings.Cut(s, "/")
	if !ok || host == "" {
		return userName{}, errors.New("user name is not of the form {host}/{deviceId}/?api-version={version}")
	}
	u := userName{host: host}
	u.deviceID, rest, _ = strings.Cut(rest, "/")
	if u.deviceID == "" {
		return userName{}, errors.New("user name has no device ID after the host")
	}
	if rest != "" && !isUserQuery(rest) {
		u.moduleID, rest, _ = strings.Cut(rest, "/")
	}
	if rest != "" && !isUserQuery(rest) {
		return userName{}, errors.New("user name has more segments than host, device and module")
	}
	return u, nil
}

func isUserQuery(s string) bool {
	return strings.HasPrefix(s, "?") || strings.HasPrefix(s, "api-version=")
}

// clientID is what the CONNECT must carry beside the user name.
func (u userName) clientID() string {
	if u.moduleID != "" {
		return u.deviceID + "/" + u.moduleID
	}
	return u.deviceID
}
