package sockhub_test

// UDP, unixgram and unixpacket; datagrams_linux_test.go has what is of Linux alone.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
)

// packetHub is a hub that echoes packets, by a Handler or by Events.
func packetHub(t *testing.T, network, address string, handled bool, o *sockhub.Options, lo sockhub.ListenOptions) (*sockhub.Hub, *sockhub.Listener) {
	t.Helper()
	hub, err := sockhub.New(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hub.Close() })
	if handled {
		lo.Handler = func(*sockhub.Conn) sockhub.Handler {
			return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(m) }}
		}
	} else {
		go func() {
			for b := range hub.Events() {
				for c, m := range b.Messages() {
					c.TrySend(m)
				}
			}
		}()
	}
	l, err := hub.Listen(t.Context(), network, address, &lo)
	if err != nil {
		t.Fatal(err)
	}
	return hub, l
}

// exchange sends packets and expects them back.
func exchange(t *testing.T, c net.Conn, bodies ...[]byte) {
	t.Helper()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 1<<20)
	for _, b := range bodies {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		if err != nil {
			t.Fatalf("instead of %d bytes: %v", len(b), err)
		}
		if !bytes.Equal(buf[:n], b) {
			t.Fatalf("%d bytes came back, want %d", n, len(b))
		}
	}
}

func TestEachSourceOfDatagramsIsAClient(t *testing.T) {
	for _, network := range []string{"udp4", "udp6", "udp"} {
		for _, handled := range []bool{false, true} {
			t.Run(fmt.Sprint(network, handled), func(t *testing.T) {
				address := "127.0.0.1:0"
				if network == "udp6" {
					address = "[::1]:0"
				}
				hub, l := packetHub(t, network, address, handled, nil, sockhub.ListenOptions{})
				peers := make([]net.Conn, 50)
				for i := range peers {
					c, err := net.Dial("udp", l.Addr().String())
					if err != nil {
						t.Skip(err)
					}
					defer c.Close()
					peers[i] = c
				}
				for i, c := range peers {
					exchange(t, c, fmt.Append(nil, i), nil, []byte("x"), pattern(1400), pattern(9000), pattern(65507))
				}
				eventually(t, "all messages are counted", func() bool {
					s := hub.Stats()
					return s.Conns == len(peers) && s.MessagesIn == uint64(6*len(peers))
				})
				var conns []*sockhub.Conn
				for c := range hub.Conns() {
					conns = append(conns, c)
					if p := c.Peer(); !p.AddrPort.IsValid() || p.Network != network || p.Dialed || p.Local == nil {
						t.Errorf("%+v", p)
					}
				}
				if len(conns) != len(peers) {
					t.Errorf("%d connections", len(conns))
				}
			})
		}
	}
}

