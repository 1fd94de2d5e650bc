// Package e2e holds the tests of both consoles against the emulator of the repository, each as a process of its own. The
// consoles' library was written by others for the real hub, so these tests judge the emulator as much as the consoles.
package e2e
