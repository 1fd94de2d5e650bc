// Package netconn looks through connections that wrap others.
package netconn

import "net"

// As finds the first of a connection and those below it, as the method NetConn of
// crypto/tls.Conn leads to them, that has the methods of T.
func As[T any](nc net.Conn) (T, bool) {
	for nc != nil {
		if found, ok := nc.(T); ok {
			return found, true
		}
		wrapper, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		nc = wrapper.NetConn()
	}
	var none T
	return none, false
}
