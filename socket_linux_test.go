package sockhub_test

// What Linux sockets do: resets behind data, keep-alive, credentials.

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sockhub/sockhub"
)

// sockets counts the open sockets of this process.
func sockets(t *testing.T) (n int) {
	t.Helper()
	for fd := range openFDs(t) {
		target, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		if strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n
}

func openFDs(t *testing.T) map[int]bool {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	fds := make(map[int]bool)
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil {
			fds[fd] = true
		}
	}
	return fds
}

// Data and the reset behind it come before the hub looks, so that it gets one
// edge for both. Where the readers are held that is so for every client. Not
// parallel: it counts the sockets of the process.
func TestDataWithAResetBehindItIsDelivered(t *testing.T) {
	tests := []struct {
		mode sockhub.Mode
		held bool
	}{{sockhub.Anonymous, false}, {sockhub.Anonymous, true}, {sockhub.Named, false}, {sockhub.Named, true}}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%v, held %v", tt.mode, tt.held), func(t *testing.T) {
			const clients, each = 2000, 3
			before := sockets(t)
			release := make(chan struct{})
			o := &sockhub.Options{MaxPending: clients, MaxPendingPerSource: clients, HandshakeTimeout: patience}
			if tt.held {
				o.Admit = func(sockhub.Peer) error { <-release; return nil }
			}
			s := newStand(t, o, nil)
			mode := tt.mode
			l := s.listen("tcp4", &sockhub.ListenOptions{Mode: mode})
			var wg sync.WaitGroup
			for w := range 8 {
				wg.Go(func() {
					for i := w; i < clients; i += 8 {
						nc, err := net.Dial("tcp4", l.Addr().String())
						if err != nil {
							t.Error(err)
							return
						}
						msgs := [][]byte{fmt.Appendf(nil, "client %d", i), nil, body(i, 2, i)}
						data := wire(msgs...)
						if mode == sockhub.Named {
							data = append(wire(fmt.Appendf(nil, "name %d", i)), data...)
						}
						data = append(data, wire(make([]byte, 100))[:i%20]...) // the beginning of one more
						if _, err := nc.Write(data); err != nil {
							t.Error(err)
						}
						nc.(*net.TCPConn).SetLinger(0)
						nc.Close()
					}
				})
			}
			wg.Wait()
			close(release)
			s.until("all ends", func() bool { return len(s.gone) == clients })
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.conns) != clients || s.count != clients*each {
				t.Errorf("%d connections and %d messages, want %d and %d", len(s.conns), s.count, clients, clients*each)
			}
			for _, c := range s.conns {
				var i int
				if _, err := fmt.Sscanf(string(s.msgs[c][0]), "client %d", &i); err != nil {
					t.Fatalf("%v: %q", c, s.msgs[c][0])
				}
				if err := sameBodies(s.msgs[c][1:], [][]byte{nil, body(i, 2, i)}); err != nil {
					t.Errorf("client %d: %v", i, err)
				}
				// A write of ours, OK, may have met the reset first.
				if d := s.gone[c]; len(d) != 1 || !errors.Is(d[0].Err, syscall.ECONNRESET) && !errors.Is(d[0].Err, syscall.EPIPE) {
					t.Errorf("client %d ended with %v", i, d)
				}
			}
			st := s.Stats()
			if st.Conns != 0 || st.Connecting != 0 || st.Accepted != clients || st.Disconnected != clients {
				t.Errorf("%+v", st)
			}
			if n := sockets(t); n != before {
				t.Errorf("%d sockets open, %d before", n, before)
			}
		})
	}
}

// socketOf finds the descriptor of a connection of this process.
func socketOf(t *testing.T, local, remote net.Addr) int {
	t.Helper()
	is := func(sa unix.Sockaddr, err error, want net.Addr) bool {
		if err != nil {
			return false
		}
		addr := want.(*net.TCPAddr).AddrPort()
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)) == netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
		case *unix.SockaddrInet6:
			return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port)) == netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
		}
		return false
	}
	for fd := range openFDs(t) {
		here, err1 := unix.Getsockname(fd)
		there, err2 := unix.Getpeername(fd)
		if is(here, err1, local) && is(there, err2, remote) {
			return fd
		}
	}
	t.Fatalf("no socket from %v to %v", local, remote)
	return -1
}

type keepAlive struct{ On, Idle, Interval, Count, UserTimeout, NoDelay int }

func keepAliveOf(t *testing.T, c *sockhub.Conn) (k keepAlive) {
	t.Helper()
	fd := socketOf(t, c.Peer().Local, c.Peer().Remote)
	for _, o := range []struct {
		level, name int
		to          *int
	}{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, &k.On},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, &k.Idle},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, &k.Interval},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, &k.Count},
		{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, &k.UserTimeout},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, &k.NoDelay},
	} {
		n, err := unix.GetsockoptInt(fd, o.level, o.name)
		if err != nil {
			t.Fatal(err)
		}
		*o.to = n
	}
	return k
}

