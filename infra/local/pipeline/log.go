package pipeline

import (
	"os"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// openLog returns a logger that appends to the file what has the level or is worse. The file is never closed: what the SDKs still have to say after
// everything was stopped must not fail.
func openLog(path string, level zapcore.Level) (*zap.Logger, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	config := zap.NewProductionEncoderConfig()
	config.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	config.EncodeDuration = zapcore.StringDurationEncoder
	return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(config), zapcore.Lock(file), level)), nil
}
