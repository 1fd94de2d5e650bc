package sas_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/amenzhinsky/iothub/common"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
)

const (
	host   = "hub.azure-devices.net"
	device = "device-solver::job-1"
	// Keys of the vectors below, which were made with Python's hmac module.
	deviceKey    = "ZGV2aWNlLWtleS0wMTIzNDU2Nzg5YWJjZGVm"
	moduleKey    = "bW9kdWxlLWtleS0wMTIzNDU2Nzg5YWJjZGVm"
	policyKey    = "cG9saWN5LWtleS0wMTIzNDU2Nzg5YWJjZGVm"
	otherKey     = "b3RoZXIta2V5LTAxMjM0NTY3ODlhYmNkZWY="
	namespaceKey = "SAS_KEY_VALUE"
	expiry       = 1767229200 // 2026-01-01T01:00:00Z
)

func clock() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

var errStore = errors.New("store is closed")

// keyring knows one policy and a few devices.
type keyring struct{}

func (keyring) Policy(name string) (sas.Policy, error) {
	switch name {
	case "iothubowner":
		return sas.Policy{Keys: sas.Keys{Primary: policyKey, Secondary: otherKey}, Permissions: sas.RegistryRead | sas.ServiceConnect}, nil
	case "RootManageSharedAccessKey":
		return sas.Policy{Keys: sas.Keys{Primary: namespaceKey}, Permissions: sas.Send | sas.Listen | sas.Manage}, nil
	}
	return sas.Policy{}, fmt.Errorf("policy %q: %w", name, sas.ErrUnknownPolicy)
}

func (keyring) Device(id string) (sas.Device, error) {
	keys := sas.Keys{Primary: deviceKey, Secondary: otherKey}
	switch id {
	case device, "a%3Ab", "a:b", "plus+id", "odd!'()*@;$=,id":
		return sas.Device{Keys: keys, Enabled: true}, nil
	case "off":
		return sas.Device{Keys: keys}, nil
	case "keyless":
		return sas.Device{Enabled: true}, nil
	case "broken":
		return sas.Device{Keys: sas.Keys{Primary: "not base64"}, Enabled: true}, nil
	case "unreachable":
		return sas.Device{}, errStore
	}
	return sas.Device{}, fmt.Errorf("device %q: %w", id, sas.ErrUnknownDevice)
}

// Module knows the same modules on every device.
func (k keyring) Module(deviceID, moduleID string) (sas.Device, error) {
	device, err := k.Device(deviceID)
	switch {
	case err != nil:
		return sas.Device{}, err
	case moduleID == "m" || moduleID == "a:m" || moduleID == "$edgeAgent":
		return sas.Device{Keys: sas.Keys{Primary: moduleKey, Secondary: otherKey}, Enabled: device.Enabled}, nil
	case moduleID == "keyless":
		return sas.Device{Enabled: true}, nil
	}
	return sas.Device{}, fmt.Errorf("module %q: %w", moduleID, sas.ErrUnknownDevice)
}

func verifier(mode sas.KeyMode) *sas.Verifier {
	return &sas.Verifier{Hosts: []string{host, "localhost"}, Mode: mode, Keys: keyring{}, Now: clock}
}

// sign makes a token over a resource that is already encoded.
func sign(mode sas.KeyMode, sr, key, policy string) string {
	secret := []byte(key)
	if mode == sas.HubKeys {
		secret, _ = base64.StdEncoding.DecodeString(key)
	}
	mac := hmac.New(sha256.New, secret)
	fmt.Fprintf(mac, "%s\n%d", sr, expiry)
	sig := url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	token := fmt.Sprintf("SharedAccessSignature sr=%s&sig=%s&se=%d", sr, sig, expiry)
	if policy != "" {
		token += "&skn=" + policy
	}
	return token
}

func hubToken(sr, key, policy string) string { return sign(sas.HubKeys, sr, key, policy) }

