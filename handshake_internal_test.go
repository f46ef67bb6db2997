package sockhub

// What a handshake leaves behind: no claim, and no end of one that was let in.

import (
	"net"
	"testing"
	"time"
)

// lingering takes its time to hear of the end.
type lingering struct {
	BaseHandler
	until chan struct{}
}

func (l *lingering) Disconnected(Disconnection) { <-l.until }

// While the last connection of a client that is dialed again has not ended for
// good, another one waits for that. Of one that has failed meanwhile nothing is kept.
func TestFailedRedialLeavesNoClaim(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.(*net.TCPListener).SetDeadline(time.Now().Add(10 * time.Second))
	hub, err := New(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer hub.Close()
	until := make(chan struct{})
	defer close(until)
	c, err := hub.Dial(t.Context(), "tcp", l.Addr().String(), &DialOptions{
		Mode: Anonymous, Timeout: 100 * time.Millisecond, Reconnect: &Backoff{Min: time.Millisecond, Max: time.Millisecond},
		Handler: func(*Conn) Handler { return &lingering{until: until} },
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		nc, err := l.Accept() // when the attempt before has failed
		if err != nil {
			t.Fatal(err)
		}
		nc.Close()
	}
	hub.mu.Lock()
	n := len(c.client.claims)
	hub.mu.Unlock()
	if n > 1 { // that of the attempt under way
		t.Errorf("%d claims wait for the end of a connection", n)
	}
}

// Who was let in is not ended any more by what is decided about handshakes.
func TestGiveUpOfOneThatWasLetIn(t *testing.T) {
	hub, err := New(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer hub.Close()
	ours, peer := net.Pipe()
	defer peer.Close()
	c, err := hub.ServeConn(t.Context(), ours, &ListenOptions{Mode: Anonymous})
	if err != nil {
		t.Fatal(err)
	}
	c.giveUp(errEvicted)
	if err := c.endReason(); err != nil {
		t.Error(err)
	}
}
