// Package quota limits a hub as its tier and units do in the cloud: how fast
// operations of each kind may come, and how many messages there may be in a day
// (IoT Hub docs: "IoT Hub quotas and throttling", "Azure IoT Hub billing
// information").
//
// The cloud lets a burst pass for "the first minute or two", then delays, and
// refuses at last. Here a burst of one minute's worth passes at once, and what
// comes on top is refused without a delay: clients meet the same refusals,
// only sooner.
package quota

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// Tier is a pricing tier of a hub.
type Tier string

// Tiers of the cloud. The basic ones, B1 to B3, have the limits of S1 to S3, and
// not all features.
const (
	F1 Tier = "F1"
	S1 Tier = "S1"
	S2 Tier = "S2"
	S3 Tier = "S3"
	B1 Tier = "B1"
	B2 Tier = "B2"
	B3 Tier = "B3"
)

// tiers are all there are.
var tiers = []Tier{F1, S1, S2, S3, B1, B2, B3}

// ParseTier reads the name of a tier, in any case.
func ParseTier(name string) (Tier, error) {
	t := Tier(strings.ToUpper(name))
	if !slices.Contains(tiers, t) {
		return "", fmt.Errorf("tier is %q and must be F1, S1, S2, S3, B1, B2 or B3", name)
	}
	return t, nil
}

// MaxUnits is the largest number of units that a hub of the tier can have.
func (t Tier) MaxUnits() int {
	switch t {
	case F1:
		return 1
	case S3, B3:
		return 10
	}
	return 200
}

// MaxJobs is how many scheduled jobs may be under way at a time (the page's table
// "Other limits").
func (t Tier) MaxJobs() int {
	switch t {
	case S2:
		return 5
	case S3:
		return 10
	}
	return 1
}

// basic reports whether the tier lacks what only the standard tiers have.
func (t Tier) basic() bool { return t == B1 || t == B2 || t == B3 }

// standardOnly are the operations that basic tiers lack (IoT Hub docs: "Choose
// the right IoT Hub tier and size for your solution").
var standardOnly = [hub.NumOperations]bool{
	hub.OpC2D:        true,
	hub.OpC2DReceive: true,
	hub.OpMethod:     true,
	hub.OpTwinRead:   true,
	hub.OpTwinUpdate: true,
	hub.OpJob:        true,
}

// dailyMessages is the quota of one unit.
func (t Tier) dailyMessages() int64 {
	switch t {
	case F1:
		return 8_000
	case S2, B2:
		return 6_000_000
	case S3, B3:
		return 300_000_000
	}
	return 400_000
}

// chunk is the size in bytes up to which a message counts as one.
func (t Tier) chunk() int {
	if t == F1 {
		return 512
	}
	return meter
}

// meter is the size in bytes by which direct methods and updates of twins are
// throttled, in all tiers.
const meter = 4 << 10

// rates are throttles for one class of tiers, in operations a minute; direct
// methods in bytes a minute.
type rates struct {
	perUnit [hub.NumOperations]float64
	// atLeast holds throttles that are for the whole hub, or that don't go
	// below a number.
	atLeast [hub.NumOperations]float64
}

// perSecond turns a number for a second into one for a minute.
const perSecond = 60

// small, medium and large are the columns of the table "Operation throttles".
var (
	small = rates{
		perUnit: [hub.NumOperations]float64{
			hub.OpRegistry:   100,
			hub.OpConnect:    12 * perSecond,
			hub.OpD2C:        12 * perSecond,
			hub.OpC2D:        100,
			hub.OpC2DReceive: 1000,
			hub.OpMethod:     (160 << 10) * perSecond,
			hub.OpQuery:      20,
			hub.OpJob:        100,
		},
		atLeast: [hub.NumOperations]float64{
			hub.OpConnect:    100 * perSecond,
			hub.OpD2C:        100 * perSecond,
			hub.OpTwinRead:   100 * perSecond,
			hub.OpTwinUpdate: 50 * perSecond,
		},
	}
	medium = rates{
		perUnit: [hub.NumOperations]float64{
			hub.OpRegistry:   100,
			hub.OpConnect:    120 * perSecond,
			hub.OpD2C:        120 * perSecond,
			hub.OpC2D:        100,
			hub.OpC2DReceive: 1000,
			hub.OpMethod:     (480 << 10) * perSecond,
			hub.OpQuery:      20,
			hub.OpTwinRead:   10 * perSecond,
			hub.OpTwinUpdate: 5 * perSecond,
			hub.OpJob:        100,
		},
		atLeast: [hub.NumOperations]float64{
			hub.OpTwinRead:   100 * perSecond,
			hub.OpTwinUpdate: 50 * perSecond,
		},
	}
	large = rates{
		perUnit: [hub.NumOperations]float64{
			hub.OpRegistry:   5000,
			hub.OpConnect:    6000 * perSecond,
			hub.OpD2C:        6000 * perSecond,
			hub.OpC2D:        5000,
			hub.OpC2DReceive: 50000,
			hub.OpMethod:     (24 << 20) * perSecond,
			hub.OpQuery:      1000,
			hub.OpTwinRead:   500 * perSecond,
			hub.OpTwinUpdate: 250 * perSecond,
			hub.OpJob:        5000,
		},
	}
)

// perMinute is how often an operation may come on a hub of the tier.
func (t Tier) perMinute(op hub.Operation, units int) float64 {
	r := small
	switch t {
	case S2, B2:
		r = medium
	case S3, B3:
		r = large
	}
	return max(r.perUnit[op]*float64(units), r.atLeast[op])
}