func TestKeepAliveIsSetOnAcceptedAndDialedSockets(t *testing.T) {
	theirs := net.KeepAliveConfig{Enable: true, Idle: 77e9, Interval: 7e9, Count: 5}
	tests := []struct {
		name string
		lo   *sockhub.ListenOptions
		do   *sockhub.DialOptions
		want keepAlive
	}{
		{"default", nil, &sockhub.DialOptions{Name: "c"}, keepAlive{1, 15, 5, 3, 0, 1}},
		{
			"the user's own",
			&sockhub.ListenOptions{Config: &net.ListenConfig{KeepAliveConfig: theirs}},
			&sockhub.DialOptions{Name: "c", Dialer: &net.Dialer{KeepAliveConfig: theirs}},
			keepAlive{1, 77, 7, 5, 0, 1},
		},
	}
	for _, kind := range kinds() {
		if !strings.HasPrefix(kind, "tcp") {
			continue
		}
		for _, tt := range tests {
			t.Run(kind+"/"+tt.name, func(t *testing.T) {
				s := newStand(t, nil, nil)
				l := s.listen(kind, tt.lo)
				client := newStand(t, nil, nil)
				c, err := client.Dial(soon(t), kind, l.Addr().String(), tt.do)
				if err != nil {
					t.Fatal(err)
				}
				for what, c := range map[string]*sockhub.Conn{"accepted": s.first(), "dialed": c} {
					if diff := cmp.Diff(tt.want, keepAliveOf(t, c)); diff != "" {
						t.Errorf("%s socket (-want +got):\n%s", what, diff)
					}
				}
			})
		}
	}
}

// A listener that was inherited, as one is for a restart, has no keep-alive of its
// own to set.
func TestServeKeepsConnectionsAlive(t *testing.T) {
	s := newStand(t, nil, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Serve(l, nil); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write(frame("n"))
	if diff := cmp.Diff(keepAlive{1, 15, 5, 3, 0, 1}, keepAliveOf(t, s.first())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Of what comes before a peer is let in, a KiB is read, whatever the pieces.
func TestWhatIsReadBeforeTheNameIsLimited(t *testing.T) {
	asked, refuse := make(chan struct{}), make(chan struct{})
	s := newStand(t, &sockhub.Options{Admit: func(sockhub.Peer) error {
		close(asked)
		<-refuse
		return errors.New("no")
	}}, nil)
	c, err := net.Dial("tcp4", s.listen("tcp4", nil).Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defer close(refuse)
	name := frame(strings.Repeat("n", sockhub.MaxNameLen))
	begun := len(name) - 1
	c.Write(name[:begun])
	unread := func() int {
		n, err := unix.IoctlGetInt(socketOf(t, c.RemoteAddr(), c.LocalAddr()), unix.TIOCINQ)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, "the name has begun", func() bool { return s.Stats().Connecting == 1 && unread() == 0 })
	const more = 5000
	c.Write(make([]byte, more)) // the end of the name, and what may not be read yet
	<-asked
	if read := begun + more - unread(); read <= begun || read > 1024 {
		t.Errorf("%d bytes were read", read)
	}
}

func TestPeerCredentialsOfUnixSockets(t *testing.T) {
	for _, kind := range []string{"unix", "abstract"} {
		s := newStand(t, nil, nil)
		dialHub(t, s.listen(kind, &sockhub.ListenOptions{Admit: sockhub.UID(uint32(os.Getuid()))}), "me")
		want := &sockhub.Cred{PID: os.Getpid(), UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
		if diff := cmp.Diff(want, s.first().Peer().Cred); diff != "" {
			t.Errorf("%s (-want +got):\n%s", kind, diff)
		}
		p := dialHub(t, s.listen(kind, &sockhub.ListenOptions{Admit: sockhub.UID(uint32(os.Getuid()) + 1)}), "")
		p.send([]byte("me"))
		if _, err := p.Read(make([]byte, 1)); err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: somebody else's uid is told %v", kind, err)
		}
	}
}

// A negative KeepAlive of the user's own is none, as in package net.
func TestKeepAliveThatTheUserDoesNotWant(t *testing.T) {
	s, client := newStand(t, nil, nil), newStand(t, nil, nil)
	l := s.listen("tcp4", &sockhub.ListenOptions{Config: &net.ListenConfig{KeepAlive: -1}})
	c, err := client.Dial(soon(t), "tcp4", l.Addr().String(), &sockhub.DialOptions{Name: "c", Dialer: &net.Dialer{KeepAlive: -1}})
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]*sockhub.Conn{"accepted": s.first(), "dialed": c} {
		if got := keepAliveOf(t, c); got.On != 0 {
			t.Errorf("%s socket: %+v", what, got)
		}
	}
}

// shortKeepAlive finds a peer that is silent after 2 s.
var shortKeepAlive = &sockhub.ListenOptions{
	Config: &net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 1}},
}

// A peer whose network is gone is found also where something has been sent to it since:
// the keep-alive of the system rests then.
func TestPeerIsGoneWhileSomethingIsUnderWay(t *testing.T) {
	for _, kind := range []string{"tcp4", "tls"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newStand(t, nil, nil)
			l := s.listen(kind, shortKeepAlive)
			p := dialKind(t, kind, l, "gone")
			c := s.first()
			below := p.Conn
			if over, ok := below.(*tls.Conn); ok {
				below = over.NetConn()
			}
			deafen(t, below)
			if err := c.Send(soon(t), []byte("are you there?")); err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			d := s.end(c)
			if took := time.Since(begun); took < time.Second || !errors.Is(d.Err, syscall.ETIMEDOUT) {
				t.Errorf("after %v: %v, want ETIMEDOUT after 2 s without an answer", took, d.Err)
			}
			if d.Report.WrittenMessages != 1 || d.Report.Unacked == 0 {
				t.Errorf("%+v, of which %d bytes are not acknowledged", d.Report, d.Report.Unacked)
			}
		})
	}
}

