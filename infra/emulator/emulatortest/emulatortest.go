// Package emulatortest starts an emulator for a test:
//
//	e := emulatortest.Start(t)
//	client, err := azservicebus.NewClientFromConnectionString(e.ServiceBusConnectionString(), nil)
package emulatortest

import (
	"log/slog"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator"
)

// FeedbackInterval is that of emulators started here. The cloud's 15 s are long
// for a test.
const FeedbackInterval = 20 * time.Millisecond

// Option changes how the emulator is started. It may be any function:
//
//	emulatortest.Start(t, func(o *emulator.Options) { o.HubName = "my-hub.local" })
type Option func(*emulator.Options)

// DataDir keeps the state in a directory, so that the test can start another
// emulator with it. Without this option it is kept in memory.
func DataDir(dir string) Option { return func(o *emulator.Options) { o.DataDir = dir } }

// Config gives the emulator other entities than emulator.DefaultConfig.
func Config(cfg *emulator.Config) Option { return func(o *emulator.Options) { o.Config = cfg } }

// Start starts an emulator on free ports and closes it when the test ends. What it
// warns of goes to the test's log. The test fails if it can't be started or closed.
func Start(t testing.TB, options ...Option) *emulator.Emulator {
	t.Helper()
	opts := emulator.Options{
		FeedbackInterval: FeedbackInterval,
		Logger:           slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	for _, option := range options {
		option(&opts)
	}
	e, err := emulator.Start(t.Context(), opts)
	if err != nil {
		t.Fatalf("start emulator: %v", err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close emulator: %v", err)
		}
	})
	return e
}
