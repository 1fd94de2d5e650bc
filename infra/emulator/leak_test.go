package emulator_test

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/coder/websocket"
	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/emulator/emulatortest"
)

// comings is how often each kind of client comes and goes.
const comings = 500

// Not parallel: it counts the goroutines of the whole process, and what its heap
// holds.
func TestClientsLeaveNothingBehind(t *testing.T) {
	e := emulatortest.Start(t, func(o *emulator.Options) { o.Logger = nil })
	key := createDevice(t, e, deviceID).Authentication.SymmetricKey.PrimaryKey
	goroutines := runtime.NumGoroutine() // the REST client has gone again
	config := tlsConfig(t, e)
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	clients := map[string]func(*testing.T){
		"silent":        func(t *testing.T) { dialAndLeave(t, e.AMQPAddr(), "") },
		"half a header": func(t *testing.T) { dialAndLeave(t, e.AMQPAddr(), "AMQP\x00") },
		"not TLS":       func(t *testing.T) { dialAndLeave(t, e.MQTTSAddr(), "\x10\x80\x80\x80") },
		"not HTTP":      func(t *testing.T) { dialAndLeave(t, e.HTTPSAddr(), "GET / HTTP/1.1\r\n\r\n") },
		"AMQP":          func(t *testing.T) { comeByAMQP(t, e) },
		"MQTT":          func(t *testing.T) { comeByMQTT(t, e, key, config) },
		"WebSocket":     func(t *testing.T) { comeByWebSocket(t, e, config) },
	}
	for _, come := range clients {
		come(t) // makes what is made but once
	}
	settled(t, goroutines)
	heap := liveHeap()
	for name, come := range clients {
		for range comings {
			come(t)
		}
		if n := settled(t, goroutines); n > goroutines {
			t.Errorf("%s: %d goroutines are left of %d clients", name, n-goroutines, comings)
		}
	}
	// A leak of one buffer for each client would be 500 × 512 bytes at least.
	const tolerance = 7 * comings * 256
	if after := liveHeap(); after > heap+tolerance {
		t.Errorf("the heap grew from %d to %d bytes", heap, after)
	}
}

func dialAndLeave(t *testing.T, addr, first string) {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Write([]byte(first)); err != nil {
		t.Fatal(err)
	}
}

// comeByAMQP is refused a link and leaves without a goodbye.
func comeByAMQP(t *testing.T, e *emulator.Emulator) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	conn, err := amqp.Dial(ctx, "amqp://"+e.AMQPAddr(), &amqp.ConnOptions{SASLType: amqp.SASLTypeAnonymous()})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	session, err := conn.NewSession(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := session.NewSender(ctx, "$cbs", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := session.NewReceiver(ctx, "$cbs", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := session.NewReceiver(ctx, "device-messages", nil); err == nil {
		t.Fatal("a link without a token was accepted")
	}
}

func comeByMQTT(t *testing.T, e *emulator.Emulator, key string, config *tls.Config) {
	t.Helper()
	client := mqtt.NewClient(paho(t, e, deviceID, key).SetTLSConfig(config))
	done(t, client.Connect())
	done(t, client.Subscribe("devices/"+deviceID+"/messages/devicebound/#", 1, nil))
	client.Disconnect(0)
}

func comeByWebSocket(t *testing.T, e *emulator.Emulator, config *tls.Config) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	transport := &http.Transport{TLSClientConfig: config}
	defer transport.CloseIdleConnections()
	conn, resp, err := websocket.Dial(ctx, "wss://"+e.HTTPSAddr()+"/$iothub/websocket", &websocket.DialOptions{
		HTTPClient:   &http.Client{Transport: transport},
		Subprotocols: []string{"AMQPWSB10"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body != nil {
		defer resp.Body.Close()
	}
	_ = conn.CloseNow()
}

// settled returns the number of goroutines once it is no more than wanted, or
// has had time enough to become so.
func settled(t *testing.T, wanted int) int {
	t.Helper()
	deadline := time.Now().Add(testTimeout)
	for {
		n := runtime.NumGoroutine()
		if n <= wanted || time.Now().After(deadline) {
			if n > wanted {
				t.Log(strings.Join(strings.SplitAfterN(stacks(), "\n\n", 20), ""))
			}
			return n
		}
		time.Sleep(10 * time.Millisecond) // the interval of polling
	}
}

func stacks() string {
	b := make([]byte, 64<<10)
	return string(b[:runtime.Stack(b, true)])
}

func liveHeap() uint64 {
	runtime.GC()
	runtime.GC() // the second one collects what finalizers held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
