package conformance_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator"
)

// Where access is documented.
const (
	accessPage      = "IoT Hub docs: Control access to IoT Hub with shared access signatures"
	accessCertPage  = "IoT Hub docs: Authenticate identities with X.509 certificates"
	accessEntraPage = "IoT Hub docs: Control access to IoT Hub by using Microsoft Entra ID"
	accessCBS       = "AMQP Claims-based Security 1.0"
)

var access = area{
	name: "Access",
	emulated: slices.Concat(
		accessOver("Device keys", "the primary key signs a device's tokens", accessPage, accessPrimary),
		accessOver("Device keys", "the secondary key signs them too", accessPage, accessSecondary),
		accessOver("Device keys", "a key that was replaced signs no more", accessPage, accessReplaced),
		accessOver("Device keys", "a key of a module is for the module", accessPage, accessModule),

		accessOver("Policies", "one with DeviceConnect acts for devices", accessPage, accessByPolicy),
		accessOver("Policies", "one without DeviceConnect doesn't", accessPage, accessByOtherPolicy),
		[]behaviour{
			{"Policies", "iothubowner may do everything", accessPage, accessPolicy("iothubowner", "RegistryRead", "RegistryWrite", "ServiceConnect", "DeviceConnect")},
			{"Policies", "service may talk to devices", accessPage, accessPolicy("service", "ServiceConnect")},
			{"Policies", "device may act for devices", accessPage, accessPolicy("device", "DeviceConnect")},
			{"Policies", "registryRead may read the registry", accessPage, accessPolicy("registryRead", "RegistryRead")},
			{"Policies", "registryReadWrite may change the registry", accessPage, accessPolicy("registryReadWrite", "RegistryRead", "RegistryWrite")},
			{"Policies", "an unknown one is refused", accessPage, accessUnknownPolicy},
		},

		accessOver("Token expiry", "an expired token is refused", accessPage, accessExpired),
		[]behaviour{
			{"Token expiry", "an expired token of a policy is refused", accessPage, accessExpiredPolicy},
			{"Token expiry", "an MQTT connection ends with its token", accessPage, accessEndMQTT},
			{"Token expiry", "an AMQP link ends with its token", accessPage, accessEndAMQP},
			{"Token expiry", "a token put before the end of another takes its place", accessCBS, accessRenewal},
		},

		accessOver("Token scope", "a token of another device is refused", accessPage, accessOtherDevice),
		accessOver("Token scope", "a token for another hub is refused", accessPage, accessOtherHub),
		accessOver("Token scope", "a resource is a prefix by whole segments", accessPage, accessPrefix),

		accessOver("Token form", "another signature is refused", accessPage, accessSignature),
		accessOver("Token form", "a key is decoded before it signs", accessPage, accessDecodedKey),
		accessOver("Token form", "parameters stand in any order", accessPage, accessOrder),
		accessOver("Token form", "a resource in lower-case hexadecimal is the same", accessPage, accessLowerCase),
		accessOver("Token form", "a device ID that is encoded twice is the same", "azure-iot-sdk-csharp, DeviceAuthenticationWithSakRefresh.cs", accessTwice),
		[]behaviour{
			{"Token form", "a resource that is not encoded is the same", "azure-iothub 1.16, shared_access_signature", accessNotEncoded},
			{"Token form", "a text that is no token is refused", accessPage, accessNoToken},
		},

		accessOver("X.509 thumbprints", "a certificate is known by either thumbprint", accessCertPage, accessThumbprints),
		accessOver("X.509 thumbprints", "a thumbprint may be SHA-256", accessCertPage, accessLongThumbprint),
		accessOver("X.509 thumbprints", "another certificate is refused", accessCertPage, accessOtherThumbprint),
		accessOver("X.509 thumbprints", "a disabled device is refused", accessCertPage, accessDisabledThumbprint),
		accessOver("X.509 thumbprints", "a device has keys or certificates", accessCertPage, accessEither),

		accessOver("X.509 certificate authorities", "a certificate names its device", accessCertPage, accessSigned),
		accessOver("X.509 certificate authorities", "a chain has intermediates", accessCertPage, accessChain),
		accessOver("X.509 certificate authorities", "a certificate of another device is refused", accessCertPage, accessSignedForOther),
		accessOver("X.509 certificate authorities", "another authority is refused", accessCertPage, accessOtherAuthority),

		[]behaviour{
			{"SASL PLAIN", "a device sends its token as password", accessPage, accessPlainDevice},
			{"SASL PLAIN", "a policy sends its token as password", accessPage, accessPlainPolicy},
			{"SASL PLAIN", "a token of another is refused", accessPage, accessPlainOther},
			{"SASL PLAIN", "the connection ends with the token", accessPage, accessPlainEnd},
		},
	),
	refused: []behaviour{
		{"Microsoft Entra ID", "a bearer token is refused over HTTPS", accessEntraPage, accessBearer},
		{"Microsoft Entra ID", "a bearer token is refused over AMQP", accessEntraPage, accessBearerAMQP},
	},
}

