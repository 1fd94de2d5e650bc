package role

import (
	"log/slog"
	"os"
)

// Identity returns "name@host", as which a process shows in Temporal's web UI.
func Identity(name string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return name + "@" + host
}

// Logger returns l, or one that discards everything.
func Logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
