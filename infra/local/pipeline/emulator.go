package pipeline

import (
	"context"
	"crypto/x509"
	"errors"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/local/internal/boot"
)

// feedbackInterval is much shorter than the cloud's, because somebody sits there and waits to see "delivered".
const feedbackInterval = 200 * time.Millisecond

func (p *Pipeline) emulatorPart() boot.Part {
	return boot.Part{Name: "emulator", Start: func(ctx context.Context) (func() error, error) {
		hub, err := emulator.Start(ctx, emulator.Options{
			DataDir:          p.file("emulator"),
			AMQPAddr:         p.opts.Addresses.AMQP,
			AMQPSAddr:        p.opts.Addresses.AMQPS,
			MQTTSAddr:        p.opts.Addresses.MQTTS,
			HTTPSAddr:        p.opts.Addresses.HTTPS,
			FeedbackInterval: feedbackInterval,
			Logger:           p.logger("emulator"),
		})
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(hub.CAPEM()) {
			return nil, errors.Join(errors.New("its certificate authority is not in PEM form"), hub.Close())
		}
		p.hub, p.roots = hub, roots
		return hub.Close, nil
	}}
}

// hubSettings are the lines of the emulator's own settings file.
func (p *Pipeline) hubSettings() []setting {
	env := p.hub.Env()
	var lines []setting
	for _, name := range []string{
		emulator.EnvHub, emulator.EnvServiceBus, emulator.EnvEventHub, emulator.EnvCAFile,
		emulator.EnvHTTPSAddr, emulator.EnvAMQPSAddr, emulator.EnvAMQPAddr, emulator.EnvMQTTSAddr,
	} {
		lines = append(lines, setting{name, env[name]})
	}
	return lines
}