// accessWay is a protocol of devices. Both functions report whether the hub let
// the identity in, and fail the case if it does anything else than that or refusing
// the credentials.
type accessWay struct {
	protocol    string
	token       func(w *world, i identity, token string) bool
	certificate func(w *world, i identity, chain tls.Certificate) bool
}

var accessWays = []accessWay{
	{"MQTT", accessMQTT, accessMQTTCertificate},
	{"AMQP", accessAMQP, accessAMQPCertificate},
	{"HTTPS", accessHTTPS, accessHTTPSCertificate},
}

// accessOver makes a case for each protocol.
func accessOver(feature, says, source string, holds func(*world, accessWay)) []behaviour {
	var cases []behaviour
	for _, way := range accessWays {
		cases = append(cases, behaviour{feature, says + ", over " + way.protocol, source, func(_ *testing.T, w *world) { holds(w, way) }})
	}
	return cases
}

func accessMQTT(w *world, i identity, token string) bool {
	w.t.Helper()
	return accessConnect(w, i, func(o *paho.ClientOptions) { o.SetPassword(token) })
}

func accessMQTTCertificate(w *world, i identity, chain tls.Certificate) bool {
	w.t.Helper()
	return accessConnect(w, i, func(o *paho.ClientOptions) {
		o.SetPassword("")
		o.SetTLSConfig(accessTLS(w, chain))
	})
}

func accessConnect(w *world, i identity, credentials func(*paho.ClientOptions)) bool {
	w.t.Helper()
	c, err := w.tryMQTT(device{id: i.deviceID, primary: accessAnyKey}, func(o *paho.ClientOptions) {
		w.asIdentity(identity{i.deviceID, i.moduleID, accessAnyKey})(o)
		credentials(o)
	})
	if err != nil {
		if !errors.Is(err, packets.ErrorRefusedNotAuthorised) {
			w.t.Errorf("CONNECT: %v", err)
		}
		return false
	}
	defer c.Disconnect(0)
	c.publish(i.topic("/messages/events/"), 1, "x")
	return true
}

// accessAnyKey is a key in base64 of nobody's.
const accessAnyKey = "bm9ib2R5IGhhcyB0aGlzIGtleSBoZXJl"

func accessTLS(w *world, chain tls.Certificate) *tls.Config {
	config := w.tls()
	config.Certificates = []tls.Certificate{chain}
	return config
}

func accessAMQP(w *world, i identity, token string) bool {
	w.t.Helper()
	session := w.amqp(nil, nil)
	if err := w.putToken(session, w.resource(i), token); err != nil {
		if !strings.Contains(err.Error(), "put-token: 401") {
			w.t.Error(err)
		}
		return false
	}
	return accessSend(w, session, i)
}