func TestBurstsOfDatagramsArriveWhole(t *testing.T) {
	server, l := packetHub(t, "udp", "127.0.0.1:0", true, nil, sockhub.ListenOptions{})
	client := openHub(t, nil)
	c, err := client.Dial(t.Context(), "udp", l.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 30 {
		var sent [][]byte
		for i := range 40 { // one size, and then all kinds
			size := 100
			if round%2 == 1 {
				size = i * i % 1500
			}
			m := pattern(size + 4)
			binary.LittleEndian.PutUint32(m, uint32(i))
			sent = append(sent, m)
		}
		if n, err := c.SendMany(t.Context(), slices.Values(sent)); err != nil || n != len(sent) {
			t.Fatal(n, err)
		}
		timeout := time.After(10 * time.Second)
		for got := 0; got < len(sent); {
			select {
			case b := <-client.Events():
				for _, m := range b.Messages() {
					if i := binary.LittleEndian.Uint32(m); !bytes.Equal(m, sent[i]) {
						t.Fatalf("message %d: %d bytes, want %d", i, len(m), len(sent[i]))
					}
					got++
				}
			case <-timeout:
				t.Fatalf("%d of %d: %+v, %+v", got, len(sent), server.Stats(), client.Stats())
			}
		}
	}
	if s := server.Stats(); s.Conns != 1 || s.Dropped+s.ProtocolErrors > 0 {
		t.Errorf("%+v", s)
	}
}

func TestDatagramThatIsTooLongIsDroppedAndCounted(t *testing.T) {
	hub, l := packetHub(t, "udp", "127.0.0.1:0", true, nil, sockhub.ListenOptions{MaxMessage: 1000})
	c, err := net.Dial("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write(pattern(1001))
	exchange(t, c, pattern(1000))
	if s := hub.Stats(); s.ProtocolErrors != 1 {
		t.Errorf("%+v", s)
	}
}

func TestSilentSessionEnds(t *testing.T) {
	hub := openHub(t, nil)
	l, err := hub.Listen(t.Context(), "udp", "127.0.0.1:0", &sockhub.ListenOptions{IdleTimeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var ids []sockhub.ID
	for range 2 { // and who comes back is another client
		c.Write([]byte("x"))
		for ended := false; !ended; {
			b := <-hub.Events()
			for _, u := range b.Unknown {
				ids = append(ids, u.ID())
			}
			for _, d := range b.Disconnected {
				if ended = true; !errors.Is(d.Err, sockhub.ErrIdleTimeout) {
					t.Errorf("ended with %v", d.Err)
				}
			}
		}
	}
	if ids[0] == ids[1] {
		t.Errorf("the same client twice: %v", ids)
	}
}

// newcomer is a datagram peer on an address of 127.0.0.0/8.
func newcomer(t *testing.T, l *sockhub.Listener, i int) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 1, byte(i>>8), byte(i))}, l.Addr().(*net.UDPAddr))
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestSessionsAreCappedAndTheLongestSilentGoes(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("other systems have 127.0.0.1 alone")
	}
	hub, l := packetHub(t, "udp", "127.0.0.1:0", true, nil, sockhub.ListenOptions{MaxConns: 10})
	for i := range 10 {
		exchange(t, newcomer(t, l, i), []byte("x"))
	}
	for i := range 5 {
		exchange(t, newcomer(t, l, 100+i), []byte("y"))
	}
	eventually(t, "five are gone", func() bool {
		s := hub.Stats()
		return s.Conns == 10 && s.Disconnected == 5 && s.Dropped == 0
	})
	for c := range hub.Conns() {
		if ip := c.Peer().AddrPort.Addr().As4(); ip[3] < 5 {
			t.Errorf("%v is still there", c)
		}
	}
	hub.Close()
	eventually(t, "every place is given back", func() bool { return hub.Held() == "" })
}

// Who was let in late was silent since it was heard, and not since it was let in: it has to
// go before those who have spoken meanwhile.
func TestSessionThatWasLetInLateWasSilentForLongest(t *testing.T) {
	asked, admit := make(chan struct{}), make(chan struct{})
	var late atomic.Pointer[net.UDPAddr]
	hub, l := packetHub(t, "udp4", "127.0.0.1:0", true, nil, sockhub.ListenOptions{MaxConns: 2, Admit: func(p sockhub.Peer) error {
		if a := late.Load(); a != nil && p.AddrPort == a.AddrPort() {
			close(asked)
			select {
			case <-admit:
			case <-t.Context().Done():
			}
		}
		return nil
	}})
	open := func() net.Conn {
		c, err := net.Dial("udp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	steady, slow, third := open(), open(), open()
	exchange(t, steady, []byte("1"))
	late.Store(slow.LocalAddr().(*net.UDPAddr))
	if _, err := slow.Write([]byte("2")); err != nil {
		t.Fatal(err)
	}
	<-asked
	exchange(t, steady, []byte("3"))
	close(admit)
	if n, err := slow.Read(make([]byte, 10)); n != 1 || err != nil { // it has heard that it is in
		t.Fatal(n, err)
	}
	exchange(t, third, []byte("4"))
	eventually(t, "one is gone", func() bool { return hub.Stats().Disconnected == 1 })
	for c := range hub.Conns() {
		if c.Peer().Remote.String() == slow.LocalAddr().String() {
			t.Error("who was silent for longest is still there")
		}
	}
	exchange(t, steady, []byte("5"))
	if s := hub.Stats(); s.Accepted != 3 || s.Disconnected != 1 || s.Dropped != 0 {
		t.Errorf("who has spoken meanwhile was sent away: %+v", s)
	}
}

// Whom a rule keeps out makes nobody leave, also where all places are taken.
func TestDeniedSourcesTakeNobodysPlace(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("other systems have 127.0.0.1 alone")
	}
	const honest, denied = 10, 100
	hub, l := packetHub(t, "udp4", "127.0.0.1:0", true, nil, sockhub.ListenOptions{MaxConns: honest, Admit: func(p sockhub.Peer) error {
		if p.AddrPort.Addr().As4()[3] >= honest {
			return errors.New("one of the others")
		}
		return nil
	}})
	peers := make([]net.Conn, honest)
	for i := range peers {
		peers[i] = newcomer(t, l, i)
		exchange(t, peers[i], []byte("x"))
	}
	for i := range denied {
		newcomer(t, l, honest+i).Write([]byte("y"))
	}
	eventually(t, "all of them are refused", func() bool { return hub.Stats().RefusedPolicy == denied })
	for _, p := range peers {
		exchange(t, p, []byte("z"))
	}
	if s := hub.Stats(); s.Disconnected != 0 {
		t.Errorf("%d have gone", s.Disconnected)
	}
}

func TestDatagramsThatNobodyTakesEndADialedClient(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("what an unreachable port does to a socket differs")
	}
	nobody, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	hub := openHub(t, nil)
	c, err := hub.Dial(t.Context(), "udp", nobody.LocalAddr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Send(t.Context(), []byte("hello?")); err != nil {
		t.Fatal(err)
	}
	for b := range hub.Events() {
		if len(b.Disconnected) == 0 {
			continue
		}
		if err := b.Disconnected[0].Err; !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("ended with %v", err)
		}
		return
	}
}

