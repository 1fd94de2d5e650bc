package iothub

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/hubjobs/hubjobs/job"
)

const serviceKey = "c2VydmljZS1rZXk="

// newFakeHub serves the REST side with handler, under TLS, and returns a client of it.
func newFakeHub(t *testing.T, cfg Config, handler http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(t.Output(), "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	cfg.HTTPSAddr = server.Listener.Addr().String()
	cfg.RootCAs = server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	if cfg.Credential == nil {
		cfg.ConnectionString = "HostName=example.com;SharedAccessKeyName=iothubowner;SharedAccessKey=" + serviceKey
	} else {
		cfg.HostName = "example.com" // the name in httptest's certificate
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func answer(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

func TestNewRefusesIncompleteSettings(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]Config{
		"nothing":       {},
		"no host":       {Credential: fixedToken("x")},
		"no key":        {HostName: "h"},
		"both":          {ConnectionString: "HostName=h", Credential: fixedToken("x")},
		"half a string": {ConnectionString: "HostName=h;SharedAccessKeyName=p"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := New(cfg); !errors.Is(err, job.ErrInvalid) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestRequestIsAuthorisedAndVersioned(t *testing.T) {
	t.Parallel()
	c := newFakeHub(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "example.com" || r.URL.Query().Get("api-version") != "2021-04-12" {
			t.Errorf("got host %s and query %s", r.Host, r.URL.RawQuery)
		}
		if want := "/devices/device-solver::a%25b%23c"; r.URL.EscapedPath() != want {
			t.Errorf("got path %s, want %s", r.URL.EscapedPath(), want)
		}
		query, ok := strings.CutPrefix(r.Header.Get("Authorization"), "SharedAccessSignature ")
		token, err := url.ParseQuery(query)
		if !ok || err != nil || token.Get("sr") != "example.com" || token.Get("skn") != "iothubowner" || token.Get("sig") == "" {
			t.Errorf("got token %v (%v)", token, err)
		}
		answer(w, 200, `{"deviceId":"device-solver::a%b#c"}`)
	})
	if _, err := c.GetDevice(t.Context(), "device-solver::a%b#c"); err != nil {
		t.Fatal(err)
	}
}

type fixedToken string

func (f fixedToken) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: string(f), ExpiresOn: time.Now().Add(time.Hour)}, nil
}

func TestRequestWithCredential(t *testing.T) {
	t.Parallel()
	c := newFakeHub(t, Config{Credential: fixedToken("a.b.c")}, func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Authorization"); got != "Bearer a.b.c" {
			t.Errorf("got %q", got)
		}
		answer(w, 200, `{"deviceId":"d"}`)
	})
	if _, err := c.GetDevice(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
}

type brokenCredential struct{}

func (brokenCredential) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{}, noIdentity{}
}

type noIdentity struct{}

func (noIdentity) Error() string { return "no managed identity\nanswered" }
func (noIdentity) NonRetriable() {}

func TestCredentialThatFails(t *testing.T) {
	t.Parallel()
	c := newFakeHub(t, Config{Credential: brokenCredential{}}, func(http.ResponseWriter, *http.Request) {
		t.Error("a request without a token was sent")
	})
	if _, err := c.GetDevice(t.Context(), "d"); !errors.Is(err, job.ErrUnauthorized) {
		t.Errorf("got %v", err)
	}
}

func TestSignatureIsReusedAndRenewed(t *testing.T) {
	t.Parallel()
	auth, err := newAuthenticator(Config{ConnectionString: "HostName=h;SharedAccessKeyName=p;SharedAccessKey=" + serviceKey})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1700000000, 0)
	sign := func(at time.Time) (string, time.Time) {
		t.Helper()
		token, expires, err := auth.(*policyKey).signature(at)
		if err != nil {
			t.Fatal(err)
		}
		return token, expires
	}
	first, expires := sign(now)
	if again, _ := sign(now.Add(signatureLife / 2)); again != first {
		t.Error("the signature was not used again")
	}
	later := expires.Add(-signatureLife / 5)
	renewed, expires := sign(later)
	if renewed == first || !expires.Equal(later.Add(signatureLife)) {
		t.Error("the signature was not renewed before its end")
	}
}