func accessAMQPCertificate(w *world, i identity, chain tls.Certificate) bool {
	w.t.Helper()
	return accessSend(w, w.amqp(nil, func(o *amqp.ConnOptions) {
		o.TLSConfig = accessTLS(w, chain)
		o.SASLType = amqp.SASLTypeExternal("")
	}), i)
}

// accessSend sends a message as an identity.
func accessSend(w *world, session *amqp.Session, i identity) bool {
	w.t.Helper()
	sender, err := session.NewSender(w.ctx(), i.path("/messages/events"), nil)
	if err != nil {
		accessUnauthorized(w, err)
		return false
	}
	defer sender.Close(w.ctx())
	if err := sender.Send(w.ctx(), amqp.NewMessage([]byte("x")), nil); err != nil {
		w.t.Error(err)
	}
	return true
}

// accessUnauthorized fails the case unless a link was refused for its credentials.
func accessUnauthorized(w *world, err error) {
	w.t.Helper()
	var e *amqp.Error
	if !errors.As(err, &e) || e.Condition != amqp.ErrCondUnauthorizedAccess {
		w.t.Errorf("link: %v, want %s", err, amqp.ErrCondUnauthorizedAccess)
	}
}

func accessHTTPS(w *world, i identity, token string) bool {
	w.t.Helper()
	return accessPosted(w, w.restAs(token, http.MethodPost, i.path("/messages/events"), []byte("x")))
}

func accessHTTPSCertificate(w *world, i identity, chain tls.Certificate) bool {
	w.t.Helper()
	return accessPosted(w, w.restOver(accessTLS(w, chain), "", http.MethodPost, i.path("/messages/events"), []byte("x")))
}

func accessPosted(w *world, a answer) bool {
	w.t.Helper()
	if a.status != http.StatusNoContent && a.status != http.StatusUnauthorized {
		w.t.Errorf("status %d: %s", a.status, a.body)
	}
	return a.status == http.StatusNoContent
}

// admits fails the case unless the token is good, or bad, as it should be.
func (way accessWay) admits(w *world, what string, i identity, token string, want bool) {
	w.t.Helper()
	if got := way.token(w, i, token); got != want {
		w.t.Errorf("%s: let in %v, want %v", what, got, want)
	}
}

// trusts is admits for certificates.
func (way accessWay) trusts(w *world, what string, i identity, chain tls.Certificate, want bool) {
	w.t.Helper()
	if got := way.certificate(w, i, chain); got != want {
		w.t.Errorf("%s: let in %v, want %v", what, got, want)
	}
}

// accessRaw signs a resource as it stands, and returns the parameters of the token.
func accessRaw(w *world, resource, policy, key string, life time.Duration) []string {
	w.t.Helper()
	secret, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		w.t.Fatal(err)
	}
	return accessSign(resource, policy, secret, life)
}

func accessSign(resource, policy string, secret []byte, life time.Duration) []string {
	expiry := fmt.Sprint(time.Now().Add(life).Unix())
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(resource + "\n" + expiry))
	signature := base64.StdEncoding.EncodeToString(mac.Sum(nil))
	parameters := []string{"sr=" + resource, "sig=" + url.QueryEscape(signature), "se=" + expiry}
	if policy != "" {
		parameters = append(parameters, "skn="+policy)
	}
	return parameters
}

func accessText(parameters []string) string {
	return "SharedAccessSignature " + strings.Join(parameters, "&")
}

func accessPrimary(w *world, way accessWay) {
	d := w.newDevice("d")
	way.admits(w, "primary key", d.identity(), w.token(w.resource(d.identity()), "", d.primary, time.Hour), true)
}

func accessSecondary(w *world, way accessWay) {
	d := w.newDevice("d")
	way.admits(w, "secondary key", d.identity(), w.token(w.resource(d.identity()), "", d.secondary, time.Hour), true)
}

