package sockhub_test

import (
	"bytes"
	"errors"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockhub/sockhub"
)

// What Linux does with datagrams, and with packets, that package packet has to make up for.

// answered sends a datagram, and wants it back.
func answered(t *testing.T, from net.Addr, to net.Addr) {
	t.Helper()
	c, err := net.ListenUDP("udp", from.(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.WriteTo([]byte("who is there"), to); err != nil {
		t.Skip(err)
	}
	got := make([]byte, 100)
	c.SetReadDeadline(time.Now().Add(patience))
	if n, _, err := c.ReadFrom(got); err != nil || string(got[:n]) != "who is there" {
		t.Errorf("the answer is %q, %v", got[:n], err)
	}
}

// A broadcast is answered from the address of the interface that it came by.
func TestBroadcastIsAnswered(t *testing.T) {
	for _, network := range []string{"udp4", "udp"} {
		t.Run(network, func(t *testing.T) {
			_, l := packetHub(t, network, ":0", true, nil, sockhub.ListenOptions{})
			to := &net.UDPAddr{IP: net.IPv4(127, 255, 255, 255), Port: l.Addr().(*net.UDPAddr).Port}
			answered(t, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, to)
		})
	}
}

// A link-local address is nothing without its device: also when who has sent to it has an
// address of another kind.
func TestLinkLocalIsAnswered(t *testing.T) {
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, device := range interfaces {
		var local, global *net.UDPAddr
		addrs, _ := device.Addrs()
		for _, a := range addrs {
			switch ip, _, _ := net.ParseCIDR(a.String()); {
			case ip.To4() != nil:
			case ip.IsLinkLocalUnicast():
				local = &net.UDPAddr{IP: ip, Zone: device.Name}
			case ip.IsGlobalUnicast():
				global = &net.UDPAddr{IP: ip}
			}
		}
		if local == nil || global == nil {
			continue
		}
		seen := make(chan net.Addr, 2)
		hub, err := sockhub.New(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer hub.Close()
		l, err := hub.Listen(t.Context(), "udp6", ":0", &sockhub.ListenOptions{Handler: func(c *sockhub.Conn) sockhub.Handler {
			seen <- c.Peer().Local
			return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(m) }}
		}})
		if err != nil {
			t.Fatal(err)
		}
		to := *local
		to.Port = l.Addr().(*net.UDPAddr).Port
		answered(t, global, &to)
		answered(t, local, &to)
		for range 2 {
			if got := <-seen; got.String() != to.String() {
				t.Errorf("it came to %v, want %v", got, &to)
			}
		}
		return
	}
	t.Skip("no interface has both a link-local and a global address of IPv6")
}

// What a peer has sent before it went away is received, although our answer to the first
// of it has met nobody.
func TestDatagramsBeforeARefusal(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // so that they are all there at the first answer
	for range 10 {
		peer, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		s := newStand(t, nil, nil)
		var got atomic.Int64
		ended := make(chan error, 1)
		c, err := s.Dial(soon(t), "udp4", peer.LocalAddr().String(), &sockhub.DialOptions{Handler: func(*sockhub.Conn) sockhub.Handler {
			return &handlerFuncs{
				message:      func(r *sockhub.Reply, m []byte) { got.Add(1); r.Send(m) },
				disconnected: func(d sockhub.Disconnection) { ended <- d.Err },
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		c.TrySend([]byte("here I am"))
		_, from, err := peer.ReadFrom(make([]byte, 100))
		if err != nil {
			t.Fatal(err)
		}
		const n = 100
		for range n {
			peer.WriteTo([]byte("one of many"), from)
		}
		peer.Close()
		c.TrySend([]byte("are you there"))
		if err, got := <-ended, got.Load(); got != n {
			t.Fatalf("%d of %d, and then %v; %d dropped", got, n, err, s.Stats().Dropped)
		}
	}
}

// One datagram is one message, whatever else a socket is asked to tell of each.
func TestDatagramsOfASocketWithTimestamps(t *testing.T) {
	stamps := &net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
			if err == nil {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPING, unix.SOF_TIMESTAMPING_SOFTWARE|unix.SOF_TIMESTAMPING_RX_SOFTWARE)
			}
		})
		return err
	}}
	const size, n = 100, 5
	got := make(chan []byte, n)
	s := newStand(t, nil, nil)
	l, err := s.Listen(soon(t), "udp4", "127.0.0.1:0", &sockhub.ListenOptions{Config: stamps, Handler: func(*sockhub.Conn) sockhub.Handler {
		return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { got <- bytes.Clone(m) }}
	}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("udp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) })
	if err != nil {
		t.Skip(err)
	}
	if _, err := c.Write(pattern(n * size)); err != nil { // n datagrams, which arrive as one
		t.Fatal(err)
	}
	for i := range n {
		if m := <-got; !bytes.Equal(m, pattern(n * size)[i*size:][:size]) {
			t.Fatalf("message %d has %d bytes", i, len(m))
		}
	}
}

// Linux tells of a reset before it gives the packets that came first.
func TestUnixpacketBeforeAReset(t *testing.T) {
	const n = 20
	path := filepath.Join(t.TempDir(), "s")
	s := newStand(t, nil, nil)
	greeted, left := make(chan struct{}), make(chan struct{})
	got := 0
	ended := make(chan error, 1)
	_, err := s.Listen(soon(t), "unixpacket", path, &sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler {
		return &handlerFuncs{
			message: func(r *sockhub.Reply, m []byte) {
				if got++; got == 1 {
					r.Send([]byte("nobody reads this"))
					r.Flush()
					close(greeted)
					<-left
				}
			},
			disconnected: func(d sockhub.Disconnection) { ended <- d.Err },
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unixpacket", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("first"))
	<-greeted
	for range n - 1 {
		if _, err := c.Write([]byte("another")); err != nil {
			t.Fatal(err)
		}
	}
	awaitPacket(t, c)
	c.Close()
	close(left)
	if err := <-ended; got != n {
		t.Errorf("%d packets of %d, and then %v", got, n, err)
	}
}

// awaitPacket waits until there is something to read, and leaves it there.
func awaitPacket(t *testing.T, c net.Conn) {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Read(func(fd uintptr) bool {
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return err != unix.EAGAIN
	})
}

// A name may be longer than a message.
func TestLongNameAndSmallMaxMessage(t *testing.T) {
	for _, network := range []string{"unix", "unixpacket"} {
		t.Run(network, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			s := newStand(t, nil, nil)
			if _, err := s.Listen(soon(t), network, path, &sockhub.ListenOptions{Mode: sockhub.Named, MaxMessage: 16}); err != nil {
				t.Fatal(err)
			}
			name := strings.Repeat("n", sockhub.MaxNameLen)
			c, err := newStand(t, nil, nil).Dial(soon(t), network, path, &sockhub.DialOptions{Mode: sockhub.Named, Name: name})
			if err != nil {
				t.Fatal(err)
			}
			c.TrySend(make([]byte, 17))
			if err := s.end(s.first()).Err; !errors.Is(err, sockhub.ErrMessageTooLarge) {
				t.Errorf("ended with %v, want ErrMessageTooLarge", err)
			}
		})
	}
}
