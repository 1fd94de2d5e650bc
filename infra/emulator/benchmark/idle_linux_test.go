package main

import "testing"

// Ten thousand devices and a thousand links have to fit into a gibibyte. Scaled
// down, that is what each connection may cost beside the emulator itself.
const (
	maxBytesPerDevice = 1 << 30 / 10_000 / 2
	maxBytesBefore    = 128 << 20
)

func TestIdleConnectionsCostLittle(t *testing.T) {
	t.Parallel()
	const devices, links = 500, 50
	r, err := measureIdle(t.Context(), program, devices, links)
	if err != nil {
		t.Fatal(err)
	}
	if r.Before > maxBytesBefore {
		t.Errorf("%d bytes before anybody connects", r.Before)
	}
	if each := (r.Bytes - r.Before) / devices; each > maxBytesPerDevice {
		t.Errorf("%d bytes for each device, at most %d are allowed", each, maxBytesPerDevice)
	}
}
