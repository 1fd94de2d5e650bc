package credential

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/amenzhinsky/iothub/common"

	"github.com/hubjobs/hubjobs/job"
)

// Names in connection strings (IoT Hub docs, "Control access to IoT Hub with shared access signatures").
const (
	nameHost      = "HostName"
	nameDevice    = "DeviceId"
	nameModule    = "ModuleId"
	nameGateway   = "GatewayHostName"
	namePolicy    = "SharedAccessKeyName"
	nameSharedKey = "SharedAccessKey"
)

// Hub is a hub's service connection string, taken apart.
type Hub struct {
	HostName string
	Policy   string // the shared access policy's name
	key      string
}

// ParseHub reads "HostName=...;SharedAccessKeyName=...;SharedAccessKey=...". The error matches job.ErrInvalid and never
// shows the key.
func ParseHub(connectionString string) (Hub, error) {
	const op = "read the hub's connection string"
	m, err := parse(op, connectionString, nameHost, namePolicy, nameSharedKey)
	if err != nil {
		return Hub{}, err
	}
	return Hub{HostName: m[nameHost], Policy: m[namePolicy], key: m[nameSharedKey]}, nil
}

// Token returns a shared access signature for the whole hub.
func (h Hub) Token(expiry time.Time) (string, error) {
	return sign(h.HostName, h.Policy, h.key, expiry)
}

// String names the hub and the policy, never the key.
func (h Hub) String() string { return h.Policy + "@" + h.HostName }

// Device is a device's connection string, taken apart.
type Device struct {
	HostName string
	DeviceID string
	Gateway  string // host, or host:port, to connect to instead of the hub; usually empty
	key      string
}

// ParseDevice reads "HostName=...;DeviceId=...;SharedAccessKey=...[;GatewayHostName=...]". The error matches
// job.ErrInvalid and never shows the key.
func ParseDevice(connectionString string) (Device, error) {
	const op = "read the device's connection string"
	m, err := parse(op, connectionString, nameHost, nameDevice, nameSharedKey)
	if err != nil {
		return Device{}, err
	}
	if m[nameModule] != "" {
		return Device{}, invalid(op, errors.New("it is a module's; modules don't receive cloud-to-device messages"))
	}
	if err := job.ValidateDeviceID(m[nameDevice]); err != nil {
		return Device{}, invalid(op, err)
	}
	return Device{HostName: m[nameHost], DeviceID: m[nameDevice], Gateway: m[nameGateway], key: m[nameSharedKey]}, nil
}

// DeviceConnectionString joins what ParseDevice takes apart.
func DeviceConnectionString(hostName, deviceID, key string) string {
	return nameHost + "=" + hostName + ";" + nameDevice + "=" + deviceID + ";" + nameSharedKey + "=" + key
}

// Token returns a shared access signature for this device.
func (d Device) Token(expiry time.Time) (string, error) {
	return sign(d.HostName+"/devices/"+d.DeviceID, "", d.key, expiry)
}

// String names the device and the hub, never the key.
func (d Device) String() string { return d.DeviceID + "@" + d.HostName }

func parse(op, connectionString string, required ...string) (map[string]string, error) {
	m, err := common.ParseConnectionString(strings.TrimSpace(connectionString), required...)
	if err != nil {
		return nil, invalid(op, err)
	}
	if strings.ContainsAny(m[nameHost], "/@ ") {
		return nil, invalid(op, fmt.Errorf("%s is not a host name", nameHost))
	}
	if _, err := base64.StdEncoding.DecodeString(m[nameSharedKey]); err != nil {
		return nil, invalid(op, fmt.Errorf("%s is not base64", nameSharedKey))
	}
	return m, nil
}

func sign(resource, policy, key string, expiry time.Time) (string, error) {
	sas, err := common.NewSharedAccessSignature(resource, policy, key, expiry)
	if err != nil {
		return "", invalid("sign for "+resource, errors.New("the key is not base64"))
	}
	return sas.String(), nil
}

func invalid(op string, err error) error {
	return &job.Error{Op: op, Kind: job.ErrInvalid, Err: err}
}