// Every row is an answer that a hub gives (IoT Hub docs, "Understand and resolve Azure IoT Hub errors").
func TestRefusals(t *testing.T) {
	t.Parallel()
	message := func(code string) string {
		return `{"Message":"ErrorCode:` + code + `;in words","ExceptionMessage":"Tracking ID:1"}`
	}
	nested := func(code int) string {
		inner, _ := json.Marshal(map[string]any{"errorCode": code, "message": "in words"})
		outer, _ := json.Marshal(map[string]string{"Message": string(inner), "ExceptionMessage": ""})
		return string(outer)
	}
	for name, c := range map[string]struct {
		status int
		header string // iothub-errorcode
		retry  string // Retry-After
		body   string
		want   error
		code   string
		after  time.Duration
	}{
		"bad request":              {status: 400, body: message("ArgumentInvalid"), want: job.ErrInvalid, code: "ArgumentInvalid"},
		"wrong key":                {status: 401, body: message("IotHubUnauthorizedAccess"), want: job.ErrUnauthorized, code: "IotHubUnauthorizedAccess"},
		"no permission":            {status: 403, body: message("IotHubUnauthorized"), want: job.ErrUnauthorized, code: "IotHubUnauthorized"},
		"daily quota":              {status: 403, body: message("IotHubQuotaExceeded"), want: job.ErrQuota, code: "IotHubQuotaExceeded"},
		"device queue full":        {status: 403, body: nested(403004), want: job.ErrQueueFull, code: "403004"},
		"code in the header":       {status: 403, header: "IotHubQuotaExceeded", body: "", want: job.ErrQuota, code: "IotHubQuotaExceeded"},
		"no such device":           {status: 404, body: message("DeviceNotFound"), want: job.ErrNotFound, code: "DeviceNotFound"},
		"device offline":           {status: 404, body: nested(404103), want: job.ErrUnavailable, code: "404103"},
		"device left while asked":  {status: 404, body: `{"errorCode":404104,"message":"in words"}`, want: job.ErrUnavailable, code: "404104"},
		"device exists":            {status: 409, body: message("DeviceAlreadyExists"), want: job.ErrExists, code: "DeviceAlreadyExists"},
		"changed":                  {status: 412, body: message("PreconditionFailed"), want: job.ErrPrecondition, code: "PreconditionFailed"},
		"too large":                {status: 413, body: message("MessageTooLarge"), want: job.ErrTooLarge, code: "MessageTooLarge"},
		"throttled":                {status: 429, retry: "7", body: message("ThrottlingException"), want: job.ErrThrottled, code: "ThrottlingException", after: 7 * time.Second},
		"throttled without a hint": {status: 429, body: "", want: job.ErrThrottled},
		"not JSON":                 {status: 418, body: "<html>", want: job.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var requests atomic.Int32
			client := newFakeHub(t, Config{}, func(w http.ResponseWriter, _ *http.Request) {
				requests.Add(1)
				if c.header != "" {
					w.Header().Set("iothub-errorcode", c.header)
				}
				if c.retry != "" {
					w.Header().Set("Retry-After", c.retry)
				}
				answer(w, c.status, c.body)
			})
			_, err := client.GetDevice(t.Context(), "d1")
			var classified *job.Error
			var refusal *Refusal
			if !errors.As(err, &classified) || !errors.As(err, &refusal) || !errors.Is(err, c.want) {
				t.Fatalf("got %v, want kind %v", err, c.want)
			}
			if refusal.StatusCode != c.status || refusal.Code != c.code || classified.RetryAfter != c.after {
				t.Errorf("got %+v, retry after %s", refusal, classified.RetryAfter)
			}
			if !strings.Contains(err.Error(), "d1") || strings.ContainsAny(err.Error(), "\n") {
				t.Errorf("%q doesn't say in one line what failed", err)
			}
			if requests.Load() != 1 {
				t.Errorf("sent %d requests", requests.Load())
			}
		})
	}
}

func TestServerErrorsAreRetried(t *testing.T) {
	t.Parallel()
	var requests atomic.Int32
	c := newFakeHub(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if !strings.Contains(string(body), `"deviceId":"d"`) {
			t.Errorf("attempt %d has body %s", requests.Load(), body)
		}
		if requests.Add(1) < 3 {
			answer(w, 503, `{"Message":"ErrorCode:ServiceUnavailable;later"}`)
			return
		}
		answer(w, 200, `{"deviceId":"d"}`)
	})
	if created, err := c.EnsureDevice(t.Context(), "d"); !created || err != nil {
		t.Errorf("got %v, %v", created, err)
	}
}