// An unreachable port is the sender's trouble, and not that of the socket's other
// clients.
func TestListenerSurvivesPeersThatAreGone(t *testing.T) {
	_, l := packetHub(t, "udp", "127.0.0.1:0", true, nil, sockhub.ListenOptions{})
	stays, err := net.Dial("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer stays.Close()
	for range 20 {
		c, err := net.Dial("udp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("and away"))
		c.Close()
		exchange(t, stays, []byte("still there"))
	}
}

func TestPacketOptionsThatContradict(t *testing.T) {
	hub := openHub(t, nil)
	for name, o := range map[string]sockhub.ListenOptions{
		"named":   {Mode: sockhub.Named},
		"raw":     {Mode: sockhub.Raw},
		"framing": {Framing: sockhub.Uvarint()},
		"stream":  {StreamOver: 1000},
		"proxy":   {ProxyFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
	} {
		if l, err := hub.Listen(t.Context(), "udp", "127.0.0.1:0", &o); err == nil {
			t.Errorf("%s: no error", name)
			l.Close()
		}
	}
	if _, err := hub.Dial(t.Context(), "udp", "127.0.0.1:9", &sockhub.DialOptions{Mode: sockhub.Named, Name: "x"}); err == nil {
		t.Error("dialed with a name")
	}
}

func TestUnixDatagrams(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no such sockets")
	}
	path := filepath.Join(t.TempDir(), "s")
	hub, l := packetHub(t, "unixgram", path, true, nil, sockhub.ListenOptions{FileMode: 0o660})
	if i, err := os.Stat(path); err != nil || i.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", i, err)
	}
	client := openHub(t, nil)
	o := &sockhub.DialOptions{}
	if runtime.GOOS != "linux" {
		o.Dialer = &net.Dialer{LocalAddr: &net.UnixAddr{Net: "unixgram", Name: path + "c"}}
	}
	c, err := client.Dial(t.Context(), "unixgram", path, o)
	if err != nil {
		t.Fatal(err)
	}
	askEcho(t, client, c, []byte("a"), nil, pattern(100_000), []byte("z"))
	if err := c.TrySend(pattern(1 << 20)); !errors.Is(err, sockhub.ErrMessageTooLarge) {
		t.Errorf("1 MiB: %v", err)
	}
	l.Close()
	askEcho(t, client, c, []byte("the connections of a closed listener live on"))
	hub.Close()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket's file is still there: %v", err)
	}
}

func TestUnixPacketsNamedAndNot(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("few systems have such sockets")
	}
	for _, mode := range []sockhub.Mode{sockhub.Named, sockhub.Anonymous} {
		path := filepath.Join(t.TempDir(), "s")
		_, l := packetHub(t, "unixpacket", path, true, nil, sockhub.ListenOptions{Mode: mode, MaxMessage: 150_000})
		client := openHub(t, &sockhub.Options{Name: "worker"})
		c, err := client.Dial(t.Context(), "unixpacket", path, &sockhub.DialOptions{Mode: mode})
		if err != nil {
			t.Fatal(err)
		}
		askEcho(t, client, c, []byte("a"), pattern(2000), pattern(100_000), []byte("z"))
		if err := c.TrySend(nil); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("an empty packet: %v", err)
		}
		if err := c.TrySend(pattern(150_001)); err != nil { // the other side's limit
			t.Fatal(err)
		}
		for b := range client.Events() {
			if len(b.Disconnected) > 0 {
				break // which is how the other side reacts
			}
		}
		l.Close()
	}

	// What is on the wire: the name is a packet, and OK is one.
	path := filepath.Join(t.TempDir(), "w")
	packetHub(t, "unixpacket", path, true, nil, sockhub.ListenOptions{Mode: sockhub.Named})
	p, err := net.Dial("unixpacket", path)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.SetDeadline(time.Now().Add(10 * time.Second))
	p.Write([]byte("name"))
	buf := make([]byte, 100)
	if n, err := p.Read(buf); err != nil || string(buf[:n]) != "OK" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	exchange(t, p, []byte("and then messages"))
}

