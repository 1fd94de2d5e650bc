package ports

import (
	"errors"
	"net"
	"strings"
	"testing"
)

func port(name, addr string) Port {
	return Port{Name: name, Addr: addr, Flag: name + "-addr", Env: "HUBJOBS_" + strings.ToUpper(name) + "_ADDR"}
}

func TestCheckNamesEveryPortThatIsTaken(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	err = Check(t.Context(), []Port{
		port("first", taken.Addr().String()), port("free", "127.0.0.1:0"), port("wrong", "127.0.0.1:port"),
	})
	var failed *Error
	if !errors.As(err, &failed) || len(failed.Failures) != 2 {
		t.Fatalf("error %v", err)
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines: %q", len(lines), err)
	}
	for _, part := range []string{taken.Addr().String() + " is taken", "first", "--first-addr", "HUBJOBS_FIRST_ADDR"} {
		if !strings.Contains(lines[0], part) {
			t.Errorf("%q lacks %q", lines[0], part)
		}
	}
	if !strings.Contains(lines[1], "can't listen on 127.0.0.1:port for wrong") {
		t.Errorf("line %q", lines[1])
	}
}

func TestCheckLetsGo(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := listener.Addr().String()
	listener.Close()
	for range 2 {
		if err := Check(t.Context(), []Port{port("one", addr)}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCheckRefusesOnePortTwice(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := listener.Addr().String()
	listener.Close()
	err = Check(t.Context(), []Port{port("one", addr), port("two", addr)})
	if err == nil || !strings.Contains(err.Error(), "two") || strings.Contains(err.Error(), "one-addr") {
		t.Errorf("error %v", err)
	}
}
