package fault

import "testing"

func TestGlob(t *testing.T) {
	t.Parallel()
	for pattern, names := range map[string]map[string]bool{
		"sensor-1":   {"sensor-1": true, "sensor-10": false, "Sensor-1": false, "": false},
		"sensor-*":   {"sensor-": true, "sensor-1": true, "a-sensor-1": false},
		"*-1":        {"-1": true, "sensor-1": true, "sensor-10": false},
		"*":          {"": true, "sensor": true},
		"a*b*c":      {"abc": true, "axxbyyc": true, "abcabc": true, "acb": false, "ab": false},
		"a*a":        {"aa": true, "a": false, "aba": true},
		"a**b":       {"ab": true, "axb": true},
		"dev?(1)[2]": {"dev?(1)[2]": true, "devx(1)[2]": false},
		"jobs/*":     {"jobs/subscriptions/jobs": true, "jobs": false},
	} {
		for name, want := range names {
			if got := glob(pattern, name); got != want {
				t.Errorf("%s on %q: %v", pattern, name, got)
			}
		}
	}
}