// wrapped is a PacketConn that nothing more is known of.
type wrapped struct{ net.PacketConn }

// untold is a listener, or a socket of datagrams, that does not tell its address.
type (
	untold       struct{ net.Listener }
	untoldPacket struct {
		net.PacketConn
		addr net.Addr
	}
)

func (untold) Addr() net.Addr                 { return nil }
func (p untoldPacket) LocalAddr() net.Addr    { return p.addr }
func (untoldPacket) SetWriteBuffer(int) error { return nil }

func TestServeOfWhatTellsNoAddress(t *testing.T) {
	echoes := &sockhub.ListenOptions{Mode: sockhub.Anonymous, Handler: func(*sockhub.Conn) sockhub.Handler {
		return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(m) }}
	}}
	served := func(network, addr string, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		s := newStand(t, nil, nil)
		c, err := s.Dial(soon(t), network, addr, &sockhub.DialOptions{Mode: sockhub.Anonymous})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.TrySend([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		s.got(c, 1)
	}
	s := newStand(t, nil, nil)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Serve(untold{inner}, echoes)
	served("tcp", inner.Addr().String(), err)
	for _, none := range []net.Addr{nil, (*net.UDPAddr)(nil), (*net.UnixAddr)(nil)} {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.ServePacket(untoldPacket{pc, none}, echoes)
		served("udp", pc.LocalAddr().String(), err)
	}
}

func TestServePacketOnAnyPacketConn(t *testing.T) {
	inner, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hub := openHub(t, nil)
	l, err := hub.ServePacket(wrapped{inner}, &sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler {
		return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(m) }}
	}})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		c, err := net.Dial("udp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		exchange(t, c, []byte("one"), nil, pattern(60_000))
	}
	if _, err := hub.ServePacket(wrapped{inner}, &sockhub.ListenOptions{Mode: sockhub.Named}); err == nil {
		t.Error("named")
	}
}

func TestShutdownSendsWhatDatagramsAreQueued(t *testing.T) {
	got := make(chan struct{}, 100)
	server := openHub(t, nil)
	l, err := server.Listen(t.Context(), "udp", "127.0.0.1:0", &sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler {
		return &handlerFuncs{message: func(*sockhub.Reply, []byte) { got <- struct{}{} }}
	}})
	if err != nil {
		t.Fatal(err)
	}
	client, err := sockhub.New(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial(t.Context(), "udp", l.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err := c.Send(t.Context(), pattern(500)); err != nil {
			t.Fatal(err)
		}
	}
	if err := client.Shutdown(soon(t)); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < 100; n++ {
		select {
		case <-got:
		case <-time.After(10 * time.Second):
			t.Fatalf("%d of 100 came: %+v", n, server.Stats())
		}
	}
}

func TestHandlerAnswersAPacketFromAReader(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("few systems have such sockets")
	}
	h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
		if err := r.SendFrom(5, io.NopCloser(strings.NewReader("hello"))); err != nil {
			r.Send([]byte(err.Error()))
		}
	}}
	s := newStand(t, &sockhub.Options{Name: "x"}, nil)
	_, path := address(t, "unix")
	_, err := s.Listen(soon(t), "unixpacket", path, &sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Dial(soon(t), "unixpacket", path, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.TrySend([]byte("go"))
	if m := s.got(c, 1)[0]; string(m) != "hello" {
		t.Errorf("answered %q", m)
	}
}

// onePacket is a PacketConn without deadlines, on which one packet comes.
type onePacket struct {
	packet, closed chan struct{}
	once           sync.Once
}

func (c *onePacket) ReadFrom(p []byte) (int, net.Addr, error) {
	select {
	case <-c.packet:
		return copy(p, "x"), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}, nil
	case <-c.closed:
		return 0, nil, net.ErrClosed
	}
}

