// Package host is what schedulers and solvers have in common: a process that holds device connections. It asks the
// manager for the connection string of each device that it connects, so it needs no credentials of the hub.
package host