func accessReplaced(w *world, way accessWay) {
	d := w.newDevice("d")
	keys := map[string]any{"primaryKey": accessAnyKey, "secondaryKey": d.secondary}
	w.must(registryUpdate(w, d, "*", map[string]any{"authentication": map[string]any{"type": "sas", "symmetricKey": keys}}), http.StatusOK)
	resource := w.resource(d.identity())
	way.admits(w, "old key", d.identity(), w.token(resource, "", d.primary, time.Hour), false)
	way.admits(w, "new key", d.identity(), w.token(resource, "", accessAnyKey, time.Hour), true)
}

func accessModule(w *world, way accessWay) {
	d := w.newDevice("d")
	m := w.newModule(d, "camera")
	way.admits(w, "module", m, w.identityToken(m), true)
	way.admits(w, "module with the device's key", m, w.token(w.resource(m), "", d.primary, time.Hour), false)
	way.admits(w, "device with the module's key", d.identity(), w.token(w.resource(d.identity()), "", m.key, time.Hour), false)
}

func accessByPolicy(w *world, way accessWay) {
	d := w.newDevice("d").identity()
	hub := w.emulator().HubName()
	for _, resource := range []string{hub, hub + "/devices", hub + "/devices/d"} {
		for _, policy := range []string{"device", "iothubowner"} {
			token := w.token(resource, policy, w.policyKey(policy), time.Hour)
			way.admits(w, policy+" for "+resource, d, token, true)
		}
	}
	token := w.token(hub+"/devices/e", "device", w.policyKey("device"), time.Hour)
	way.admits(w, "device for another device", d, token, false)
}

func accessByOtherPolicy(w *world, way accessWay) {
	d := w.newDevice("d").identity()
	for _, policy := range []string{"service", "registryRead", "registryReadWrite"} {
		way.admits(w, policy, d, w.policyToken(policy), false)
	}
}

// accessRequest is a request of the REST API that needs a permission.
type accessRequest struct {
	permission, method, path string
	body                     any
	status                   int
}

var accessRequests = []accessRequest{
	{"RegistryRead", http.MethodGet, "/devices/d", nil, http.StatusOK},
	{"RegistryRead", http.MethodGet, "/devices", nil, http.StatusOK},
	{"RegistryRead", http.MethodGet, "/statistics/devices", nil, http.StatusOK},
	{"RegistryWrite", http.MethodPut, "/devices/e", map[string]any{"deviceId": "e"}, http.StatusOK},
	{"RegistryWrite", http.MethodDelete, "/devices/e", nil, http.StatusNoContent},
	{"ServiceConnect", http.MethodGet, "/twins/d", nil, http.StatusOK},
	{"ServiceConnect", http.MethodPatch, "/twins/d", map[string]any{"tags": map[string]any{"a": 1}}, http.StatusOK},
	{"ServiceConnect", http.MethodPost, "/twins/d/methods", map[string]any{"methodName": "m"}, http.StatusNotFound}, // offline
	{"ServiceConnect", http.MethodGet, "/messages/serviceBound/feedback", nil, http.StatusNoContent},
	{"DeviceConnect", http.MethodPost, "/devices/d/messages/events", []byte("x"), http.StatusNoContent},
	{"DeviceConnect", http.MethodGet, "/devices/d/messages/deviceBound", nil, http.StatusNoContent},
}

// accessPolicy is the case of a policy that has the permissions and no other.
func accessPolicy(policy string, permissions ...string) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		d := w.newDevice("d")
		token := w.policyToken(policy)
		for _, r := range accessRequests {
			want := http.StatusUnauthorized
			if slices.Contains(permissions, r.permission) {
				want = r.status
			}
			var headers []string
			if r.method == http.MethodDelete {
				headers = []string{"If-Match: *"}
			}
			if a := w.restAs(token, r.method, r.path, r.body, headers...); a.status != want {
				t.Errorf("%s %s: status %d, want %d: %s", r.method, r.path, a.status, want, a.body)
			}
		}
		accessLinks(w, d, policy, slices.Contains(permissions, "ServiceConnect"))
	}
}