func (c *onePacket) WriteTo(p []byte, _ net.Addr) (int, error) { return len(p), nil }
func (c *onePacket) Close() error                              { c.once.Do(func() { close(c.closed) }); return nil }
func (c *onePacket) LocalAddr() net.Addr                       { return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2} }
func (c *onePacket) SetDeadline(time.Time) error               { return errors.ErrUnsupported }
func (c *onePacket) SetReadDeadline(time.Time) error           { return errors.ErrUnsupported }
func (c *onePacket) SetWriteDeadline(time.Time) error          { return errors.ErrUnsupported }

func TestClosingAPacketConnWithoutDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		pc := &onePacket{packet: make(chan struct{}, 1), closed: make(chan struct{})}
		defer pc.Close()
		l, err := hub.ServePacket(pc, nil)
		if err != nil {
			t.Fatal(err)
		}
		pc.packet <- struct{}{}
		<-hub.Events()
		mustEndWithin(t, "Listener.Close", time.Minute, func() { l.Close() })
		mustEndWithin(t, "Hub.Close", time.Minute, func() { hub.Close() })
	})
}

// careless is a PacketConn without deadlines whose counts are wrong.
type careless struct {
	onePacket
	got    func(p []byte) int
	wrote  func(p []byte) int
	closes atomic.Int32
}

func (c *careless) ReadFrom(p []byte) (int, net.Addr, error) {
	n, from, err := c.onePacket.ReadFrom(p)
	if err == nil && c.got != nil {
		n = c.got(p)
	}
	return n, from, err
}

func (c *careless) WriteTo(p []byte, _ net.Addr) (int, error) { return c.wrote(p), nil }
func (c *careless) Close() error                              { c.closes.Add(1); return c.onePacket.Close() }

// A count that cannot be is an error, and a datagram that was sent in part is none that was
// sent. And the socket is closed once.
func TestPacketConnThatCannotCount(t *testing.T) {
	for _, tt := range []struct {
		name       string
		got, wrote func(p []byte) int
		conns      int
		dropped    uint64
	}{
		{name: "more is read than there is room for", got: func(p []byte) int { return len(p) + 1 }},
		{name: "less than nothing is read", got: func([]byte) int { return -1 }},
		{name: "a part is written", wrote: func(p []byte) int { return len(p) / 2 }, conns: 1, dropped: 1},
		{name: "more is written than there is", wrote: func(p []byte) int { return len(p) + 10 }, conns: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := openHub(t, nil)
				pc := &careless{got: tt.got, wrote: tt.wrote, onePacket: onePacket{packet: make(chan struct{}, 1), closed: make(chan struct{})}}
				h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(m) }}
				if _, err := hub.ServePacket(pc, &sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }}); err != nil {
					t.Fatal(err)
				}
				pc.packet <- struct{}{}
				<-time.After(time.Second)
				if s := hub.Stats(); s.Conns != tt.conns || s.Dropped != tt.dropped {
					t.Errorf("%d connections, %d dropped; want %d and %d", s.Conns, s.Dropped, tt.conns, tt.dropped)
				}
				hub.Close()
				if n := pc.closes.Load(); n != 1 {
					t.Errorf("closed %d times", n)
				}
			})
		})
	}
}

func TestSessionsEndAsTheHubsIdleTimeoutSays(t *testing.T) {
	for _, tt := range []struct{ hub, listener, want time.Duration }{
		{0, 0, sockhub.DefaultSessionIdle},
		{time.Hour, 0, time.Hour},
		{time.Hour, time.Minute, time.Minute},
		{-1, 0, 0},
		{-1, time.Minute, time.Minute},
		{time.Hour, -1, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			hub := openHub(t, &sockhub.Options{IdleTimeout: tt.hub})
			pc := &onePacket{packet: make(chan struct{}, 1), closed: make(chan struct{})}
			if _, err := hub.ServePacket(pc, &sockhub.ListenOptions{IdleTimeout: tt.listener}); err != nil {
				t.Fatal(err)
			}
			pc.packet <- struct{}{}
			c := (<-hub.Events()).Unknown[0]
			begun := time.Now()
			got := time.Duration(0)
			select {
			case <-c.Context().Done():
				got = time.Since(begun)
			case <-time.After(24 * time.Hour):
			}
			if got < tt.want || got > tt.want+time.Second {
				t.Errorf("%v of the hub, %v of the listener: ended after %v, want %v", tt.hub, tt.listener, got, tt.want)
			}
		})
	}
}

