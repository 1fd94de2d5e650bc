// Package conformance_test holds the emulator against the documentation of the
// services that it stands for: one case for each documented behaviour, through
// clients that know nothing of the emulator. The table in the emulator's README is
// checked against the cases, so that it promises neither too much nor too little.
package conformance_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// azeventhubs v2.0.2 forgets the goroutine that renews the token of a link.
	const renewer = "github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2/internal.(*Namespace).startNegotiateClaimRenewer.func3"
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction(renewer), goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(commandDir) // empty if no case needed the command
		os.Exit(code)
	}))
}

// behaviour is something that the documentation of a service says.
type behaviour struct {
	// feature is a row of the README's table.
	feature string
	// says is the behaviour in a few words, and the name of the case.
	says string
	// source is where the behaviour is documented: the title of a page of the
	// vendor's documentation, a clause of a standard, or a file of an SDK.
	source string
	// holds fails the test where the emulator behaves differently. It has an
	// emulator of its own.
	holds func(t *testing.T, w *world)
}

// area is a row group of the README's table: its features and their cases.
type area struct {
	name string
	// emulated are the cases of features that the table says "yes" to.
	emulated []behaviour
	// refused are those of features that the table says "no" to: a client that
	// asks for one is told so.
	refused []behaviour
}

var areas = []area{
	mqttDevices, amqpDevices, httpDevices, access,
	cloudToDevice, methods, twins, registry, queries,
	serviceBus, eventHubs, limitsAndFaults, durability,
}

func TestBehaviours(t *testing.T) {
	t.Parallel()
	for _, a := range areas {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			for _, b := range slices.Concat(a.emulated, a.refused) {
				if b.source == "" || b.feature == "" {
					t.Errorf("%q has no source or no feature", b.says)
				}
				t.Run(b.feature+"/"+b.says, func(t *testing.T) {
					t.Parallel()
					b.holds(t, newWorld(t))
				})
			}
		})
	}
}

// TestTableIsTrue compares the README's table with the cases. A feature that is
// promised has a case that shows it, one that is denied has a case that shows the
// refusal, and what has a case is in the table.
func TestTableIsTrue(t *testing.T) {
	t.Parallel()
	told := readTable(t)
	shown := make(map[string]string)
	for _, a := range areas {
		for _, b := range a.emulated {
			shown[a.name+": "+b.feature] = "emulated"
		}
		for _, b := range a.refused {
			shown[a.name+": "+b.feature] = "not emulated"
		}
	}
	for feature, is := range told {
		if shown[feature] != is {
			t.Errorf("the README says that %q is %s, and the cases show that it is %q", feature, is, shown[feature])
		}
	}
	for feature, is := range shown {
		if told[feature] == "" {
			t.Errorf("the README's table lacks %q, which is %s", feature, is)
		}
	}
}

// readTable returns what the README says of each feature, by "area: feature". A
// row of its table is | area | emulated; emulated | not emulated |.
func readTable(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\n## What is emulated\n")
	if !found {
		t.Fatal("the README has no section \"What is emulated\"")
	}
	section, _, _ := strings.Cut(rest, "\n## ")
	features := make(map[string]string)
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 3 {
			continue
		}
		area := strings.TrimSpace(cells[0])
		if area == "" || strings.HasPrefix(area, "-") {
			continue // the head
		}
		for i, is := range []string{"emulated", "not emulated"} {
			for feature := range strings.SplitSeq(cells[i+1], ";") {
				if feature = strings.TrimSpace(feature); feature != "" {
					features[area+": "+feature] = is
				}
			}
		}
	}
	if len(features) == 0 {
		t.Fatal("the README's table is empty")
	}
	return features
}
