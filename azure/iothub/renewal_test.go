package iothub

import (
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/emulatortest"
	"github.com/hubjobs/hubjobs/job"
)

// A hub refuses a link whose connection's claim has expired, so a connection that outlives several signatures has
// renewed them.
func TestClaimIsRenewed(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(e.CAPEM())
	c, err := New(Config{ConnectionString: e.HubConnectionString(), HTTPSAddr: e.HTTPSAddr(), AMQPSAddr: e.AMQPSAddr(), RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	const life = 3 * time.Second
	c.amqp.auth.(*policyKey).life = life
	ctx := t.Context()
	if _, err := c.EnsureDevice(ctx, "d"); err != nil {
		t.Fatal(err)
	}
	first, err := c.amqp.get(ctx)
	if err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(2 * life)
	for i := 0; time.Now().Before(until); i++ {
		if err := c.sendAlone(ctx, deviceboundMessage("d", job.Message{ID: fmt.Sprint("m", i)}, time.Minute, time.Now())); err != nil {
			t.Fatal(err)
		}
		select {
		case <-time.After(life / 4):
		case <-first.conn.Done():
			t.Fatalf("the connection ended: %v", first.conn.Err())
		}
	}
	if now, err := c.amqp.get(ctx); now != first {
		t.Errorf("the connection is another one, %v", err)
	}
}