// A socket that ServePacket refuses stays its owner's.
func TestServePacketThatFailsLeavesTheSocket(t *testing.T) {
	s := newStand(t, &sockhub.Options{MaxMessage: 1024, InboundLimit: 200 << 10}, nil)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	if _, err := s.ServePacket(pc, &sockhub.ListenOptions{MaxMessage: 65507}); err == nil {
		t.Fatal("served")
	}
	if _, err := pc.WriteTo([]byte("x"), pc.LocalAddr()); err != nil {
		t.Error(err)
	}
}

// A socket without a peer is nobody's connection: it was one client that heard everybody.
func TestAnUnconnectedSocketIsNoConnection(t *testing.T) {
	s := newStand(t, nil, nil)
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.ServeConn(soon(t), pc, nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

// A Unix socket of connections is no socket of datagrams, though its type can be: one whose
// peer had left was read from without end.
func TestASocketOfAConnectionIsNoneOfDatagrams(t *testing.T) {
	networks := []string{"unix"}
	if runtime.GOOS == "linux" {
		networks = append(networks, "unixpacket")
	}
	for _, network := range networks {
		s := newStand(t, nil, nil)
		l, err := net.Listen(network, filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		nc, err := net.Dial(network, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		pc := nc.(*net.UnixConn)
		for _, pc := range []net.PacketConn{pc, wrapped{pc}} {
			if _, err := s.ServePacket(pc, nil); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("%s, %T: %v", network, pc, err)
			}
		}
		if _, err := pc.Write([]byte("x")); err != nil { // it is its owner's still
			t.Error(err)
		}
	}
}

// However low InboundLimit is, a datagram as long as MaxMessage can be received.
func TestLongDatagramsAtTheLeastInboundLimit(t *testing.T) {
	for _, c := range []struct {
		network string
		size    int
	}{{"udp4", 5000}, {"udp4", 20_000}, {"udp4", 65_507}, {"unixgram", 190_000}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			address, own := "127.0.0.1:0", net.Addr(nil)
			if c.network == "unixgram" {
				if runtime.GOOS != "linux" {
					t.Skip("what can be sent depends on the system")
				}
				dir := t.TempDir()
				address, own = filepath.Join(dir, "s"), &net.UnixAddr{Net: c.network, Name: filepath.Join(dir, "c")}
			}
			max := int64(c.size)
			_, l := packetHub(t, c.network, address, true, &sockhub.Options{MaxMessage: max, InboundLimit: 2 * (max + 64<<10)}, sockhub.ListenOptions{})
			p, err := (&net.Dialer{LocalAddr: own}).Dial(c.network, l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			exchange(t, p, pattern(c.size), []byte("x"), pattern(c.size))
		})
	}
}

// A packet leaves as a whole or not at all: so none is cut, but unsent.
func TestPacketsAreNotCut(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("few systems have such sockets")
	}
	const n, size = 20, 100_000
	path := filepath.Join(t.TempDir(), "s")
	s := newStand(t, nil, nil)
	if _, err := s.Listen(soon(t), "unixpacket", path, nil); err != nil {
		t.Fatal(err)
	}
	p, err := net.Dial("unixpacket", path)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	c := s.first()
	for i := range n {
		if err := c.TrySend(body(1, i, size)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the socket is full", func() bool {
		st := c.Stats()
		return st.MessagesOut > 0 && time.Since(st.LastWrite) > 100*time.Millisecond
	})
	c.Close()
	r := s.end(c).Report
	if r.Cut || r.WrittenMessages+r.UnsentMessages != n {
		t.Errorf("%v", r)
	}
	i := int(r.WrittenMessages)
	for m := range r.Unsent() {
		if !bytes.Equal(m, body(1, i, size)) {
			t.Errorf("message %d is unsent as %d bytes", i, len(m))
		}
		i++
	}
	p.SetDeadline(time.Now().Add(patience))
	for i := range r.WrittenMessages {
		got := make([]byte, size+1)
		if m, err := p.Read(got); err != nil || !bytes.Equal(got[:m], body(1, int(i), size)) {
			t.Fatalf("message %d: %d bytes, %v", i, m, err)
		}
	}
	p.(*net.UnixConn).CloseWrite()
	if m, err := p.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes more than were written", m)
	}
}

