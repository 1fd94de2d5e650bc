// Package sdks holds tests that use the emulator through the SDKs of the cloud's
// vendor in other languages, unmodified, as the program of somebody else would.
// The SDKs judge the emulator: they know nothing of it.
//
// The folder javascript holds the cases of the JavaScript SDKs, for Node's own test
// runner; each becomes a test of this package:
//
//	go test ./infra/emulator/sdks -v -run TestJavaScript/service
//
// The SDKs come from the npm registry into the user's cache. Most of them know only
// the ports of the cloud, so each file of cases gets an emulator with those ports on
// a loopback address of its own. Where a process may not listen on them, a script
// leads connections to others.
//
// Without Node, or with neither the SDKs nor a way to the registry, the cases are
// skipped, which the output says; with the variable CI set, a missing registry is a
// failure.
package sdks