// accessLinks attaches the links of services.
func accessLinks(w *world, d device, policy string, may bool) {
	w.t.Helper()
	session := w.amqpService(policy)
	sender, err := session.NewSender(w.ctx(), "/messages/devicebound", nil)
	if err == nil {
		err = sender.Send(w.ctx(), w.c2d(d, "m", "x"), nil)
	}
	feedback, feedbackErr := session.NewReceiver(w.ctx(), "/messages/serviceBound/feedback", nil)
	if may {
		if err := errors.Join(err, feedbackErr); err != nil {
			w.t.Error(err)
			return
		}
		_ = feedback.Close(w.ctx())
		return
	}
	accessUnauthorized(w, err)
	accessUnauthorized(w, feedbackErr)
}

func accessUnknownPolicy(t *testing.T, w *world) {
	hub := w.emulator().HubName()
	token := w.token(hub, "nobody", accessAnyKey, time.Hour)
	w.must(w.restAs(token, http.MethodGet, "/devices", nil), http.StatusUnauthorized)
	if err := w.putToken(w.amqp(nil, nil), hub, token); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("put-token: %v", err)
	}
}

func accessExpired(w *world, way accessWay) {
	d := w.newDevice("d")
	way.admits(w, "expired token", d.identity(), w.token(w.resource(d.identity()), "", d.primary, -time.Second), false)
}

func accessExpiredPolicy(t *testing.T, w *world) {
	hub := w.emulator().HubName()
	token := w.token(hub, "iothubowner", w.policyKey("iothubowner"), -time.Second)
	w.refuses(w.restAs(token, http.MethodGet, "/devices", nil), http.StatusUnauthorized, "IotHubUnauthorizedAccess")
	if err := w.putToken(w.amqp(nil, nil), hub, token); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("put-token: %v", err)
	}
}

// accessBriefly gives out tokens that expire soon, until one lived long enough for
// the use that it was made for.
func accessBriefly(w *world, use func(life time.Duration) error) {
	w.t.Helper()
	var err error
	for life := 2 * time.Second; life < waitTimeout; life *= 2 {
		if err = use(life); err == nil {
			return
		}
	}
	w.t.Fatal(err)
}

func accessEndMQTT(_ *testing.T, w *world) {
	d := w.newDevice("d")
	var c *mqttClient
	accessBriefly(w, func(life time.Duration) (err error) {
		c, err = w.tryMQTT(d, func(o *paho.ClientOptions) {
			o.SetPassword(w.token(w.resource(d.identity()), "", d.primary, life))
		})
		return err
	})
	c.dropped()
}

func accessEndAMQP(_ *testing.T, w *world) {
	d := w.newDevice("d")
	var r *amqp.Receiver
	accessBriefly(w, func(life time.Duration) (err error) {
		resource := w.resource(d.identity())
		session := w.amqp(nil, nil)
		if err := w.putToken(session, resource, w.token(resource, "", d.primary, life)); err != nil {
			return err
		}
		r, err = session.NewReceiver(w.ctx(), d.path("/messages/devicebound"), nil)
		return err
	})
	_, err := r.Receive(w.ctx(), nil)
	accessUnauthorized(w, err)
}

// accessRenewal has two connections whose tokens expire together. The one without
// another token shows when that is.
func accessRenewal(t *testing.T, w *world) {
	d := w.newDevice("d")
	hub := w.emulator().HubName()
	var renewed *amqp.Sender
	var other *amqp.Receiver
	accessBriefly(w, func(life time.Duration) (err error) {
		token := w.token(hub, "service", w.policyKey("service"), life)
		one, two := w.amqp(nil, nil), w.amqp(nil, nil)
		if err := errors.Join(w.putToken(one, hub, token), w.putToken(two, hub, token)); err != nil {
			return err
		}
		if renewed, err = one.NewSender(w.ctx(), "/messages/devicebound", nil); err != nil {
			return err
		}
		if err := w.putToken(one, hub, w.policyToken("service")); err != nil {
			return err
		}
		other, err = two.NewReceiver(w.ctx(), "/messages/serviceBound/feedback", nil)
		return err
	})
	_, err := other.Receive(w.ctx(), nil)
	accessUnauthorized(w, err)
	if err := renewed.Send(w.ctx(), w.c2d(d, "m", "x"), nil); err != nil {
		t.Error(err)
	}
}