// Who comes back to the path of a client that has gone is another client, also while the
// Handler of the first is being called.
func TestUnixgramClientThatComesBack(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("what a path that nobody is at does to a socket differs")
	}
	dir := t.TempDir()
	own, to := &net.UnixAddr{Net: "unixgram", Name: filepath.Join(dir, "c")}, &net.UnixAddr{Net: "unixgram", Name: filepath.Join(dir, "s")}
	s := newStand(t, nil, nil)
	busy, got := make(chan struct{}), make(chan string, 2)
	var first *sockhub.Conn
	if _, err := s.Listen(soon(t), "unixgram", to.Name, &sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler {
		return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
			if string(m) == "first" {
				first = r.Conn()
				got <- "first"
				<-busy
				return
			}
			got <- string(m)
		}}
	}}); err != nil {
		t.Fatal(err)
	}
	say := func(what string) net.Conn {
		p, err := net.DialUnix("unixgram", own, to)
		if err != nil {
			t.Fatal(err)
		}
		p.Write([]byte(what))
		return p
	}
	p := say("first")
	<-got
	p.Close()
	os.Remove(own.Name)
	first.TrySend([]byte("are you there"))
	eventually(t, "nobody is", func() bool { return s.Stats().Dropped == 1 })
	defer say("second").Close()
	eventually(t, "it is let in, or dropped", func() bool { st := s.Stats(); return st.Accepted == 2 || st.Dropped == 2 })
	close(busy)
	if s.Stats().Dropped == 2 {
		t.Fatal("it was dropped")
	}
	if m := <-got; m != "second" {
		t.Errorf("%q came", m)
	}
}

// Whoever has all places with datagrams from many addresses keeps nobody out, neither on
// other networks nor on other sockets; and who comes there takes no more than half.
func TestDatagramsKeepNobodyElseOut(t *testing.T) {
	const places = 32
	echo := sockhub.ListenOptions{Mode: sockhub.Anonymous}
	hub, flooded := packetHub(t, "udp4", "127.0.0.1:0", true, &sockhub.Options{MaxConns: places}, echo)
	echo.Handler = func(*sockhub.Conn) sockhub.Handler {
		return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(m) }}
	}
	other, err := hub.Listen(t.Context(), "udp4", "127.0.0.1:0", &echo)
	if err != nil {
		t.Fatal(err)
	}
	streams, err := hub.Listen(t.Context(), "tcp4", "127.0.0.1:0", &echo)
	if err != nil {
		t.Fatal(err)
	}
	send := func(l *sockhub.Listener) {
		t.Helper()
		c, err := net.Dial("udp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		exchange(t, c, []byte("x"))
	}
	for range places + 8 {
		send(flooded)
	}
	send(other)
	connected := 0
	for ; connected < places; connected++ {
		p := dialHub(t, streams, "")
		p.send([]byte("hello"))
		if _, err := p.tryReceive(); err != nil {
			break
		}
	}
	if connected != places/2 {
		t.Errorf("%d connections beside datagrams, of %d", connected, places)
	}
	send(flooded) // in the place of one on the same socket
	hub.Close()
	eventually(t, "every place is given back", func() bool { return hub.Held() == "" })
}

// Who comes where both the Listener and the hub have no place makes one leave, and not two.
func TestOneDatagramClientMakesPlaceForOne(t *testing.T) {
	const places, few = 32, 4
	hub, l := packetHub(t, "udp4", "127.0.0.1:0", true, &sockhub.Options{MaxConns: places}, sockhub.ListenOptions{MaxConns: few})
	other, err := hub.Listen(t.Context(), "udp4", "127.0.0.1:0", &sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler {
		return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(m) }}
	}})
	if err != nil {
		t.Fatal(err)
	}
	var others []net.Conn
	for i := range places - few {
		others = append(others, newcomer(t, other, i))
		exchange(t, others[i], []byte("x"))
	}
	for i := range few + 1 {
		exchange(t, newcomer(t, l, i), []byte("x"))
	}
	for _, c := range others { // are all still there
		exchange(t, c, []byte("y"))
	}
	if n := hub.Stats().Accepted; n != places+1 {
		t.Errorf("%d clients were let in, of %d", n, places+1)
	}
}

// Where streams have all places, who sends a datagram gets in when one has left.
func TestDatagramsWaitForAPlace(t *testing.T) {
	hub, l := packetHub(t, "udp4", "127.0.0.1:0", false, &sockhub.Options{MaxConns: 1}, sockhub.ListenOptions{})
	streams, err := hub.Listen(t.Context(), "tcp4", "127.0.0.1:0", &sockhub.ListenOptions{Mode: sockhub.Anonymous})
	if err != nil {
		t.Fatal(err)
	}
	p := dialHub(t, streams, "")
	p.send([]byte("hello"))
	p.receive()
	c := newcomer(t, l, 0)
	c.Write([]byte("x"))
	eventually(t, "it is refused", func() bool { return hub.Stats().RefusedLimit == 1 })
	if s := hub.Stats(); s.Conns != 1 || s.Accepted != 1 {
		t.Errorf("%d of %d connections with MaxConns of 1", s.Conns, s.Accepted)
	}
	p.Close()
	eventually(t, "the place is free", func() bool { return hub.Held() == "" })
	exchange(t, c, []byte("y"))
}

