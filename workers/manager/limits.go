package manager

import (
	"fmt"
	"time"
)

// Tier is the pricing tier of a hub, which sets its throttles.
type Tier string

// The tiers. The B tiers have the throttles of the S tier of the same number.
const (
	TierUnlimited Tier = "" // the manager doesn't hold itself back: an emulator, or a hub with room to spare
	TierF1        Tier = "F1"
	TierS1        Tier = "S1"
	TierS2        Tier = "S2"
	TierS3        Tier = "S3"
)

// perUnit is how many identity registry operations, and likewise how many cloud-to-device sends, a unit of the hub
// allows in a minute (IoT Hub docs, "IoT Hub quotas and throttling", operation throttles).
var perUnit = map[Tier]float64{TierF1: 100, TierS1: 100, TierS2: 100, TierS3: 5000}

// maxUnits is from the same page: F1 is a single unit.
var maxUnits = map[Tier]int{TierF1: 1, TierS1: 200, TierS2: 200, TierS3: 10}

// Limits is what the hub is worth. The zero value means no limits.
type Limits struct {
	Tier  Tier
	Units int // 0: 1
}

// Validate reports a tier that doesn't exist or units that it can't have.
func (l Limits) Validate() error {
	if l.Tier == TierUnlimited {
		if l.Units != 0 {
			return fmt.Errorf("hub units are given without a hub tier: set the tier as well")
		}
		return nil
	}
	most, known := maxUnits[l.Tier]
	switch {
	case !known:
		return fmt.Errorf("hub tier %q is unknown: use F1, S1, S2 or S3, for B1 to B3 the S tier of the same number", l.Tier)
	case l.Units < 0 || l.Units > most:
		return fmt.Errorf("a hub of tier %s has 1 to %d units, not %d", l.Tier, most, l.Units)
	}
	return nil
}

// perSecond returns how many registry operations, and how many cloud-to-device sends, the hub takes in a second; 0 for
// no limit.
func (l Limits) perSecond() float64 {
	return perUnit[l.Tier] * float64(max(l.Units, 1)) / time.Minute.Seconds()
}
