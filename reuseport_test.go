package sockhub_test

// ReusePort.

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/sockhub/sockhub"
)

// share opens a listener that shares its port, or skips the test where new
// connections are not spread over those who share one.
func (s *stand) share(address string, mode sockhub.Mode) *sockhub.Listener {
	s.t.Helper()
	l, err := s.Listen(soon(s.t), "tcp4", address, &sockhub.ListenOptions{ReusePort: true, Mode: mode})
	if errors.Is(err, errors.ErrUnsupported) {
		s.t.Skip(err)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	switch runtime.GOOS {
	case "linux", "android", "freebsd":
	default:
		s.t.Skip("which of the listeners gets a connection is not known here")
	}
	return l
}

// enough dials spread over two listeners that neither is left without; if each
// goes either way as a coin does, they fail once in 2 to the power of this.
const enough = 200

func TestHubsShareAPort(t *testing.T) {
	t.Parallel()
	a, b := newStand(t, nil, echo), newStand(t, nil, echo)
	client := newStand(t, nil, nil)
	l := a.share("127.0.0.1:0", sockhub.Anonymous)
	b.share(l.Addr().String(), sockhub.Anonymous)
	if l, err := client.Listen(soon(t), "tcp4", l.Addr().String(), nil); err == nil {
		l.Close()
		t.Error("a listener without ReusePort shares the port")
	}
	for dials := 0; a.Stats().Conns == 0 || b.Stats().Conns == 0; dials++ {
		if dials == enough {
			t.Fatalf("%d dials, of which %d and %d have arrived", dials, a.Stats().Conns, b.Stats().Conns)
		}
		c, err := client.Dial(soon(t), "tcp4", l.Addr().String(), &sockhub.DialOptions{Mode: sockhub.Anonymous})
		if err != nil {
			t.Fatal(err)
		}
		echoThrough(t, client, c, bodies(dials, []int{10, 0, 10_000}))
	}
}

func TestAKilledProcessTakesNothingFromThoseThatShareItsPort(t *testing.T) {
	t.Parallel()
	server := newStand(t, nil, echo)
	client := newStand(t, nil, nil)
	addr := server.share("127.0.0.1:0", sockhub.Named).Addr().String()
	other := startChild(t, "echo tcp4 "+addr+" share")
	if got := other.line("LISTENING"); got != addr {
		t.Fatalf("the child listens on %s, want %s", got, addr)
	}
	dial := func(i int) (c *sockhub.Conn, ours bool) {
		c, err := client.Dial(soon(t), "tcp4", addr, &sockhub.DialOptions{Name: fmt.Sprint("peer ", i)})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Send(soon(t), []byte("STATS")); err != nil {
			t.Fatal(err)
		}
		// We echo this, and the child answers it.
		return c, string(client.got(c, 1)[0]) == "STATS"
	}
	var ours, theirs []*sockhub.Conn
	dials := 0
	for ; len(ours) < 5 || len(theirs) < 5; dials++ {
		if dials == enough {
			t.Fatalf("%d dials, of which %d and %d have arrived", dials, len(ours), len(theirs))
		}
		if c, mine := dial(dials); mine {
			ours = append(ours, c)
		} else {
			theirs = append(theirs, c)
		}
	}

	msgs := bodies(1, slices.Repeat([]int{0, 1, 100, 5000, 40_000}, 20))
	send := func(c *sockhub.Conn, msgs [][]byte) {
		t.Helper()
		if n, err := c.SendMany(soon(t), slices.Values(msgs)); n != len(msgs) || err != nil {
			t.Errorf("SendMany accepted %d of %d, %v", n, len(msgs), err)
		}
	}
	for _, c := range append(slices.Clone(ours), theirs...) {
		send(c, msgs[:50])
	}
	if err := other.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, c := range ours {
		send(c, msgs[50:])
	}
	for _, c := range ours {
		if err := sameBodies(client.got(c, 1+len(msgs))[1:], msgs); err != nil {
			t.Error(err)
		}
	}
	for _, c := range theirs {
		client.end(c)
	}
	<-other.done
	for i := range 20 {
		if _, mine := dial(dials + i); !mine {
			t.Error("a new connection has reached the dead process")
		}
	}
	if n := server.Stats().Conns; n != len(ours)+20 {
		t.Errorf("%d connections, want %d", n, len(ours)+20)
	}
}

func TestAUnixSocketIsNotShared(t *testing.T) {
	t.Parallel()
	s := newStand(t, nil, nil)
	network, addr := address(t, "unix")
	if _, err := s.Listen(soon(t), network, addr, &sockhub.ListenOptions{ReusePort: true}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Listen: %v, want ErrUnsupported", err)
	}
}