// TestVectors pins tokens byte for byte as each client writes them.
func TestVectors(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		mode     sas.KeyMode
		token    string
		asked    string
		resource string
		perm     sas.Permission
	}{
		"azure-iot-device (Node): resource encoded once": {
			token:    "SharedAccessSignature sr=hub.azure-devices.net%2Fdevices%2Fdevice-solver%3A%3Ajob-1&sig=vRQwsjD9SafiPag%2BkgvLhVELVop6KoKxVKI3AkMneZQ%3D&se=1767229200",
			asked:    host + "/devices/" + device,
			resource: host + "/devices/" + device,
			perm:     sas.DeviceConnect,
		},
		"azure-iothub (Node): host not encoded, skn before se": {
			token:    "SharedAccessSignature sr=hub.azure-devices.net&sig=5xnVXqVX08Qbon2eTIxKz4kibqktj0BSFpj1y9cDHu8%3D&skn=iothubowner&se=1767229200",
			asked:    host + "/twins/" + device + "/methods",
			resource: host,
			perm:     sas.RegistryRead | sas.ServiceConnect,
		},
		"azure-iot-sdk-csharp: ID encoded twice, lower-case digits": {
			token:    "SharedAccessSignature sr=hub.azure-devices.net%2fdevices%2fdevice-solver%253a%253ajob-1&sig=vZDGZnn4kWuQgnxMJGtbpRi00gLXSZy4zrXoQZvI5I8%3D&se=1767229200",
			asked:    host + "/devices/" + device,
			resource: host + "/devices/" + device,
			perm:     sas.DeviceConnect,
		},
		"azure-iot-sdk-csharp on CBS: the token alone names the device": {
			token:    "SharedAccessSignature sr=hub.azure-devices.net%2fdevices%2fdevice-solver%253a%253ajob-1&sig=vZDGZnn4kWuQgnxMJGtbpRi00gLXSZy4zrXoQZvI5I8%3D&se=1767229200",
			resource: host + "/devices/" + device,
			perm:     sas.DeviceConnect,
		},
		"azservicebus: lower-cased audience with scheme and port": {
			mode:     sas.NamespaceKeys,
			token:    "SharedAccessSignature sr=amqp%3a%2f%2flocalhost%3a5672%2fdevice-messages&sig=HW%2F83JQBLffMjZ8Ldtj7YwI%2BRTCB166vKa0yL%2F6vWKg%3D&se=1767229200&skn=RootManageSharedAccessKey",
			asked:    "amqp://localhost:5672/Device-Messages/$management",
			resource: "localhost/device-messages",
			perm:     sas.Send | sas.Listen | sas.Manage,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			claims, err := verifier(tt.mode).Verify(tt.token, tt.asked)
			if err != nil {
				t.Fatal(err)
			}
			if claims.Resource() != tt.resource || claims.Permissions != tt.perm {
				t.Errorf("claims reach %q with %v, want %q with %v", claims.Resource(), claims.Permissions, tt.resource, tt.perm)
			}
			if want := time.Unix(expiry, 0); !claims.Expires.Equal(want) {
				t.Errorf("expires %v, want %v", claims.Expires, want)
			}
		})
	}
}

