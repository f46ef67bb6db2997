package sockhub_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

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
		hub := openHub(t, nil)
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

// What a dialed unixgram socket has written is with the peer's system: it was with a
// buffer of ours.
func TestWrittenDatagramsAreWithThePeer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	srv, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	s := newStand(t, nil, nil)
	c, err := s.Dial(soon(t), "unixgram", path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		c.TrySend(make([]byte, 1000))
	}
	c.Close()
	written := s.end(c).Report.WrittenMessages
	var n uint64
	raw, err := srv.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Read(func(fd uintptr) bool {
		for buf := make([]byte, 2000); ; n++ {
			if _, _, err := syscall.Recvfrom(int(fd), buf, syscall.MSG_DONTWAIT); err != nil {
				return true
			}
		}
	})
	if n != written || n == 0 {
		t.Errorf("%d written, %d are there", written, n)
	}
}

// Listener.Close frees the path of a datagram socket, although a client lives, who can
// still be answered.
func TestListenerCloseFreesThePathOfDatagrams(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s, other, client := newStand(t, nil, nil), newStand(t, nil, nil), newStand(t, nil, nil)
	l, err := s.Listen(soon(t), "unixgram", path, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial(soon(t), "unixgram", path, &sockhub.DialOptions{Dialer: &net.Dialer{
		// It took the place of the hook that gives the socket an address.
		ControlContext: func(context.Context, string, string, syscall.RawConn) error { return nil },
	}})
	if err != nil {
		t.Fatal(err)
	}
	c.TrySend([]byte("hello"))
	there := s.first()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the file is there: %v", err)
	}
	if _, err := other.Listen(soon(t), "unixgram", path, nil); err != nil {
		t.Error(err)
	}
	if err := there.TrySend([]byte("still")); err != nil {
		t.Error(err)
	}
	client.got(c, 1)
}

// Packets over what cannot tell that one was cut are refused.
func TestWrappedUnixpacketIsRefused(t *testing.T) {
	s := newStand(t, nil, nil)
	inner, err := net.Listen("unixpacket", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Serve(foreign{inner}, nil); err != nil {
		t.Fatal(err)
	}
	p, err := net.Dial("unixpacket", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	greet(t, p, "").atEnd()
}

// foreign is a listener of connections of a type of its own.
type foreign struct{ net.Listener }

func (l foreign) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return struct{ net.Conn }{c}, nil
}

// A client that comes back is let in as soon as its old connection has ended, though the
// packets before that end were not read yet.
func TestUnixpacketComesBackAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := newStand(t, &sockhub.Options{ConnInbound: 500}, nil)
	if _, err := s.Expect("w", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Listen(soon(t), "unixpacket", path, &sockhub.ListenOptions{Mode: sockhub.Named}); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		nc, err := net.Dial("unixpacket", path)
		if err != nil {
			t.Fatal(err)
		}
		nc.SetDeadline(time.Now().Add(patience))
		io.WriteString(nc, "w")
		ok := make([]byte, 10)
		if n, err := nc.Read(ok); string(ok[:n]) != "OK" {
			t.Fatalf("connection %d: %q, %v", i, ok[:n], err)
		}
		for range i % 3 {
			nc.Write(make([]byte, 300))
		}
		nc.Close()
	}
}

// Packets over what cannot tell that one was cut are no connection in ServeConn either,
// which closes what it does not serve: they were cut in silence.
func TestWrappedPacketsAreUnsupported(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unixpacket", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, wrapped := range []bool{false, true} {
		s := newStand(t, nil, nil)
		p, err := net.Dial("unixpacket", path)
		if err != nil {
			t.Fatal(err)
		}
		nc, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if wrapped {
			nc = struct{ net.Conn }{nc}
		}
		c, err := s.ServeConn(soon(t), nc, &sockhub.ListenOptions{Mode: sockhub.Anonymous})
		if wrapped {
			if !errors.Is(err, errors.ErrUnsupported) {
				t.Fatal(err)
			}
			greet(t, p, "").atEnd()
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		p.Write([]byte("a packet"))
		s.got(c, 1)
		p.Close()
	}
}

// Datagrams of a client that this side has given an address can be answered, whatever hooks
// its Dialer has: with ControlContext it had none.
func TestUnixgramClientsCanBeAnswered(t *testing.T) {
	for name, d := range map[string]*net.Dialer{
		"no Dialer":      nil,
		"no hook":        {},
		"Control":        {Control: func(string, string, syscall.RawConn) error { return nil }},
		"ControlContext": {ControlContext: func(context.Context, string, string, syscall.RawConn) error { return nil }},
		"both": {
			Control:        func(string, string, syscall.RawConn) error { panic("ControlContext takes its place") },
			ControlContext: func(context.Context, string, string, syscall.RawConn) error { return nil },
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, client := newStand(t, nil, echo), newStand(t, nil, nil)
			path := filepath.Join(t.TempDir(), "s")
			if _, err := s.Listen(soon(t), "unixgram", path, nil); err != nil {
				t.Fatal(err)
			}
			c, err := client.Dial(soon(t), "unixgram", path, &sockhub.DialOptions{Dialer: d})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Send(soon(t), []byte("hello")); err != nil {
				t.Fatal(err)
			}
			client.got(c, 1)
		})
	}
}

