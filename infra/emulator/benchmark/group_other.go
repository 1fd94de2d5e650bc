//go:build !unix

package main

import "os/exec"

// ownGroup does nothing where there are no groups of processes.
func ownGroup(*exec.Cmd) {}

// killGroup ends a command.
func killGroup(cmd *exec.Cmd) error { return cmd.Process.Kill() }

// terminate ends a command where it can't be asked to.
func terminate(cmd *exec.Cmd) error { return cmd.Process.Kill() }
