package sockhub_test

// Options that are wrong in themselves are errors of who is given them, and leave nothing.

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
)

// badFraming has a header of no sensible size.
type badFraming struct {
	sockhub.Framing
	max int
}

func (f badFraming) MaxHeader() int { return f.max }

func TestOptionsThatAreWrong(t *testing.T) {
	tooLong := strings.Repeat("x", sockhub.MaxNameLen+1)
	for name, o := range map[string]sockhub.Options{
		"Name":       {Name: tooLong},
		"Unexpected": {Unexpected: sockhub.RefuseUnexpected + 1},
		"unexpected": {Unexpected: -1},
		"Duplicates": {Duplicates: -1},
		"Overflow":   {Overflow: sockhub.DisconnectPeer + 1},
	} {
		hub, err := sockhub.New(context.Background(), &o)
		if err == nil {
			hub.Close()
			t.Errorf("New takes a wrong %s", name)
		}
		if name == "Name" && !errors.Is(err, sockhub.ErrBadName) {
			t.Error(err)
		}
	}

	s := newStand(t, nil, nil)
	for name, o := range map[string]sockhub.ListenOptions{
		"Mode":       {Mode: sockhub.NamedRaw + 1},
		"mode":       {Mode: -1},
		"Overflow":   {Overflow: -1},
		"FileMode":   {FileMode: 0o1600},
		"Framing":    {Framing: badFraming{max: 65}},
		"header":     {Framing: badFraming{}},
		"MaxMessage": {MaxMessage: 256 << 20}, // InboundLimit is twice as much, but not the reads under way
	} {
		l, err := s.Listen(soon(t), "tcp", "127.0.0.1:0", &o)
		if err == nil {
			l.Close()
			t.Errorf("Listen takes a wrong %s", name)
		}
		ours, peer := net.Pipe()
		if _, err := s.ServeConn(soon(t), ours, &o); err == nil {
			t.Errorf("ServeConn takes a wrong %s", name)
		}
		closedBy(t, peer)
	}

	for name, o := range map[string]sockhub.DialOptions{
		"name that is missing":  {},
		"name that is too long": {Name: tooLong},
		"Mode":                  {Name: "w", Mode: -1},
		"mode":                  {Name: "w", Mode: sockhub.NamedRaw + 1},
		"Framing":               {Name: "w", Framing: badFraming{max: 65}},
		"Min":                   {Name: "w", Reconnect: &sockhub.Backoff{Min: -1}},
		"Max":                   {Name: "w", Reconnect: &sockhub.Backoff{Max: -1}},
		"Max below Min":         {Name: "w", Reconnect: &sockhub.Backoff{Min: 2, Max: 1}},
		"Factor":                {Name: "w", Reconnect: &sockhub.Backoff{Factor: 0.9}},
		"Jitter":                {Name: "w", Reconnect: &sockhub.Backoff{Jitter: 1.1}},
	} {
		_, err := s.Dial(soon(t), "tcp", "127.0.0.1:1", &o)
		if err == nil || errors.As(err, new(*net.OpError)) {
			t.Errorf("Dial with a wrong %s: %v", name, err)
		}
		if strings.HasPrefix(name, "name") != errors.Is(err, sockhub.ErrBadName) {
			t.Error(err)
		}
		ours, peer := net.Pipe()
		if _, err := s.Attach(soon(t), ours, &o); err == nil {
			t.Errorf("Attach takes a wrong %s", name)
		}
		closedBy(t, peer)
	}
	ours, peer := net.Pipe()
	if _, err := s.Attach(soon(t), ours, &sockhub.DialOptions{Name: "w", Reconnect: new(sockhub.Backoff)}); err == nil {
		t.Error("Attach takes Reconnect")
	}
	closedBy(t, peer)

	for name, o := range map[string]sockhub.ClientOptions{
		"Duplicates": {Duplicates: sockhub.ReplaceOld + 1},
		"Overflow":   {Overflow: -1},
	} {
		if _, err := s.Expect("w", &o); err == nil {
			t.Errorf("Expect takes a wrong %s", name)
		}
	}
	if st := s.Stats(); st.Listeners+st.Connecting+st.Conns+st.Expected != 0 {
		t.Errorf("something is left: %+v", st)
	}
}

// closedBy checks that the other end of a connection was closed.
func closedBy(t *testing.T, peer net.Conn) {
	t.Helper()
	defer peer.Close()
	peer.SetDeadline(time.Now().Add(patience))
	if _, err := peer.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection was not closed: %v", err)
	}
}

// A hub without any limit serves as one with limits does.
func TestNoLimitsAtAll(t *testing.T) {
	none := &sockhub.Options{
		Name: "w", MaxConns: -1, MaxPending: -1, MaxPendingPerSource: -1, MaxMessage: -1, StreamOver: -1, ConnInbound: -1, ConnOutbound: -1,
		InboundLimit: -1, OutboundLimit: -1, MemoryLimit: -1, HandshakeTimeout: -1, FrameTimeout: -1, WriteTimeout: -1, IdleTimeout: -1, Linger: -1,
	}
	for _, reuse := range []bool{false, true} {
		none.ReuseBuffers = reuse
		s, client := newStand(t, none, echo), newStand(t, none, nil)
		for _, network := range []string{"tcp", "udp"} {
			l, err := s.Listen(soon(t), network, "127.0.0.1:0", &sockhub.ListenOptions{
				MaxConns: -1, MaxMessage: -1, StreamOver: -1, ConnInbound: -1, ConnOutbound: -1, IdleTimeout: -1})
			if err != nil {
				t.Fatal(err)
			}
			c, err := client.Dial(soon(t), network, l.Addr().String(), &sockhub.DialOptions{Timeout: -1})
			if err != nil {
				t.Fatal(err)
			}
			sizes := []int{0, 1, 1000, 30_000}
			if network == "tcp" {
				sizes = append(sizes, 5<<20) // more than ConnInbound and ConnOutbound are by default
			}
			for i, size := range sizes {
				if err := c.Send(soon(t), make([]byte, size)); err != nil {
					t.Fatal(err)
				}
				if got := client.got(c, i+1)[i]; len(got) != size {
					t.Errorf("%s: %d bytes of %d came back", network, len(got), size)
				}
			}
		}
		if n, err := client.Broadcast(client.Conns(), []byte("x")); n != 2 || err != nil {
			t.Error(n, err)
		}
		if err := client.Shutdown(soon(t)); err != nil {
			t.Error(err)
		}
		if err := s.Shutdown(soon(t)); err != nil {
			t.Error(err)
		}
	}
}
