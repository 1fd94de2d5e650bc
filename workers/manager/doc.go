// Package manager is the role that holds the credentials of the hub. It runs the workflows Job and Relay, makes and
// deletes device identities, sends cloud-to-device messages, routes what devices send and what the hub says became of
// messages, and hands out connection strings over HTTP to those who know the API key.
package manager