// TestForeignSigner takes tokens of amenzhinsky/iothub as its transports make
// them: iotdevice signs the host name or host/{id} with the device's key,
// iotservice signs the host name with a policy's key.
func TestForeignSigner(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ resource, policy, key, asked string }{
		"iotdevice MQTT": {host, "", deviceKey, host + "/devices/" + device},
		"iotdevice HTTP": {host + "/" + device, "", deviceKey, host + "/devices/" + device + "/modules"},
		"iotservice":     {host, "iothubowner", policyKey, host + "/devices/" + device},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			token, err := common.NewSharedAccessSignature(tt.resource, tt.policy, tt.key, time.Unix(expiry, 0))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := verifier(sas.HubKeys).Verify(token.String(), tt.asked); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	full := url.QueryEscape(host + "/devices/" + device)
	at := host + "/devices/" + device
	tests := map[string]struct {
		token, asked string
		want         error // nil: accepted
	}{
		"secondary key of a device":       {hubToken(full, otherKey, ""), at, nil},
		"secondary key of a policy":       {hubToken(host, otherKey, "iothubowner"), at, nil},
		"empty skn is a device token":     {hubToken(full, deviceKey, "") + "&skn=", at, nil},
		"host in another case, with port": {hubToken("HUB.Azure-Devices.NET%3A8883%2Fdevices%2Fplus%2Bid", deviceKey, ""), host + "/devices/plus+id", nil},
		"raw plus sign in an ID":          {hubToken(host+"/devices/plus+id", deviceKey, ""), host + "/devices/plus+id", nil},
		"all odd characters":              {hubToken(url.QueryEscape(host+"/devices/odd!'()*@;$=,id"), deviceKey, ""), host + "/devices/odd!'()*@;$=,id", nil},
		"second configured host":          {hubToken("localhost", deviceKey, ""), "localhost/devices/" + device, nil},
		"policy scoped to a device":       {hubToken(full, policyKey, "iothubowner"), at, nil},
		"device asks for its own child":   {hubToken(full, deviceKey, ""), at + "/messages/events", nil},
		"unknown parameters are ignored":  {hubToken(full, deviceKey, "") + "&x=y", at, nil},
		"wrong key":                       {hubToken(full, policyKey, ""), at, sas.ErrSignature},
		"device key under a policy name":  {hubToken(host, deviceKey, "iothubowner"), at, sas.ErrSignature},
		"namespace mode key":              {sign(sas.NamespaceKeys, full, deviceKey, ""), at, sas.ErrSignature},
		"signature over decoded resource": {strings.Replace(hubToken(at, deviceKey, ""), at, full, 1), at, sas.ErrSignature},
		"tampered expiry":                 {strings.Replace(hubToken(full, deviceKey, ""), "se=17", "se=18", 1), at, sas.ErrSignature},
		"unknown policy":                  {hubToken(host, policyKey, "nobody"), at, sas.ErrUnknownPolicy},
		"policy name in another case":     {hubToken(host, policyKey, "IotHubOwner"), at, sas.ErrUnknownPolicy},
		"unknown device":                  {hubToken(host, deviceKey, ""), host + "/devices/ghost", sas.ErrUnknownDevice},
		"device ID in another case":       {hubToken(host, deviceKey, ""), host + "/devices/DEVICE-solver::job-1", sas.ErrUnknownDevice},
		"disabled device":                 {hubToken(host, deviceKey, ""), host + "/devices/off", sas.ErrDeviceDisabled},
		"disabled device, wrong key":      {hubToken(host, policyKey, ""), host + "/devices/off", sas.ErrSignature},
		"device without keys, empty key":  {hubToken(host, "", ""), host + "/devices/keyless", sas.ErrSignature},
		"another host in the token":       {hubToken("evil.example%2Fdevices%2Fx", deviceKey, ""), at, sas.ErrScope},
		"another host in the request":     {hubToken(full, deviceKey, ""), "evil.example/devices/" + device, sas.ErrScope},
		"another device":                  {hubToken(full, deviceKey, ""), host + "/devices/plus+id", sas.ErrScope},
		"prefix of the ID, not a segment": {hubToken(url.QueryEscape(host+"/devices/plus"), deviceKey, ""), host + "/devices/plus+id", sas.ErrScope},
		"device token for the whole hub":  {hubToken(host, deviceKey, ""), host, sas.ErrScope},
		"device token for a twin":         {hubToken(host, deviceKey, ""), host + "/twins/" + device, sas.ErrScope},
		"device key for a module":         {hubToken(url.QueryEscape(at+"/modules/m"), deviceKey, ""), at + "/modules/m", sas.ErrSignature},
		"policy scoped to another device": {hubToken(full, policyKey, "iothubowner"), host + "/devices/plus+id", sas.ErrScope},
		"policy scoped to a device, list": {hubToken(full, policyKey, "iothubowner"), host + "/devices", sas.ErrScope},
		"percent sign in an ID":           {hubToken(url.QueryEscape(host+"/devices/a%3Ab"), deviceKey, ""), host + "/devices/a%3Ab/messages", nil},
		"empty":                           {"", at, sas.ErrMalformed},
		"another scheme":                  {"Bearer abc", at, sas.ErrMalformed},
		"no parameters":                   {"SharedAccessSignature ", at, sas.ErrMalformed},
		"sr missing":                      {"SharedAccessSignature sig=AA&se=1", at, sas.ErrMalformed},
		"sr twice":                        {hubToken(full, deviceKey, "") + "&sr=" + host, at, sas.ErrMalformed},
		"se not a number":                 {"SharedAccessSignature sr=h&sig=" + strings.Repeat("A", 43) + "%3D&se=1e9", at, sas.ErrMalformed},
		"se negative":                     {"SharedAccessSignature sr=h&sig=" + strings.Repeat("A", 43) + "%3D&se=-1", at, sas.ErrMalformed},
		"sig too short":                   {"SharedAccessSignature sr=h&sig=AAAA&se=1", at, sas.ErrMalformed},
		"sig not base64":                  {"SharedAccessSignature sr=h&sig=" + strings.Repeat("%21", 44) + "&se=1", at, sas.ErrMalformed},
		"bad percent-encoding":            {"SharedAccessSignature sr=%zz&sig=AAAA&se=1", at, sas.ErrMalformed},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := verifier(sas.HubKeys).Verify(tt.token, tt.asked)
			if !errors.Is(err, tt.want) {
				t.Fatalf("got error %v, want %v", err, tt.want)
			}
			if tt.want != nil && !sas.Refused(err) {
				t.Errorf("Refused(%v) = false", err)
			}
		})
	}
}

