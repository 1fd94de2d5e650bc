package netconn_test

import (
	"net"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/netconn"
)

// named is a connection with a name, and perhaps one below it.
type named struct {
	net.Conn
	name  string
	below net.Conn
}

func (n named) NetConn() net.Conn { return n.below }

// labelled has a method that named has not.
type labelled struct{ named }

func (l labelled) Label() string { return l.name }

func TestAs(t *testing.T) {
	t.Parallel()
	type labeller interface{ Label() string }
	end, other := net.Pipe()
	t.Cleanup(func() { end.Close(); other.Close() })
	inner := labelled{named{name: "inner", below: end}}
	for name, tc := range map[string]struct {
		conn net.Conn
		want string // empty for none
	}{
		"itself":      {inner, "inner"},
		"below":       {named{below: named{below: inner}}, "inner"},
		"the topmost": {labelled{named{name: "outer", below: inner}}, "outer"},
		"nowhere":     {named{below: end}, ""},
		"below nil":   {named{}, ""},
		"nil":         {nil, ""},
	} {
		found, ok := netconn.As[labeller](tc.conn)
		if ok != (tc.want != "") || ok && found.Label() != tc.want {
			t.Errorf("%s: found %v, %v", name, found, ok)
		}
	}
}
