package activities

import (
	"context"
	"fmt"

	"github.com/hubjobs/hubjobs/job"
)

// IdentityRegistry is the hub's registry of device identities. Both calls may block up to their context's deadline
// and return errors classified as a job.Error.
type IdentityRegistry interface {
	// EnsureDevice creates the identity unless it exists, and reports whether it was this call that created it.
	EnsureDevice(ctx context.Context, deviceID string) (created bool, err error)
	// DeleteDevice deletes the identity with everything that waits for it, and reports whether there was one.
	DeleteDevice(ctx context.Context, deviceID string) (existed bool, err error)
}

// Identities are the activities Negotiate and Deregister.
type Identities struct {
	Registry IdentityRegistry
}

// Negotiate makes sure that device identities exist.
func (a *Identities) Negotiate(ctx context.Context, in job.NegotiateInput) (job.NegotiateOutput, error) {
	if err := validateDeviceIDs(in.DeviceIDs); err != nil {
		return job.NegotiateOutput{}, err
	}
	var out job.NegotiateOutput
	for _, id := range in.DeviceIDs {
		created, err := withDeadline(ctx, func(ctx context.Context) (bool, error) {
			return a.Registry.EnsureDevice(ctx, id)
		})
		if err != nil {
			return job.NegotiateOutput{}, fmt.Errorf("negotiate device %q: %w", id, err)
		}
		if created {
			out.Created = append(out.Created, id)
		}
	}
	return out, nil
}

// Deregister makes sure that device identities don't exist.
func (a *Identities) Deregister(ctx context.Context, in job.DeregisterInput) (job.None, error) {
	if err := validateDeviceIDs(in.DeviceIDs); err != nil {
		return job.None{}, err
	}
	for _, id := range in.DeviceIDs {
		_, err := withDeadline(ctx, func(ctx context.Context) (bool, error) {
			return a.Registry.DeleteDevice(ctx, id)
		})
		if err != nil {
			return job.None{}, fmt.Errorf("deregister device %q: %w", id, err)
		}
	}
	return job.None{}, nil
}

func validateDeviceIDs(ids []string) error {
	for _, id := range ids {
		if err := job.ValidateDeviceID(id); err != nil {
			return err
		}
	}
	return nil
}