func TestVerifyModule(t *testing.T) {
	t.Parallel()
	at := host + "/devices/" + device
	of := func(module string) string { return at + "/modules/" + module }
	full := url.QueryEscape(of("m"))
	tests := map[string]struct {
		token, asked string
		want         error // nil: accepted
	}{
		"its own key":                      {hubToken(full, moduleKey, ""), of("m"), nil},
		"its secondary key":                {hubToken(full, otherKey, ""), of("m"), nil},
		"what is below it":                 {hubToken(full, moduleKey, ""), of("m") + "/messages/events", nil},
		"what the token names":             {hubToken(full, moduleKey, ""), "", nil},
		"odd characters":                   {hubToken(url.QueryEscape(of("$edgeAgent")), moduleKey, ""), of("$edgeAgent"), nil},
		"IDs encoded twice":                {hubToken(url.QueryEscape(host+"/devices/device-solver%3a%3ajob-1/modules/a%3am"), moduleKey, ""), "", nil},
		"host alone":                       {hubToken(host, moduleKey, ""), of("m"), nil},
		"resource of its device":           {hubToken(url.QueryEscape(at), moduleKey, ""), of("m"), nil},
		"policy":                           {hubToken(host, policyKey, "iothubowner"), of("m"), nil},
		"policy scoped to the device":      {hubToken(url.QueryEscape(at), policyKey, "iothubowner"), of("m"), nil},
		"policy scoped to the module":      {hubToken(full, policyKey, "iothubowner"), of("m"), nil},
		"policy scoped to it, device":      {hubToken(full, policyKey, "iothubowner"), at, sas.ErrScope},
		"key of the device":                {hubToken(full, deviceKey, ""), of("m"), sas.ErrSignature},
		"key of the device, device's own":  {hubToken(url.QueryEscape(at), deviceKey, ""), of("m"), sas.ErrSignature},
		"its key for the device":           {hubToken(url.QueryEscape(at), moduleKey, ""), at, sas.ErrSignature},
		"its token for the device":         {hubToken(full, moduleKey, ""), at, sas.ErrSignature},
		"its token for the modules":        {hubToken(full, moduleKey, ""), at + "/modules", sas.ErrSignature},
		"its token for another module":     {hubToken(full, moduleKey, ""), of("a:m"), sas.ErrScope},
		"its token for a prefix of its ID": {hubToken(url.QueryEscape(of("a")), moduleKey, ""), of("a:m"), sas.ErrScope},
		"its token on another device":      {hubToken(full, moduleKey, ""), host + "/devices/plus+id/modules/m", sas.ErrScope},
		"its token for a twin":             {hubToken(full, moduleKey, ""), host + "/twins/" + device + "/modules/m", sas.ErrScope},
		"unknown module":                   {hubToken(host, moduleKey, ""), of("ghost"), sas.ErrUnknownDevice},
		"unknown device":                   {hubToken(host, moduleKey, ""), host + "/devices/ghost/modules/m", sas.ErrUnknownDevice},
		"disabled device":                  {hubToken(host, moduleKey, ""), host + "/devices/off/modules/m", sas.ErrDeviceDisabled},
		"without keys, empty key":          {hubToken(host, "", ""), of("keyless"), sas.ErrSignature},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			claims, err := verifier(sas.HubKeys).Verify(tt.token, tt.asked)
			if !errors.Is(err, tt.want) {
				t.Fatalf("got error %v, want %v", err, tt.want)
			}
			if tt.want == nil && claims.Policy == "" && (claims.DeviceID != device || claims.ModuleID == "") {
				t.Errorf("claims of %q, %q", claims.DeviceID, claims.ModuleID)
			}
		})
	}
}