func accessOtherDevice(w *world, way accessWay) {
	d, e := w.newDevice("d"), w.newDevice("e")
	way.admits(w, "token of e", d.identity(), w.deviceToken(e), false)
	way.admits(w, "token for d by e", d.identity(), w.token(w.resource(d.identity()), "", e.primary, time.Hour), false)
}

func accessOtherHub(w *world, way accessWay) {
	d := w.newDevice("d")
	way.admits(w, "token for another hub", d.identity(), w.token("other.azure-devices.net/devices/d", "", d.primary, time.Hour), false)
}

func accessPrefix(w *world, way accessWay) {
	short, long := w.newDevice("d").identity(), w.newDevice("d2").identity()
	token := w.token(w.resource(short), "device", w.policyKey("device"), time.Hour)
	way.admits(w, "d with a token for d", short, token, true)
	way.admits(w, "d2 with a token for d", long, token, false)
}

func accessSignature(w *world, way accessWay) {
	d := w.newDevice("d")
	good := accessRaw(w, url.QueryEscape(w.resource(d.identity())), "", d.primary, time.Hour)
	other := accessRaw(w, url.QueryEscape(w.resource(d.identity())), "", d.primary, 2*time.Hour)
	way.admits(w, "good signature", d.identity(), accessText(good), true)
	way.admits(w, "later expiry", d.identity(), accessText([]string{good[0], good[1], other[2]}), false)
	way.admits(w, "no signature", d.identity(), accessText([]string{good[0], good[2]}), false)
}

func accessDecodedKey(w *world, way accessWay) {
	d := w.newDevice("d")
	token := accessSign(url.QueryEscape(w.resource(d.identity())), "", []byte(d.primary), time.Hour)
	way.admits(w, "key that is not decoded", d.identity(), accessText(token), false)
}

func accessOrder(w *world, way accessWay) {
	d := w.newDevice("d").identity()
	token := accessRaw(w, url.QueryEscape(w.resource(d)), "device", w.policyKey("device"), time.Hour)
	slices.Reverse(token)
	way.admits(w, "reverse order", d, accessText(token), true)
}

func accessLowerCase(w *world, way accessWay) {
	d := w.newDevice("d")
	resource := strings.ToLower(url.QueryEscape(w.resource(d.identity())))
	way.admits(w, "lower case", d.identity(), accessText(accessRaw(w, resource, "", d.primary, time.Hour)), true)
}

func accessTwice(w *world, way accessWay) {
	d := w.newDevice("factory::d")
	resource := url.QueryEscape(w.emulator().HubName() + "/devices/" + url.QueryEscape(d.id))
	way.admits(w, "ID encoded twice", d.identity(), accessText(accessRaw(w, resource, "", d.primary, time.Hour)), true)
}

func accessNotEncoded(_ *testing.T, w *world) {
	token := accessText(accessRaw(w, w.emulator().HubName(), "registryRead", w.policyKey("registryRead"), time.Hour))
	w.must(w.restAs(token, http.MethodGet, "/devices", nil), http.StatusOK)
}

func accessNoToken(_ *testing.T, w *world) {
	for _, text := range []string{"", "x", "SharedAccessSignature", "SharedAccessSignature sr=localhost", "SharedAccessSignature " + strings.Repeat("&", 100)} {
		w.refuses(w.restAs(text, http.MethodGet, "/devices", nil), http.StatusUnauthorized, "IotHubUnauthorizedAccess")
	}
}

