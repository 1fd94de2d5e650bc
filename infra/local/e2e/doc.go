// Package e2e holds the tests of all of hubjobs together: Temporal, the emulator, the three roles, the command line and
// the consoles, each through what a person or another program would use.
package e2e