// TestForeignModuleSigner takes a token as the module clients of
// amenzhinsky/iothub make them: the IDs are encoded three times, the rest twice.
func TestForeignModuleSigner(t *testing.T) {
	t.Parallel()
	audience := host + "/devices/" + url.QueryEscape(device) + "/modules/" + url.QueryEscape("a:m")
	token, err := common.NewSharedAccessSignature(url.QueryEscape(audience), "", moduleKey, time.Unix(expiry, 0))
	if err != nil {
		t.Fatal(err)
	}
	for _, asked := range []string{host + "/devices/" + device + "/modules/a:m", ""} {
		claims, err := verifier(sas.HubKeys).Verify(token.String(), asked)
		if err != nil || claims.DeviceID != device || claims.ModuleID != "a:m" {
			t.Errorf("asked for %q: claims of %q, %q, error %v", asked, claims.DeviceID, claims.ModuleID, err)
		}
	}
}

// TestDeviceKeyDoesNotCoverModules looks at claims that outlive one request.
func TestDeviceKeyDoesNotCoverModules(t *testing.T) {
	t.Parallel()
	at := host + "/devices/" + device
	claims := func(resource, key, policy string) sas.Claims {
		c, err := verifier(sas.HubKeys).Verify(hubToken(url.QueryEscape(resource), key, policy), "")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	ofDevice, ofModule, ofPolicy := claims(at, deviceKey, ""), claims(at+"/modules/m", moduleKey, ""), claims(at, policyKey, "iothubowner")
	for asked, want := range map[string][3]bool{ // device, module, policy
		at:                                  {true, false, true},
		at + "/messages/events":             {true, false, true},
		at + "/modules":                     {true, false, true},
		at + "/modules/m":                   {false, true, true},
		at + "/modules/m/messages/events":   {false, true, true},
		at + "/modules/a:m/messages/events": {false, false, true},
		host:                                {false, false, false},
	} {
		if got := [3]bool{ofDevice.Covers(asked), ofModule.Covers(asked), ofPolicy.Covers(asked)}; got != want {
			t.Errorf("%q: covered by device, module, policy = %v, want %v", asked, got, want)
		}
	}
}

func TestExpiryIsExclusive(t *testing.T) {
	t.Parallel()
	token := hubToken(host, policyKey, "iothubowner")
	for offset, want := range map[time.Duration]error{-time.Second: nil, 0: sas.ErrExpired, time.Second: sas.ErrExpired} {
		v := verifier(sas.HubKeys)
		v.Now = func() time.Time { return time.Unix(expiry, 0).Add(offset) }
		if _, err := v.Verify(token, host); !errors.Is(err, want) {
			t.Errorf("%v from expiry: got %v, want %v", offset, err, want)
		}
	}
}

func TestFarExpiryIsCut(t *testing.T) {
	t.Parallel()
	token := "SharedAccessSignature sr=h&sig=" + strings.Repeat("A", 43) + "%3D&se=9223372036854775807"
	got, err := sas.Parse(token)
	if err != nil {
		t.Fatal(err)
	}
	if got.Expires.Year() != 9999 {
		t.Errorf("expires %v, want the year 9999", got.Expires)
	}
}

// TestLookupFailureIsNoRefusal keeps a failing store apart from a bad token.
func TestLookupFailureIsNoRefusal(t *testing.T) {
	t.Parallel()
	_, err := verifier(sas.HubKeys).Verify(hubToken(host, deviceKey, ""), host+"/devices/unreachable")
	if !errors.Is(err, errStore) || sas.Refused(err) {
		t.Errorf("got %v, Refused = %v", err, sas.Refused(err))
	}
	_, err = verifier(sas.HubKeys).Verify(hubToken(host, deviceKey, ""), host+"/devices/broken")
	if err == nil || sas.Refused(err) {
		t.Errorf("undecodable stored key: got %v, Refused = %v", err, sas.Refused(err))
	}
}

func TestNamespaceNeedsPolicy(t *testing.T) {
	t.Parallel()
	_, err := verifier(sas.NamespaceKeys).Verify(sign(sas.NamespaceKeys, "localhost", deviceKey, ""), "localhost/q")
	if !errors.Is(err, sas.ErrMalformed) {
		t.Errorf("got %v, want %v", err, sas.ErrMalformed)
	}
}

func TestCovers(t *testing.T) {
	t.Parallel()
	claims, err := verifier(sas.HubKeys).Verify(hubToken(url.QueryEscape(host+"/devices/a%3Ab"), deviceKey, ""), "")
	if err != nil {
		t.Fatal(err)
	}
	for asked, want := range map[string]bool{
		"amqps://" + host + ":5671/devices/a%3Ab/messages/events": true,
		"LOCALHOST/devices/a%3Ab":                                 true,
		host + "/devices/a:b":                                     false,
		host + "/devices/a%3ABc":                                  false,
		host + "/devices":                                         false,
		host:                                                      false,
		"evil.example/devices/a%3Ab":                              false,
		"":                                                        false,
	} {
		if got := claims.Covers(asked); got != want {
			t.Errorf("Covers(%q) = %v, want %v", asked, got, want)
		}
	}
	if (sas.Claims{}).Covers(host) {
		t.Error("zero claims cover something")
	}
}

// TestErrorsKeepSecrets looks for any part of the token or key in every error.
func TestErrorsKeepSecrets(t *testing.T) {
	t.Parallel()
	for _, token := range []string{
		hubToken(host, policyKey, ""), hubToken("secretresource", deviceKey, ""),
		"secretresource", "SharedAccessSignature secretresource", "SharedAccessSignature sr=%secretresource&sig=a&se=1",
		"SharedAccessSignature sr=a&sig=secretresource&se=1", "SharedAccessSignature sr=a&sig=a&se=secretresource",
	} {
		_, err := verifier(sas.HubKeys).Verify(token, host+"/devices/"+device)
		if err == nil {
			t.Fatalf("accepted %q", token)
		}
		for _, secret := range []string{"secretresource", "sig=", deviceKey, policyKey} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("error %q contains %q", err, secret)
			}
		}
	}
}

