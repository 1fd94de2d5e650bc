// Package steps holds the step runners of a solver: Simulate, which only waits, and Exec, which runs executables.
package steps
