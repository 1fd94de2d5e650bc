package emulator_test

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/Azure/go-amqp"

	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/emulator/emulatortest"
)

// limited gives the hub a tier.
func limited(tier string, units int) emulatortest.Option {
	cfg := emulator.DefaultConfig()
	cfg.Hub.Tier, cfg.Hub.Units = tier, units
	return emulatortest.Config(cfg)
}

func devicePath(id string) string { return "/devices/" + url.PathEscape(id) }

// What is beyond the burst of a minute is refused, however long the test takes:
// it is faster than the hub allows.
func TestThrottles(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t, limited("S1", 1))
	createDevice(t, e, deviceID)
	service := serviceConn(t, e)
	const burst, enough = 100, 300 // messages for devices and operations of the registry in a minute
	sent := 0
	for sent < enough {
		err := trySendC2D(t, service, deviceID)
		if condition(err) == "amqp:resource-limit-exceeded" { // 50 wait already
			err = nil
		}
		if err != nil {
			if condition(err) != "com.microsoft:device-container-throttled" {
				t.Fatal(err)
			}
			break
		}
		sent++
	}
	if sent < burst || sent == enough {
		t.Errorf("%d messages passed, want about %d", sent, burst)
	}
	for done := 1; ; done++ { // the device was created
		status, header, body := rest(t, e, http.MethodGet, devicePath(deviceID), "")
		if status == http.StatusOK && done < enough {
			continue
		}
		check(t, "status", status, http.StatusTooManyRequests)
		check(t, "name", header.Get("iothub-errorcode"), "ThrottlingException")
		if seconds, err := strconv.Atoi(header.Get("Retry-After")); err != nil || seconds < 1 || seconds > 60 {
			t.Errorf("Retry-After is %q", header.Get("Retry-After"))
		}
		if !strings.Contains(body, "ErrorCode:ThrottlingException") {
			t.Errorf("body is %s", body)
		}
		if done < burst || done >= enough {
			t.Errorf("%d operations passed, want about %d", done, burst)
		}
		break
	}
	if used, _ := e.DailyMessages(); used < int64(sent) {
		t.Errorf("%d messages count, of %d", used, sent)
	}
}

func TestDailyQuota(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e := emulatortest.Start(t, emulatortest.DataDir(dir), limited("F1", 1))
	createDevice(t, e, deviceID)
	const size = 256 << 10 // 512 messages of 0.5 KB
	send := func() (int, string) {
		status, header, _ := rest(t, e, http.MethodPost, devicePath(deviceID)+"/messages/events", strings.Repeat("x", size))
		return status, header.Get("iothub-errorcode")
	}
	for range 8000 / 512 {
		if status, name := send(); status != http.StatusNoContent {
			t.Fatalf("status %d, %s", status, name)
		}
	}
	status, name := send()
	check(t, "beyond the quota", strconv.Itoa(status)+" "+name, "403 IotHubQuotaExceeded")
	used, limit := e.DailyMessages()
	check(t, "quota", limit, 8000)
	check(t, "used", used, 15*512)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}

	e = emulatortest.Start(t, emulatortest.DataDir(dir), limited("F1", 1))
	used, _ = e.DailyMessages()
	check(t, "used after a restart", used, 15*512)
	status, name = send()
	check(t, "beyond the quota after a restart", strconv.Itoa(status)+" "+name, "403 IotHubQuotaExceeded")
	getDevice(t, e, deviceID) // the registry doesn't count
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}

	e = emulatortest.Start(t, emulatortest.DataDir(dir), limited("S1", 1))
	if status, name := send(); status != http.StatusNoContent {
		t.Errorf("on a larger tier: status %d, %s", status, name)
	}
	check(t, "quota of no tier", limitOf(emulatortest.Start(t)), 0)
}

func limitOf(e *emulator.Emulator) int64 {
	_, limit := e.DailyMessages()
	return limit
}

func TestBasicTier(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t, limited("b1", 2))
	key := createDevice(t, e, deviceID).Authentication.SymmetricKey.PrimaryKey
	client, _ := connect(t, paho(t, e, deviceID, key))
	publish(t, client, deviceID, "", "telemetry")
	status, header, _ := rest(t, e, http.MethodGet, "/twins/"+url.PathEscape(deviceID), "")
	check(t, "twin", strconv.Itoa(status)+" "+header.Get("iothub-errorcode"), "403 OperationNotAvailableInCurrentTier")
	var refused *amqp.Error
	if err := trySendC2D(t, serviceConn(t, e), deviceID); !errors.As(err, &refused) || refused.Info["com.microsoft:error-code"] != int32(403010) {
		t.Errorf("message to a device: %v", err)
	}
}
