package sockhub

// What a handshake leaves behind: no claim, and no end of one that was let in.

import (
	"net"
	"net/netip"
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

// Nor by what is decided about those who are not known yet, when it has been known just now.
func TestEndOfPrefacesEndsNobodyWhoWasHandedOn(t *testing.T) {
	hub, err := New(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer hub.Close()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := hub.Serve(inner, &ListenOptions{Mode: Anonymous})
	if err != nil {
		t.Fatal(err)
	}
	ours, peer := net.Pipe()
	defer peer.Close()
	p := &preface{hub: hub, l: l, nc: ours, peer: peerOf(ours, "tcp", ""), closed: make(chan struct{})}
	hub.mu.Lock()
	if p.entry, _, err = hub.pendLocked(p.peer, p); err != nil {
		t.Fatal(err)
	}
	hub.prefaces[p] = struct{}{}
	hub.mu.Unlock()
	defer func() {
		hub.mu.Lock()
		defer hub.mu.Unlock()
		delete(hub.prefaces, p)
	}()
	hub.startAccepted(l, ours, p, l.set, nil) // its goroutine has done so, and nothing since
	if s := hub.Stats(); s.Connecting+s.Conns != 1 {
		t.Errorf("there are %d and %d connections", s.Connecting, s.Conns)
	}
	c := (<-hub.Events()).Unknown[0]
	hub.failPrefaces(l).Wait()
	if err := peer.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Write([]byte{0, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	if b := <-hub.Events(); len(b.Received) != 1 || b.Received[0].Conn != c {
		t.Errorf("%+v: %v", b, c.endReason())
	}
}

// Who has many addresses of one IPv6 network is one source, and so is a user on Unix sockets.
func TestSourceOfAHandshake(t *testing.T) {
	at := func(ip string) Peer { return newPeer("tcp", nil, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(ip))) }
	of := func(uid uint32) Peer { return Peer{Network: "unix", Cred: &Cred{UID: uid}} }
	for _, test := range []struct {
		a, b Peer
		same bool
	}{
		{at("10.0.0.1:1"), at("10.0.0.1:2"), true},
		{at("10.0.0.1:1"), at("[::ffff:10.0.0.1]:2"), true},
		{at("10.0.0.1:1"), at("10.0.0.2:1"), false},
		{at("[2001:db8::1]:1"), at("[2001:db8::ffff:0:0:2]:1"), true},
		{at("[2001:db8::1]:1"), at("[2001:db8:0:1::1]:1"), false},
		{of(1), of(1), true},
		{of(1), of(2), false},
		{of(1), Peer{}, false},
		{of(0), at("10.0.0.1:1"), false},
	} {
		if same := sourceOf(test.a) == sourceOf(test.b); same != test.same {
			t.Errorf("%v and %v: one source is %v", test.a, test.b, same)
		}
	}
}
