package activities

import (
	"context"
	"fmt"

	"github.com/hubjobs/hubjobs/job"
)

// Devices holds the device connections of this process.
type Devices interface {
	// Open makes sure that the session's device is connected and that what it receives is recorded in the session's
	// workflow. Opening an open session is success.
	Open(ctx context.Context, s job.Session) error
	// Publish opens the session if it must and sends m over its connection. It returns when the hub has stored m.
	Publish(ctx context.Context, s job.Session, m job.Message) error
	// Close ends the session, and the connection when no other session needs it. A closed session is success.
	Close(ctx context.Context, s job.Session) error
}

// StepRunner runs the steps of a job.
type StepRunner interface {
	// Check returns the first step that the runner can't run, and why; empty strings when it can run them all.
	Check(steps []string) (step, reason string)
	// Run runs the step in.Step and blocks until it has ended or ctx has. A step that fails is an
	// output with StatusFailed; an error says that it couldn't be run or was stopped, and then the output may still
	// hold what the step printed. in.Timeout is already part of ctx.
	Run(ctx context.Context, in job.RunStepInput) (job.RunStepOutput, error)
}

// Checkpointer records an activity's heartbeat at once, unthrottled, and reports whether the server has it. A Temporal
// client is one.
type Checkpointer interface {
	RecordActivityHeartbeat(ctx context.Context, taskToken []byte, details ...any) error
}

// Host is the activities of one process that holds device connections. Steps and Checkpoints may be nil on a host that
// runs no steps.
type Host struct {
	Name        string // unique among running hosts
	Role        job.Role
	Devices     Devices
	Steps       StepRunner
	Checkpoints Checkpointer

	memory stepMemory
}

// Connect connects a device, or finds it connected, and says on which host.
func (h *Host) Connect(ctx context.Context, in job.ConnectInput) (job.ConnectOutput, error) {
	if err := h.open(ctx, in.Session); err != nil {
		return job.ConnectOutput{}, err
	}
	return h.output(), nil
}

// Accept connects a solver's device and checks that every step of the job can be run here. A job that can't is no
// error: the workflow reports it, and needs the connection for that.
func (h *Host) Accept(ctx context.Context, in job.AcceptInput) (job.AcceptOutput, error) {
	if err := in.Job.Validate(); err != nil {
		return job.AcceptOutput{}, err
	}
	if err := h.open(ctx, in.Session); err != nil {
		return job.AcceptOutput{}, err
	}
	step, reason := h.Steps.Check(in.Job.Steps)
	return job.AcceptOutput{ConnectOutput: h.output(), RejectedStep: step, Rejection: reason}, nil
}

// Send publishes device-to-cloud messages, in order, each confirmed by the hub.
func (h *Host) Send(ctx context.Context, in job.SendInput) (job.None, error) {
	for _, m := range in.Messages {
		if size := m.Size(); size > job.MaxDeviceToCloudSize {
			return job.None{}, &job.Error{Op: fmt.Sprintf("publish message %q", m.ID), Kind: job.ErrTooLarge,
				Err: fmt.Errorf("%d bytes, the limit of a device-to-cloud message is %d", size, job.MaxDeviceToCloudSize)}
		}
	}
	_, err := inOrder(ctx, in.Messages, func(ctx context.Context, m job.Message) (*job.Refusal, error) {
		return nil, h.publish(ctx, in.Session, m)
	})
	return job.None{}, err
}

// Disconnect closes a device's connection. A device that isn't connected is success.
func (h *Host) Disconnect(ctx context.Context, in job.DisconnectInput) (job.None, error) {
	h.memory.forget(in.Session.WorkflowID)
	_, err := withDeadline(ctx, func(ctx context.Context) (job.None, error) {
		return job.None{}, h.Devices.Close(ctx, in.Session)
	})
	if err != nil {
		return job.None{}, fmt.Errorf("disconnect device %q: %w", in.Session.DeviceID, err)
	}
	return job.None{}, nil
}

func (h *Host) open(ctx context.Context, s job.Session) error {
	if err := job.ValidateDeviceID(s.DeviceID); err != nil {
		return err
	}
	_, err := withDeadline(ctx, func(ctx context.Context) (job.None, error) {
		return job.None{}, h.Devices.Open(ctx, s)
	})
	if err != nil {
		return fmt.Errorf("connect device %q: %w", s.DeviceID, err)
	}
	return nil
}

// publish sends one message; ctx already has the deadline of one call.
func (h *Host) publish(ctx context.Context, s job.Session, m job.Message) error {
	if err := h.Devices.Publish(ctx, s, m); err != nil {
		return fmt.Errorf("publish message %q of device %q: %w", m.ID, s.DeviceID, err)
	}
	return nil
}

func (h *Host) output() job.ConnectOutput {
	return job.ConnectOutput{Host: h.Name, TaskQueue: job.HostTaskQueue(h.Role, h.Name)}
}
