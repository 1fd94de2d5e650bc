package azure_test

import (
	"io"
	"net"
	"sync"
	"testing"
)

// proxy stands between a client and a server, and can cut what runs through it.
type proxy struct {
	addr     string
	backend  string
	listener net.Listener

	mu    sync.Mutex
	conns map[net.Conn]bool
	total int
	wg    sync.WaitGroup
}

func newProxy(t *testing.T, backend string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: listener.Addr().String(), backend: backend, listener: listener, conns: make(map[net.Conn]bool)}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

// cut closes all connections; new ones may come at once. It returns how many there were.
func (p *proxy) cut() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.conns)
	for c := range p.conns {
		_ = c.Close()
		delete(p.conns, c)
	}
	return n
}

// count returns how many connections there have been.
func (p *proxy) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.total
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.backend)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.conns[client] = true
		p.total++
		p.mu.Unlock()
		p.wg.Go(func() { p.relay(client, server) })
	}
}

// relay ends when both directions have, so that nothing is lost that one side sent before it closed.
func (p *proxy) relay(client, server net.Conn) {
	var wg sync.WaitGroup
	for _, c := range [][2]net.Conn{{client, server}, {server, client}} {
		wg.Go(func() {
			_, _ = io.Copy(c[0], c[1])
			_ = c[0].(*net.TCPConn).CloseWrite()
		})
	}
	wg.Wait()
	_ = client.Close()
	_ = server.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, client)
}