// The hook's error is the dial's.
func TestControlContextThatFails(t *testing.T) {
	s := newStand(t, nil, nil)
	path := filepath.Join(t.TempDir(), "s")
	if _, err := s.Listen(soon(t), "unixgram", path, nil); err != nil {
		t.Fatal(err)
	}
	d := &net.Dialer{ControlContext: func(context.Context, string, string, syscall.RawConn) error { return errNoRoute }}
	if _, err := s.Dial(soon(t), "unixgram", path, &sockhub.DialOptions{Dialer: d}); !errors.Is(err, errNoRoute) {
		t.Error(err)
	}
}

// A path may fill the room that there is in a socket address, without a zero behind it. Then
// Linux tells of an address with the zero, which it does not take.
func TestUnixgramClientWithTheLongestPathIsAnswered(t *testing.T) {
	s := newStand(t, nil, echo)
	dir, err := os.MkdirTemp("", "s") // t.TempDir may be too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := filepath.Join(dir, "l")
	if _, err := s.Listen(soon(t), "unixgram", l, nil); err != nil {
		t.Fatal(err)
	}
	own := binary.NativeEndian.AppendUint16(nil, unix.AF_UNIX)
	own = append(own, dir+"/"...)
	own = append(own, strings.Repeat("x", unix.SizeofSockaddrUnix-len(own))...)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	wait := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		t.Fatal(err)
	}
	// Neither package net nor x/sys binds it.
	if _, _, errno := unix.Syscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&own[0])), uintptr(len(own))); errno != 0 {
		t.Fatal(errno)
	}
	if err := unix.Sendto(fd, []byte("hello"), 0, &unix.SockaddrUnix{Name: l}); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 10)
	if n, err := unix.Read(fd, got); err != nil || string(got[:n]) != "hello" {
		t.Errorf("the answer is %q, %v; %d datagrams were dropped", got[:max(n, 0)], err, s.Stats().Dropped)
	}
	if got, want := s.first().Peer().Remote.String(), string(own[2:]); got != want {
		t.Errorf("its address is %q, want %q", got, want)
	}
}

// Whatever has come in the place of a client's socket, it is not the client: it ends with the
// first datagram for it, not when nothing came from it for long.
func TestUnixgramClientWhosePathIsAnothersEnds(t *testing.T) {
	for name, replace := range map[string]func(t *testing.T, path string){
		"nothing": func(*testing.T, string) {},
		"a file": func(t *testing.T, path string) {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"a socket for streams": func(t *testing.T, path string) {
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		},
		"a file for the directory": func(t *testing.T, path string) {
			dir := filepath.Dir(path)
			if err := errors.Join(os.Remove(dir), os.WriteFile(dir, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStand(t, nil, nil)
			dir, err := os.MkdirTemp("", "s") // t.TempDir may be too long
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			l := &net.UnixAddr{Name: filepath.Join(dir, "l"), Net: "unixgram"}
			if _, err := s.Listen(soon(t), "unixgram", l.Name, &sockhub.ListenOptions{Mode: sockhub.Anonymous, IdleTimeout: -1}); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "d", "c")
			if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			client, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if _, err := client.WriteTo([]byte("hello"), l); err != nil {
				t.Fatal(err)
			}
			c := s.first()
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			replace(t, path)
			if err := c.Send(soon(t), []byte("who is there")); err != nil {
				t.Fatal(err)
			}
			s.end(c)
		})
	}
}

// Where the kernel refuses datagrams that leave as one, here because they have no checksums,
// they leave one by one, and in order.
func TestRefusedSegmentsLeaveOneByOne(t *testing.T) {
	const n = 50
	s := newStand(t, nil, nil)
	config := &net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1) })
		return err
	}}
	l, err := s.Listen(soon(t), "udp4", "127.0.0.1:0", &sockhub.ListenOptions{Config: config, Handler: func(*sockhub.Conn) sockhub.Handler {
		return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
			for i := range n {
				r.Send([]byte{m[0], byte(i), 0, 0}[:4-i/(n-1)]) // the last one is shorter
			}
		}}
	}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("udp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 100)
	for round := range 3 {
		if _, err := c.Write([]byte{byte(round)}); err != nil {
			t.Fatal(err)
		}
		for i := range n {
			k, err := c.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			if want := 4 - i/(n-1); k != want || buf[0] != byte(round) || buf[1] != byte(i) {
				t.Fatalf("%d of round %d: %v, of %d bytes", i, round, buf[:2], k)
			}
		}
	}
	if st := s.Hub.Stats(); st.Dropped > 0 {
		t.Errorf("%+v", st)
	}
}
