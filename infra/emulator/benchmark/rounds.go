package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"
)

// scenario is one comparison.
type scenario struct {
	name   string
	onDisk bool
	load   load
	rival  func(ctx context.Context, dir string, onDisk bool) (*server, error)
	drive  func(ctx context.Context, s *server, l load) (time.Duration, error)
	note   string // what is not alike
}

// sample is one round of one server.
type sample struct {
	rate float64 // messages a second
	cpu  float64 // microseconds of the server's processor time for each message
}

// result is a comparison as it is reported. Ratios are medians over rounds of
// the emulator's figure divided by the rival's of the same round.
type result struct {
	Scenario     string    `json:"scenario"`
	Rival        string    `json:"rival"`
	Skipped      string    `json:"skipped,omitempty"`
	Rounds       int       `json:"rounds,omitempty"`
	Rate         float64   `json:"emulatorMessagesPerSecond,omitempty"`
	RivalRate    float64   `json:"rivalMessagesPerSecond,omitempty"`
	RateRatio    float64   `json:"rateRatio,omitempty"`
	RateRatios   []float64 `json:"rateRatios,omitempty"`
	CPU          float64   `json:"emulatorMicrosecondsPerMessage,omitempty"`
	RivalCPU     float64   `json:"rivalMicrosecondsPerMessage,omitempty"`
	CPURatio     float64   `json:"processorRatio,omitempty"`
	EmulatorPeak int64     `json:"emulatorPeakBytes,omitempty"`
	RivalPeak    int64     `json:"rivalPeakBytes,omitempty"`
	Note         string    `json:"note,omitempty"`
}

// compare runs a scenario: a round to warm up, then rounds in alternating order.
func compare(ctx context.Context, program string, s scenario, rivalName string, rounds int, progress io.Writer) (res result, err error) {
	res = result{Scenario: s.name, Rival: rivalName, Note: s.note}
	dir, err := os.MkdirTemp("", "emulator-benchmark-")
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	rival, err := startIn(dir, rivalName, func(dir string) (*server, error) { return s.rival(ctx, dir, s.onDisk) })
	if errors.Is(err, errNotInstalled) {
		res.Skipped = err.Error()
		return res, nil
	}
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, rival.stop()) }()
	emulator, err := startIn(dir, "emulator", func(dir string) (*server, error) {
		e, err := startEmulator(ctx, program, dir, s.onDisk)
		if err != nil {
			return nil, err
		}
		return e.server, e.register(ctx, s.load.connections)
	})
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, emulator.stop()) }()
	return res, s.run(ctx, &res, emulator, rival, rounds, progress)
}

func startIn(dir, name string, start func(dir string) (*server, error)) (*server, error) {
	dir = filepath.Join(dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	return start(dir)
}

func (s scenario) run(ctx context.Context, res *result, emulator, rival *server, rounds int, progress io.Writer) error {
	var ours, theirs []sample
	for round := range rounds + 1 {
		samples := make(map[*server]sample, 2)
		order := []*server{emulator, rival}
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, server := range order {
			var err error
			if samples[server], err = s.measure(ctx, server); err != nil {
				return fmt.Errorf("%s on %s: %w", s.name, server.name, err)
			}
		}
		fmt.Fprintf(progress, "%s, round %d of %d: emulator %.0f/s, %s %.0f/s\n",
			s.name, round, rounds, samples[emulator].rate, rival.name, samples[rival].rate)
		if round > 0 { // round 0 warms up
			ours, theirs = append(ours, samples[emulator]), append(theirs, samples[rival])
		}
	}
	res.fill(ours, theirs)
	if u, err := emulator.usage(); err == nil {
		res.EmulatorPeak = u.peak
	}
	if u, err := rival.usage(); err == nil {
		res.RivalPeak = u.peak
	}
	return nil
}

// roundTimeout ends a round that a broker doesn't finish.
const roundTimeout = 10 * time.Minute

// measure runs one round on one server. Where processor time can't be read, it
// is zero.
func (s scenario) measure(ctx context.Context, on *server) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	before, usageErr := on.usage()
	elapsed, err := s.drive(ctx, on, s.load)
	if err != nil {
		return sample{}, err
	}
	n := float64(s.load.messages)
	out := sample{rate: n / elapsed.Seconds()}
	if after, err := on.usage(); err == nil && usageErr == nil {
		out.cpu = float64((after.cpu - before.cpu).Microseconds()) / n
	}
	return out, nil
}

func (r *result) fill(ours, theirs []sample) {
	rate := func(s sample) float64 { return s.rate }
	cpu := func(s sample) float64 { return s.cpu }
	r.Rounds = len(ours)
	r.Rate, r.RivalRate = median(each(ours, rate)), median(each(theirs, rate))
	r.CPU, r.RivalCPU = median(each(ours, cpu)), median(each(theirs, cpu))
	r.RateRatios = ratios(each(ours, rate), each(theirs, rate))
	r.RateRatio = median(r.RateRatios)
	r.CPURatio = median(ratios(each(ours, cpu), each(theirs, cpu)))
}

func each(samples []sample, f func(sample) float64) []float64 {
	out := make([]float64, len(samples))
	for i, s := range samples {
		out[i] = f(s)
	}
	return out
}

func ratios(a, b []float64) []float64 {
	out := make([]float64, 0, len(a))
	for i := range a {
		if b[i] > 0 {
			out = append(out, a[i]/b[i])
		}
	}
	return out
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// table prints results for people.
func table(w io.Writer, results []result) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "scenario\trival\temulator/s\trival/s\tratio\tmin–max\tcpu µs/msg\trival cpu\tcpu ratio")
	for _, r := range results {
		if r.Skipped != "" {
			fmt.Fprintf(t, "%s\t%s\tskipped: %s\n", r.Scenario, r.Rival, r.Skipped)
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%.0f\t%.0f\t%.2f\t%.2f–%.2f\t%.1f\t%.1f\t%.2f\n", r.Scenario, r.Rival, r.Rate, r.RivalRate,
			r.RateRatio, slices.Min(r.RateRatios), slices.Max(r.RateRatios), r.CPU, r.RivalCPU, r.CPURatio)
	}
	return t.Flush()
}
