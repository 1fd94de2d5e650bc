// Package integration holds the tests that run the roles of package workers against a real Temporal server.
package integration