// deafen has the system of c, a TCP connection, hear nothing of what comes for it. Where
// that cannot be done the test is skipped.
func deafen(t *testing.T, c net.Conn) {
	t.Helper()
	control(t, c, func(fd int) {
		nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}} // lets nothing in
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing[0]}); err != nil {
			t.Skip(err)
		}
	})
}

// control calls f with the descriptor of c.
func control(t *testing.T, c net.Conn, f func(fd int)) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { f(int(fd)) }); err != nil {
		t.Fatal(err)
	}
}

// withoutRoom is a connection to a peer that does not read, for which its system holds
// what want is of, and whose keep-alive finds a silent peer after 2 s. ours is its socket.
func withoutRoom(t *testing.T) (s *stand, p *peer, c *sockhub.Conn, ours net.Conn, want [][]byte) {
	s = newStand(t, nil, nil)
	sockets := make(chan net.Conn, 1)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	door, err := s.Serve(watched{l, func(c net.Conn) {
		c.(*net.TCPConn).SetKeepAliveConfig(shortKeepAlive.Config.KeepAliveConfig)
		sockets <- c
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	p = dialHub(t, door, "full")
	c, ours = s.first(), <-sockets
	want = bodies(1, slices.Repeat([]int{100_000}, 10))
	if _, err := c.SendMany(soon(t), slices.Values(want)); err != nil {
		t.Fatal(err)
	}
	return s, p, c, ours, want
}

// watched calls a function with each connection that it accepts.
type watched struct {
	net.Listener
	accepted func(net.Conn)
}

func (l watched) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.accepted(c)
	}
	return c, err
}

// probes waits until so many probes of the peer's window in a row were answered, or, with
// lost, were not.
func probes(t *testing.T, c net.Conn, n int, lost bool) {
	t.Helper()
	eventually(t, "probes of the window", func() (ok bool) {
		control(t, c, func(fd int) {
			info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
			ok = err == nil && info.Notsent_bytes > 0 && (lost && int(info.Probes) >= n || !lost && info.Probes == 0 && int(info.Backoff) >= n)
		})
		return ok
	})
}

// One that takes nothing answers all the same: the probes of its window, of which one may
// be lost, and then it is long until the next.
func TestPeerWithoutRoomIsNotGone(t *testing.T) {
	t.Parallel()
	s, p, c, ours, want := withoutRoom(t)
	stop := make(chan struct{})
	var sending sync.WaitGroup
	sending.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
				c.TrySend([]byte("another one"))
			}
		}
	})
	probes(t, ours, 3, false)
	deafen(t, p.Conn)
	probes(t, ours, 1, true)
	control(t, p.Conn, func(fd int) {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != nil {
			t.Error(err)
		}
	})
	probes(t, ours, 5, false)
	close(stop)
	sending.Wait()
	var got [][]byte
	for range want {
		got = append(got, p.receive())
	}
	if err := sameBodies(got, want); err != nil {
		t.Error(err)
	}
	s.Close()
}

// One that had no room when its network went is found, too.
func TestPeerWithoutRoomIsGone(t *testing.T) {
	t.Parallel()
	s, p, c, ours, _ := withoutRoom(t)
	probes(t, ours, 1, false)
	deafen(t, p.Conn)
	if d := s.end(c); !errors.Is(d.Err, syscall.ETIMEDOUT) {
		t.Errorf("%v, want ETIMEDOUT", d.Err)
	}
}