// Each datagram is delivered or counted, also one that comes as its client ends.
func TestDatagramsOfAClientThatEndsAreCounted(t *testing.T) {
	hub, l := packetHub(t, "udp4", "127.0.0.1:0", false, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler {
		return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
			if len(m) == 2 {
				r.Close()
			}
		}}
	}})
	const rounds, each = 50, 40 // as many as a socket has room for
	for i := range rounds {
		p := newcomer(t, l, 0)
		for k := range each {
			if _, err := p.Write(make([]byte, 1+k%7%2)); err != nil {
				t.Fatal(err)
			}
		}
		p.Close()
		counted := func() uint64 { s := hub.Stats(); return s.MessagesIn + s.Dropped }
		sent := uint64(i+1) * each
		eventually(t, "all are counted", func() bool { return counted() >= sent })
		if n := counted(); n != sent {
			t.Fatalf("%d of %d: %+v", n, sent, hub.Stats())
		}
	}
}

// Nor do those who have come by way of a Listener that was closed since.
func TestDatagramsOfAClosedListenerKeepNobodyElseOut(t *testing.T) {
	const places = 32
	hub, flooded := packetHub(t, "udp4", "127.0.0.1:0", true, &sockhub.Options{MaxConns: places}, sockhub.ListenOptions{Mode: sockhub.Anonymous})
	streams, err := hub.Listen(t.Context(), "tcp4", "127.0.0.1:0", &sockhub.ListenOptions{
		Mode: sockhub.Anonymous,
		Handler: func(*sockhub.Conn) sockhub.Handler {
			return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(m) }}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for range places {
		c, err := net.Dial("udp4", flooded.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		exchange(t, c, []byte("x"))
	}
	flooded.Close()
	for i := range places / 2 {
		p := dialHub(t, streams, "")
		p.send([]byte("hello"))
		if _, err := p.tryReceive(); err != nil {
			t.Fatalf("%d connections beside datagrams, of %d", i, places)
		}
	}
}

// Those on one socket are not ended for each other, when it is another one that has them.
func TestDatagramsElsewhereLeaveClientsAlone(t *testing.T) {
	const places = 32
	hub, flooded := packetHub(t, "udp4", "127.0.0.1:0", true, &sockhub.Options{MaxConns: places}, sockhub.ListenOptions{Mode: sockhub.Anonymous})
	var connected, ended atomic.Int32
	quiet, err := hub.Listen(t.Context(), "udp4", "127.0.0.1:0", &sockhub.ListenOptions{
		Mode: sockhub.Anonymous,
		Handler: func(*sockhub.Conn) sockhub.Handler {
			connected.Add(1)
			return &handlerFuncs{
				message:      func(r *sockhub.Reply, m []byte) { r.Send(m) },
				disconnected: func(sockhub.Disconnection) { ended.Add(1) },
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	dial := func(l *sockhub.Listener) net.Conn {
		t.Helper()
		c, err := net.Dial("udp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		exchange(t, c, []byte("x"))
		return c
	}
	for range places {
		dial(flooded)
	}
	const clients = 4
	var all []net.Conn
	for range clients {
		all = append(all, dial(quiet))
	}
	for _, c := range all {
		exchange(t, c, []byte("y"))
	}
	if n, m := connected.Load(), ended.Load(); n != clients || m != 0 {
		t.Errorf("%d clients connected %d times, and %d have ended", clients, n, m)
	}
}

// A packet that would be too long is refused before its reader is read.
func TestSendFromOfAPacketThatIsTooLong(t *testing.T) {
	s := newStand(t, &sockhub.Options{MaxMessage: 1000}, nil)
	to, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	c, err := s.Dial(soon(t), "udp4", to.LocalAddr().String(), &sockhub.DialOptions{Mode: sockhub.Anonymous})
	if err != nil {
		t.Fatal(err)
	}
	r := bytes.NewReader(make([]byte, 1001))
	if err := c.SendFrom(soon(t), 1001, r); !errors.Is(err, sockhub.ErrMessageTooLarge) || r.Len() != 1001 {
		t.Errorf("%v, %d bytes not read", err, r.Len())
	}
}