// accessIssue makes a certificate that a parent signed, or that is self-signed. An
// authority can sign others.
func accessIssue(w *world, name string, parent *tls.Certificate, authority bool) tls.Certificate {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		IsCA:                  authority,
	}
	issuer, signer := template, any(key)
	var above [][]byte
	if parent != nil {
		issuer, signer, above = parent.Leaf, parent.PrivateKey, parent.Certificate
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, &key.PublicKey, signer)
	if err != nil {
		w.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		w.t.Fatal(err)
	}
	return tls.Certificate{Certificate: append([][]byte{der}, above...), PrivateKey: key, Leaf: leaf}
}

func accessThumbprint(c tls.Certificate) string {
	sum := sha1.Sum(c.Leaf.Raw)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// accessPinned registers a device that is known by two certificates.
func accessPinned(w *world, primary, secondary tls.Certificate) device {
	w.t.Helper()
	return w.newDeviceOf(map[string]any{"deviceId": "d", "authentication": map[string]any{
		"type":           "selfSigned",
		"x509Thumbprint": map[string]any{"primaryThumbprint": accessThumbprint(primary), "secondaryThumbprint": accessThumbprint(secondary)},
	}})
}

func accessThumbprints(w *world, way accessWay) {
	first, second := accessIssue(w, "any name", nil, false), accessIssue(w, "d", nil, false)
	d := accessPinned(w, first, second)
	way.trusts(w, "primary", d.identity(), first, true)
	way.trusts(w, "secondary", d.identity(), second, true)
}

func accessLongThumbprint(w *world, way accessWay) {
	c := accessIssue(w, "d", nil, false)
	sum := sha256.Sum256(c.Leaf.Raw)
	d := w.newDeviceOf(map[string]any{"deviceId": "d", "authentication": map[string]any{
		"type": "selfSigned", "x509Thumbprint": map[string]any{"primaryThumbprint": hex.EncodeToString(sum[:])},
	}})
	way.trusts(w, "SHA-256", d.identity(), c, true)
}

func accessOtherThumbprint(w *world, way accessWay) {
	own := accessIssue(w, "d", nil, false)
	d := accessPinned(w, own, own)
	way.trusts(w, "another certificate", d.identity(), accessIssue(w, "d", nil, false), false)
}

func accessDisabledThumbprint(w *world, way accessWay) {
	own := accessIssue(w, "d", nil, false)
	d := accessPinned(w, own, own)
	registrySetStatus(w, d, "disabled")
	way.trusts(w, "disabled device", d.identity(), own, false)
}

func accessEither(w *world, way accessWay) {
	own := accessIssue(w, "d", nil, false)
	pinned, keyed := accessPinned(w, own, own), w.newDevice("keyed")
	way.trusts(w, "device with keys, by certificate", keyed.identity(), own, false)
	way.admits(w, "device with thumbprints, by key", pinned.identity(), w.token(w.resource(pinned.identity()), "", accessAnyKey, time.Hour), false)
}

// accessAuthority lets the hub trust an authority, and registers a device whose
// certificates it signs.
func accessAuthority(w *world) (tls.Certificate, device) {
	w.t.Helper()
	authority := accessIssue(w, "authority", nil, true)
	w.with(func(o *emulator.Options) {
		o.DeviceCAs = x509.NewCertPool()
		o.DeviceCAs.AddCert(authority.Leaf)
	})
	return authority, w.newDeviceOf(map[string]any{"deviceId": "d", "authentication": map[string]any{"type": "certificateAuthority"}})
}

func accessSigned(w *world, way accessWay) {
	authority, d := accessAuthority(w)
	way.trusts(w, "signed certificate", d.identity(), accessIssue(w, "d", &authority, false), true)
}

func accessChain(w *world, way accessWay) {
	authority, d := accessAuthority(w)
	factory := accessIssue(w, "factory", &authority, true)
	whole := accessIssue(w, "d", &factory, false)
	way.trusts(w, "whole chain", d.identity(), whole, true)
	cut := whole
	cut.Certificate = whole.Certificate[:1]
	way.trusts(w, "certificate without its intermediate", d.identity(), cut, false)
}

func accessSignedForOther(w *world, way accessWay) {
	authority, d := accessAuthority(w)
	way.trusts(w, "certificate of e", d.identity(), accessIssue(w, "e", &authority, false), false)
}

func accessOtherAuthority(w *world, way accessWay) {
	_, d := accessAuthority(w)
	other := accessIssue(w, "authority", nil, true)
	way.trusts(w, "certificate of another authority", d.identity(), accessIssue(w, "d", &other, false), false)
}

// accessPlain connects with a user name and a token as password.
func accessPlain(w *world, user, token string) (*amqp.Conn, error) {
	w.t.Helper()
	conn, err := amqp.Dial(w.ctx(), "amqps://"+w.emulator().AMQPSAddr(), &amqp.ConnOptions{
		TLSConfig: w.tls(), HostName: w.emulator().HubName(), SASLType: amqp.SASLTypePlain(user, token),
	})
	if err == nil {
		w.closing("AMQP connection", func(context.Context) error { return conn.Close() })
	}
	return conn, err
}

// accessPlainUser is the user name of a device or, with root, a policy.
func accessPlainUser(w *world, name, root string) string {
	hub, _, _ := strings.Cut(w.emulator().HubName(), ".")
	return name + "@sas." + root + hub
}

// accessPlainSession is a session of a connection that must succeed.
func accessPlainSession(w *world, user, token string) *amqp.Session {
	w.t.Helper()
	conn, err := accessPlain(w, user, token)
	if err != nil {
		w.t.Fatal(err)
	}
	session, err := conn.NewSession(w.ctx(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return session
}

func accessPlainDevice(t *testing.T, w *world) {
	d := w.newDevice("d")
	if !accessSend(w, accessPlainSession(w, accessPlainUser(w, "d", ""), w.deviceToken(d)), d.identity()) {
		t.Error("the device can't send")
	}
}

func accessPlainPolicy(t *testing.T, w *world) {
	d := w.newDevice("d")
	session := accessPlainSession(w, accessPlainUser(w, "service", "root."), w.policyToken("service"))
	if err := w.sendC2D(session, d, "m", "x", ""); err != nil {
		t.Error(err)
	}
}

func accessPlainOther(t *testing.T, w *world) {
	d := w.newDevice("d")
	w.newDevice("e")
	for user, token := range map[string]string{
		accessPlainUser(w, "e", ""):            w.deviceToken(d),
		accessPlainUser(w, "service", "root."): w.policyToken("registryRead"),
		accessPlainUser(w, "d", ""):            "SharedAccessSignature sr=x",
	} {
		if _, err := accessPlain(w, user, token); err == nil {
			t.Errorf("%s was let in", user)
		}
	}
}

func accessPlainEnd(t *testing.T, w *world) {
	d := w.newDevice("d")
	var conn *amqp.Conn
	accessBriefly(w, func(life time.Duration) (err error) {
		conn, err = accessPlain(w, accessPlainUser(w, "d", ""), w.token(w.resource(d.identity()), "", d.primary, life))
		return err
	})
	next(w, "end of the connection", conn.Done())
	if err := conn.Err(); err == nil {
		t.Error("the connection ended without reason")
	}
}

func accessBearer(t *testing.T, w *world) {
	a := w.restAs("Bearer eyJhbGciOiJSUzI1NiJ9.e30.c2lnbmF0dXJl", http.MethodGet, "/devices", nil)
	w.refuses(a, http.StatusUnauthorized, "IotHubUnauthorizedAccess")
	if !strings.Contains(string(a.body), "shared access signature") {
		t.Errorf("the refusal doesn't say what is accepted: %s", a.body)
	}
}

func accessBearerAMQP(t *testing.T, w *world) {
	err := w.putToken(w.amqp(nil, nil), w.emulator().HubName(), "Bearer eyJhbGciOiJSUzI1NiJ9.e30.c2lnbmF0dXJl")
	if err == nil || !strings.Contains(err.Error(), "401") || !strings.Contains(err.Error(), "shared access signature") {
		t.Errorf("put-token: %v", err)
	}
}
