package workflows

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/hubjobs/hubjobs/job"
)

// host is the worker process that holds a device's connection. It may be lost at any time; then connect finds another.
type host struct {
	session job.Session
	connect func(workflow.Context) (job.ConnectOutput, error)
	at      job.ConnectOutput // zero: not connected, as far as is known
	busy    bool              // somebody is connecting
}

// do runs f with the task queue of the device's host. When that host is gone it connects elsewhere and runs f again.
func (h *host) do(ctx workflow.Context, f func(taskQueue string) error) error {
	for {
		if err := h.find(ctx); err != nil {
			return err
		}
		queue := h.at.TaskQueue
		err := f(queue)
		if !hostLost(err) {
			return err
		}
		workflow.GetLogger(ctx).Warn("device host is gone, connecting elsewhere", "device", h.session.DeviceID, "taskQueue", queue)
		if h.at.TaskQueue == queue { // nobody else has found another one meanwhile
			h.at = job.ConnectOutput{}
		}
	}
}

// find makes sure that the device's host is known; one caller at a time looks for it.
func (h *host) find(ctx workflow.Context) error {
	if err := workflow.Await(ctx, func() bool { return !h.busy }); err != nil || h.at.TaskQueue != "" {
		return err
	}
	h.busy = true
	at, err := h.connect(ctx)
	h.busy = false
	if err != nil {
		return err
	}
	h.at = at
	return nil
}

// send publishes device-to-cloud messages from the device.
func (h *host) send(ctx workflow.Context, summary string, messages ...job.Message) error {
	return h.do(ctx, func(taskQueue string) error {
		_, err := call(ctx, job.Send, job.SendInput{Session: h.session, Messages: messages}, workflow.ActivityOptions{
			TaskQueue:              taskQueue,
			ScheduleToStartTimeout: scheduleToStartOnHost,
			StartToCloseTimeout:    2 * hubTimeout,
			HeartbeatTimeout:       heartbeat,
			ScheduleToCloseTimeout: cleanUpTimeout,
			Summary:                summary,
		})
		return err
	})
}

// disconnect closes the device's connection. It may fail: the connection ends with the identity or its host anyway.
func (h *host) disconnect(ctx workflow.Context) {
	if h.at.TaskQueue == "" {
		return
	}
	_, err := call(ctx, job.Disconnect, job.DisconnectInput{Session: h.session}, workflow.ActivityOptions{
		TaskQueue:              h.at.TaskQueue,
		ScheduleToStartTimeout: scheduleToStartOnHost,
		ScheduleToCloseTimeout: time.Minute,
		Summary:                "disconnect " + h.session.DeviceID,
	})
	if err != nil {
		workflow.GetLogger(ctx).Info("device was not disconnected, its host may be gone", "device", h.session.DeviceID, "error", err)
	}
}