func TestMethodsAreNotRetried(t *testing.T) {
	t.Parallel()
	var requests atomic.Int32
	c := newFakeHub(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		var in map[string]any
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.URL.Path != "/twins/d/methods" {
			t.Errorf("got %s, %v", r.URL.Path, err)
		}
		if in["methodName"] != "reboot" || in["responseTimeoutInSeconds"] != 30.0 || in["connectTimeoutInSeconds"] != 1.0 || in["payload"] != nil {
			t.Errorf("got %v", in)
		}
		answer(w, 504, `{"Message":"{\"errorCode\":504101,\"message\":\"no answer\"}"}`)
	})
	_, err := c.InvokeMethod(t.Context(), "d", Method{Name: "reboot", ConnectTimeout: time.Millisecond})
	if !errors.Is(err, job.ErrUnavailable) || requests.Load() != 1 {
		t.Errorf("got %v after %d requests", err, requests.Load())
	}
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	c := newFakeHub(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.Path {
		case "PUT /devices/there":
			answer(w, 409, `{"Message":"ErrorCode:DeviceAlreadyExists;there"}`)
		case "DELETE /devices/there":
			if r.Header.Get("If-Match") != "*" {
				t.Error("the delete depends on an ETag")
			}
			w.WriteHeader(204)
		case "GET /devices/there":
			answer(w, 200, `{"deviceId":"there","status":"disabled","statusReason":"stolen","connectionState":"Connected",
				"lastActivityTime":"2026-02-03T04:05:06.1234567","cloudToDeviceMessageCount":3,
				"authentication":{"type":"sas","symmetricKey":{"primaryKey":"a2V5","secondaryKey":"bm8="}}}`)
		case "GET /devices/x509":
			answer(w, 200, `{"deviceId":"x509","lastActivityTime":"0001-01-01T00:00:00Z","authentication":{"type":"selfSigned"}}`)
		default:
			answer(w, 404, `{"Message":"ErrorCode:DeviceNotFound;no"}`)
		}
	})
	ctx := t.Context()
	if created, err := c.EnsureDevice(ctx, "there"); created || err != nil {
		t.Errorf("EnsureDevice: got %v, %v", created, err)
	}
	if existed, err := c.DeleteDevice(ctx, "there"); !existed || err != nil {
		t.Errorf("DeleteDevice: got %v, %v", existed, err)
	}
	if existed, err := c.DeleteDevice(ctx, "gone"); existed || err != nil {
		t.Errorf("DeleteDevice of none: got %v, %v", existed, err)
	}
	want := Device{ID: "there", StatusReason: "stolen", Connected: true, PendingMessages: 3,
		LastActivityAt: time.Date(2026, 2, 3, 4, 5, 6, 123456700, time.UTC)}
	if got, err := c.GetDevice(ctx, "there"); got != want || err != nil {
		t.Errorf("GetDevice: got %+v, %v", got, err)
	}
	if got, err := c.GetDevice(ctx, "x509"); !got.LastActivityAt.IsZero() || err != nil {
		t.Errorf("GetDevice of one that was never active: got %+v, %v", got, err)
	}
	if got, err := c.DeviceConnectionString(ctx, "there"); got != "HostName=example.com;DeviceId=there;SharedAccessKey=a2V5" || err != nil {
		t.Errorf("DeviceConnectionString: got %q, %v", got, err)
	}
	if _, err := c.DeviceConnectionString(ctx, "x509"); !errors.Is(err, job.ErrInvalid) {
		t.Errorf("DeviceConnectionString without a key: got %v", err)
	}
	if _, err := c.DeviceConnectionString(ctx, "gone"); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("DeviceConnectionString of none: got %v", err)
	}
	if _, err := c.EnsureDevice(ctx, "not/valid"); !errors.Is(err, job.ErrInvalid) {
		t.Errorf("EnsureDevice with a bad ID: got %v", err)
	}
}

func TestDevicesFollowsContinuations(t *testing.T) {
	t.Parallel()
	var pages atomic.Int32
	c := newFakeHub(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
		n := 0
		if token := r.Header.Get("x-ms-continuation"); token != "" {
			n, _ = strconv.Atoi(token)
		}
		pages.Add(1)
		if n < 2 {
			w.Header().Set("x-ms-continuation", strconv.Itoa(n+1))
		}
		answer(w, 200, `[{"deviceId":"d`+strconv.Itoa(2*n)+`"},{"deviceId":"d`+strconv.Itoa(2*n+1)+`"}]`)
	})
	var ids []string
	for d, err := range c.Devices(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, d.ID)
	}
	if got := strings.Join(ids, " "); got != "d0 d1 d2 d3 d4 d5" {
		t.Errorf("got %s", got)
	}
	pages.Store(0)
	for range c.Devices(t.Context()) {
		break
	}
	if pages.Load() != 1 {
		t.Errorf("asked for %d pages to see one device", pages.Load())
	}
}

func TestDevicesEndsWithTheError(t *testing.T) {
	t.Parallel()
	c := newFakeHub(t, Config{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "60")
		answer(w, 429, "")
	})
	var errs []error
	for _, err := range c.Devices(t.Context()) {
		errs = append(errs, err)
	}
	if len(errs) != 1 || !errors.Is(errs[0], job.ErrThrottled) {
		t.Errorf("got %v", errs)
	}
}

func TestStatistics(t *testing.T) {
	t.Parallel()
	c := newFakeHub(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/statistics/service" {
			answer(w, 200, `{"connectedDeviceCount":2}`)
			return
		}
		answer(w, 200, `{"totalDeviceCount":5,"enabledDeviceCount":4,"disabledDeviceCount":1}`)
	})
	if got, err := c.Statistics(t.Context()); got != (Statistics{Total: 5, Enabled: 4, Disabled: 1, Connected: 2}) || err != nil {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestCallEndsWithItsDeadline(t *testing.T) {
	t.Parallel()
	c := newFakeHub(t, Config{Timeout: 20 * time.Millisecond}, func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
	})
	_, err := c.GetDevice(t.Context(), "d")
	if !errors.Is(err, job.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestUntrustedServer(t *testing.T) {
	t.Parallel()
	c := newFakeHub(t, Config{}, func(http.ResponseWriter, *http.Request) { t.Error("a request was sent") })
	c.http.TLSClientConfig.RootCAs = nil
	ctx, cancel := context.WithCancel(policy.WithRetryOptions(t.Context(), policy.RetryOptions{MaxRetries: -1}))
	defer cancel()
	if _, err := c.GetDevice(ctx, "d"); !errors.Is(err, job.ErrUnavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("got %v", err)
	}
}