func TestPermissions(t *testing.T) {
	t.Parallel()
	p := sas.RegistryRead | sas.ServiceConnect
	if got, want := p.String(), "RegistryRead, ServiceConnect"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if p.Has(sas.RegistryRead | sas.RegistryWrite) {
		t.Error("has more than it holds")
	}
}

func FuzzVerify(f *testing.F) {
	f.Add(hubToken(host, policyKey, "iothubowner"), host)
	f.Add(hubToken(url.QueryEscape(host+"/devices/"+device), deviceKey, ""), "")
	f.Add(hubToken(url.QueryEscape(host+"/devices/"+device+"/modules/m"), moduleKey, ""), "")
	f.Add("SharedAccessSignature sr=%2f%2f&sig=%3D&se=0&skn", "amqps://[::1]:5671/x")
	f.Fuzz(func(t *testing.T, token, asked string) {
		for _, mode := range []sas.KeyMode{sas.HubKeys, sas.NamespaceKeys} {
			claims, err := verifier(mode).Verify(token, asked)
			if err != nil {
				continue
			}
			if (claims.Policy == "") == (claims.DeviceID == "") || claims.DeviceID == "" && claims.ModuleID != "" {
				t.Errorf("claims name both or neither: %+v", claims)
			}
			if asked != "" && !claims.Covers(asked) {
				t.Errorf("accepted for %q but does not cover it", asked)
			}
		}
	})
}
