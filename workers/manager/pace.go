package manager

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/time/rate"

	"github.com/hubjobs/hubjobs/job"
)

// maxPace is how long a call may wait for its turn. The number of activities that run at the same time is chosen so that
// all get theirs earlier; more work waits in the task queue, where it costs nothing.
const maxPace = 10 * time.Second

// registry is the part of the hub client that works on device identities.
type registry interface {
	EnsureDevice(ctx context.Context, deviceID string) (created bool, err error)
	DeviceConnectionString(ctx context.Context, deviceID string) (string, error)
	DeleteDevice(ctx context.Context, deviceID string) (existed bool, err error)
}

// sender is the part of the hub client that sends cloud-to-device messages.
type sender interface {
	SendCloudToDevice(ctx context.Context, deviceID string, m job.Message, ttl time.Duration) error
}

// newPace returns a limiter that keeps this process within perSecond operations; 0 means no limit. The server-side
// limits of the task queues hold for all managers together but are coarse; this one is exact, and only this process's.
func newPace(perSecond float64) *rate.Limiter {
	if perSecond <= 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	return rate.NewLimiter(rate.Limit(perSecond), int(math.Ceil(perSecond)))
}

// paces are one each for the hub's two scarce kinds of operation.
type paces struct {
	registry, sends *rate.Limiter
}

func newPaces(l Limits) paces {
	return paces{registry: newPace(l.perSecond()), sends: newPace(l.perSecond())}
}

// concurrency returns how many activities, of one operation at a time, may run at once, so that none waits longer than
// maxPace for its turn; 0, the SDK's default, when there is no limit.
func concurrency(perSecond float64) int {
	if perSecond <= 0 {
		return 0
	}
	return max(2, int(perSecond*maxPace.Seconds()/2))
}

func wait(ctx context.Context, pace *rate.Limiter, op string) error {
	ctx, cancel := context.WithTimeout(ctx, maxPace)
	defer cancel()
	if err := pace.Wait(ctx); err != nil {
		if errors.Is(err, context.Canceled) {
			return err
		}
		return &job.Error{Op: op, Kind: job.ErrThrottled, RetryAfter: time.Second,
			Err: fmt.Errorf("this manager holds itself to %.3g operations a second: %w", float64(pace.Limit()), err)}
	}
	return nil
}

// pacedRegistry holds all registry operations of this process, those of the HTTP interface included, to one pace.
type pacedRegistry struct {
	registry
	pace *rate.Limiter
}

func (p *pacedRegistry) EnsureDevice(ctx context.Context, deviceID string) (bool, error) {
	if err := wait(ctx, p.pace, "create device "+deviceID); err != nil {
		return false, err
	}
	return p.registry.EnsureDevice(ctx, deviceID)
}

func (p *pacedRegistry) DeviceConnectionString(ctx context.Context, deviceID string) (string, error) {
	if err := wait(ctx, p.pace, "read device "+deviceID); err != nil {
		return "", err
	}
	return p.registry.DeviceConnectionString(ctx, deviceID)
}

func (p *pacedRegistry) DeleteDevice(ctx context.Context, deviceID string) (bool, error) {
	if err := wait(ctx, p.pace, "delete device "+deviceID); err != nil {
		return false, err
	}
	return p.registry.DeleteDevice(ctx, deviceID)
}

// pacedSender holds the cloud-to-device sends of this process to one pace.
type pacedSender struct {
	sender
	pace *rate.Limiter
}

func (p *pacedSender) SendCloudToDevice(ctx context.Context, deviceID string, m job.Message, ttl time.Duration) error {
	if err := wait(ctx, p.pace, "send to device "+deviceID); err != nil {
		return err
	}
	return p.sender.SendCloudToDevice(ctx, deviceID, m, ttl)
}
