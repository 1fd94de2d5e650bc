package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"go.uber.org/zap"
	"go.uber.org/zap/exp/zapslog"
	"go.uber.org/zap/zapcore"
)

// Values of --log-format.
const (
	formatAuto    = "auto"
	formatJSON    = "json"
	formatConsole = "console"
)

// noStacktrace is above all levels: an error's own text says what happened, and a stack would be that of the logger's
// caller.
const noStacktrace = slog.Level(1 << 10)

// newLogger returns a logger that writes to w: JSON for machines, lines for people.
func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	lowest, err := zapcore.ParseLevel(level)
	if err != nil || lowest > zapcore.ErrorLevel {
		return nil, fmt.Errorf("log level %q is unknown: use debug, info, warn or error", level)
	}
	encoder, err := newEncoder(w, format)
	if err != nil {
		return nil, err
	}
	core := zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), lowest)
	return slog.New(zapslog.NewHandler(core, zapslog.AddStacktraceAt(noStacktrace))), nil
}

func newEncoder(w io.Writer, format string) (zapcore.Encoder, error) {
	config := zap.NewProductionEncoderConfig()
	config.TimeKey = "time"
	config.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	config.EncodeDuration = zapcore.StringDurationEncoder
	switch {
	case format == formatJSON, format == formatAuto && !terminal(w):
		return zapcore.NewJSONEncoder(config), nil
	case format == formatConsole, format == formatAuto:
		config.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
		config.EncodeLevel = zapcore.CapitalColorLevelEncoder
		return zapcore.NewConsoleEncoder(config), nil
	}
	return nil, fmt.Errorf("log format %q is unknown: use %s, %s or %s", format, formatAuto, formatJSON, formatConsole)
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
