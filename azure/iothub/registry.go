package iothub

import (
	"context"
	"errors"
	"iter"
	"net/http"
	"net/url"
	"strconv"

	"github.com/hubjobs/hubjobs/azure/credential"
	"github.com/hubjobs/hubjobs/job"
)

// EnsureDevice makes sure that a device identity with a generated symmetric key exists. created is false when there was
// one already, also when an earlier attempt of the same call made it and its answer was lost.
func (c *Client) EnsureDevice(ctx context.Context, deviceID string) (created bool, err error) {
	if err := job.ValidateDeviceID(deviceID); err != nil {
		return false, err
	}
	ctx, cancel := c.withDeadline(ctx)
	defer cancel()
	_, err = c.do(ctx, call{
		op: "create device " + deviceID, method: http.MethodPut, path: devicePath(deviceID),
		body: map[string]any{
			"deviceId": deviceID, "status": "enabled", "authentication": map[string]string{"type": "sas"},
		},
	})
	if errors.Is(err, job.ErrExists) {
		return false, nil
	}
	return err == nil, err
}

// DeleteDevice makes sure that a device identity doesn't exist. existed is false when there was none.
func (c *Client) DeleteDevice(ctx context.Context, deviceID string) (existed bool, err error) {
	if err := job.ValidateDeviceID(deviceID); err != nil {
		return false, err
	}
	ctx, cancel := c.withDeadline(ctx)
	defer cancel()
	_, err = c.do(ctx, call{
		op: "delete device " + deviceID, method: http.MethodDelete, path: devicePath(deviceID),
		header: map[string]string{"If-Match": "*"},
	})
	if errors.Is(err, job.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// GetDevice returns a device identity. The error matches job.ErrNotFound when there is none.
func (c *Client) GetDevice(ctx context.Context, deviceID string) (Device, error) {
	d, err := c.getDevice(ctx, deviceID)
	if err != nil {
		return Device{}, err
	}
	return d.device(), nil
}

// DeviceConnectionString returns the connection string of an existing device: a secret. The error matches
// job.ErrNotFound when there is no such device, job.ErrInvalid when it has no symmetric key.
func (c *Client) DeviceConnectionString(ctx context.Context, deviceID string) (string, error) {
	d, err := c.getDevice(ctx, deviceID)
	if err != nil {
		return "", err
	}
	key := d.Authentication.SymmetricKey.PrimaryKey
	if key == "" {
		return "", invalid("connection string of device "+deviceID, "the device has no symmetric key; it authenticates with a certificate")
	}
	return credential.DeviceConnectionString(c.host, deviceID, key), nil
}

func (c *Client) getDevice(ctx context.Context, deviceID string) (deviceJSON, error) {
	if err := job.ValidateDeviceID(deviceID); err != nil {
		return deviceJSON{}, err
	}
	ctx, cancel := c.withDeadline(ctx)
	defer cancel()
	var d deviceJSON
	_, err := c.do(ctx, call{op: "get device " + deviceID, method: http.MethodGet, path: devicePath(deviceID), result: &d})
	return d, err
}

func devicePath(deviceID string) string { return "/devices/" + url.PathEscape(deviceID) }

// pageSize is the most that a hub returns at once (IoT Hub docs, "IoT Hub query language").
const pageSize = 100

// Devices lists all device identities, one page of the query at a time. After an error it ends.
func (c *Client) Devices(ctx context.Context) iter.Seq2[Device, error] {
	return func(yield func(Device, error) bool) {
		for continuation := ""; ; {
			page, next, err := c.queryDevices(ctx, continuation)
			if err != nil {
				yield(Device{}, err)
				return
			}
			for _, d := range page {
				if !yield(d.device(), nil) {
					return
				}
			}
			if next == "" {
				return
			}
			continuation = next
		}
	}
}

func (c *Client) queryDevices(ctx context.Context, continuation string) (page []deviceJSON, next string, err error) {
	ctx, cancel := c.withDeadline(ctx)
	defer cancel()
	header := map[string]string{"x-ms-max-item-count": strconv.Itoa(pageSize)}
	if continuation != "" {
		header["x-ms-continuation"] = continuation
	}
	answer, err := c.do(ctx, call{
		op: "list devices", method: http.MethodPost, path: "/devices/query", header: header,
		body: map[string]string{"query": "SELECT * FROM devices"}, result: &page,
	})
	if err != nil {
		return nil, "", err
	}
	return page, answer.Get("x-ms-continuation"), nil
}

// Statistics counts device identities.
type Statistics struct {
	Total     int
	Enabled   int
	Disabled  int
	Connected int
}

// Statistics returns how many device identities there are, and how many of them are connected.
func (c *Client) Statistics(ctx context.Context) (Statistics, error) {
	ctx, cancel := c.withDeadline(ctx)
	defer cancel()
	var registry struct {
		Total    int `json:"totalDeviceCount"`
		Enabled  int `json:"enabledDeviceCount"`
		Disabled int `json:"disabledDeviceCount"`
	}
	if _, err := c.do(ctx, call{
		op: "count devices", method: http.MethodGet, path: "/statistics/devices", result: &registry,
	}); err != nil {
		return Statistics{}, err
	}
	var service struct {
		Connected int `json:"connectedDeviceCount"`
	}
	if _, err := c.do(ctx, call{
		op: "count connected devices", method: http.MethodGet, path: "/statistics/service", result: &service,
	}); err != nil {
		return Statistics{}, err
	}
	return Statistics{registry.Total, registry.Enabled, registry.Disabled, service.Connected}, nil
}
