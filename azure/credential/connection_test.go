package credential_test

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/azure/credential"
	"github.com/hubjobs/hubjobs/job"
)

const key = "c2VjcmV0LWtleQ==" // "secret-key"

func TestParseHub(t *testing.T) {
	t.Parallel()
	hub, err := credential.ParseHub(" HostName=h.azure-devices.net;SharedAccessKeyName=iothubowner;SharedAccessKey=" + key + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if hub.HostName != "h.azure-devices.net" || hub.Policy != "iothubowner" {
		t.Errorf("got %q and %q", hub.HostName, hub.Policy)
	}
}

func TestParseDevice(t *testing.T) {
	t.Parallel()
	device, err := credential.ParseDevice(credential.DeviceConnectionString("localhost", "device-solver::job-1", key) + ";GatewayHostName=edge:8884")
	if err != nil {
		t.Fatal(err)
	}
	if device.HostName != "localhost" || device.DeviceID != "device-solver::job-1" || device.Gateway != "edge:8884" {
		t.Errorf("got %+v", device.String())
	}
}

func TestRefusedConnectionStringsDontShowTheKey(t *testing.T) {
	t.Parallel()
	const secret = "dG9wLXNlY3JldA==" // stands for what must not be shown
	hub := func(s string) error { _, err := credential.ParseHub(s); return err }
	device := func(s string) error { _, err := credential.ParseDevice(s); return err }
	for name, c := range map[string]struct {
		parse func(string) error
		in    string
	}{
		"empty":                {hub, ""},
		"no pairs":             {hub, secret},
		"no host":              {hub, "SharedAccessKeyName=p;SharedAccessKey=" + secret},
		"host is a URL":        {hub, "HostName=https://h/;SharedAccessKeyName=p;SharedAccessKey=" + secret},
		"no policy":            {hub, "HostName=h;SharedAccessKey=" + secret},
		"key is not base64":    {hub, "HostName=h;SharedAccessKeyName=p;SharedAccessKey=" + secret + "!"},
		"no device":            {device, "HostName=h;SharedAccessKey=" + secret},
		"device ID is invalid": {device, "HostName=h;DeviceId=a b;SharedAccessKey=" + secret},
		"no key":               {device, "HostName=h;DeviceId=d;x509=true;Note=" + secret},
		"module":               {device, "HostName=h;DeviceId=d;ModuleId=m;SharedAccessKey=" + secret},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := c.parse(c.in)
			if !errors.Is(err, job.ErrInvalid) {
				t.Fatalf("got %v, want an error of kind invalid", err)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the key is in the error: %v", err)
			}
		})
	}
}

// The token is the one that the algorithm in the IoT Hub docs, "Control access to IoT Hub with shared access
// signatures", gives for this key, resource and time.
func TestTokens(t *testing.T) {
	t.Parallel()
	expiry := time.Unix(1700000000, 0)
	hub, err := credential.ParseHub("HostName=h.azure-devices.net;SharedAccessKeyName=service;SharedAccessKey=" + key)
	if err != nil {
		t.Fatal(err)
	}
	device, err := credential.ParseDevice(credential.DeviceConnectionString("h.azure-devices.net", "device-solver::job-1", key))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		token func(time.Time) (string, error)
		want  map[string]string
	}{
		"hub": {hub.Token, map[string]string{
			"sr": "h.azure-devices.net", "se": "1700000000", "skn": "service",
			"sig": "85b4y2sd4KBKMf5htLhr46Oi4K8OT+Q+sjux+6uXv/A=",
		}},
		"device": {device.Token, map[string]string{
			"sr": "h.azure-devices.net/devices/device-solver::job-1", "se": "1700000000",
			"sig": "iM8dYXe/WPXtfgllA3rhhe6CT5PbMHAc/+hUAP0rjnI=",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			token, err := c.token(expiry)
			if err != nil {
				t.Fatal(err)
			}
			query, ok := strings.CutPrefix(token, "SharedAccessSignature ")
			if !ok {
				t.Fatalf("got %q", token)
			}
			got, err := url.ParseQuery(query)
			if err != nil {
				t.Fatal(err)
			}
			for k, want := range c.want {
				if got.Get(k) != want {
					t.Errorf("%s: got %q, want %q", k, got.Get(k), want)
				}
			}
			if len(got) != len(c.want) {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestStringsDontShowTheKey(t *testing.T) {
	t.Parallel()
	hub, _ := credential.ParseHub("HostName=h;SharedAccessKeyName=p;SharedAccessKey=" + key)
	device, _ := credential.ParseDevice(credential.DeviceConnectionString("h", "d", key))
	for _, s := range []string{fmt.Sprint(hub), fmt.Sprint(device), fmt.Sprintf("%v %+v", hub, device)} {
		if strings.Contains(s, key) {
			t.Errorf("%q shows the key", s)
		}
	}
}

func FuzzParseDevice(f *testing.F) {
	f.Add("HostName=h;DeviceId=d;SharedAccessKey=" + key)
	f.Add("HostName=;;=;DeviceId")
	f.Fuzz(func(t *testing.T, s string) {
		device, err := credential.ParseDevice(s)
		if err == nil && job.ValidateDeviceID(device.DeviceID) != nil {
			t.Errorf("accepted device ID %q", device.DeviceID)
		}
		if err != nil && !errors.Is(err, job.ErrInvalid) {
			t.Errorf("%v is of no kind", err)
		}
	})
}
