package sockhub_test

// How sockets end, and what is sent last: addresses are free again, budgets too, and
// nobody is told that all is well when it is not.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
)

// listensAgain listens on the address of a socket that has ended.
func listensAgain(t *testing.T, a net.Addr) {
	t.Helper()
	var (
		again io.Closer
		err   error
	)
	if a.Network() == "unix" {
		again, err = net.Listen("unix", a.String())
	} else {
		again, err = net.ListenPacket(a.Network(), a.String())
	}
	if err != nil {
		t.Errorf("listening again: %v", err)
		return
	}
	again.Close()
}

// newPlace is where to listen on a network of datagrams, or on unix.
func newPlace(t *testing.T, network string) string {
	t.Helper()
	if network == "udp" {
		return "127.0.0.1:0"
	}
	if runtime.GOOS == "windows" {
		t.Skip("no such sockets")
	}
	_, path := address(t, "unix")
	return path
}

// The address of a datagram socket is free at the end of its hub. It was taken as long as
// a Handler was in a call.
func TestAddressOfDatagramsIsFreeWhileAHandlerIsStuck(t *testing.T) {
	for _, network := range []string{"udp", "unixgram"} {
		for name, end := range map[string]func(*sockhub.Hub, *sockhub.Listener){
			"Close":                    func(h *sockhub.Hub, _ *sockhub.Listener) { h.Close() },
			"Listener.Close and Close": func(h *sockhub.Hub, l *sockhub.Listener) { l.Close(); h.Close() },
			"Shutdown": func(h *sockhub.Hub, _ *sockhub.Listener) {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
				defer cancel()
				h.Shutdown(ctx)
			},
		} {
			t.Run(network+"/"+name, func(t *testing.T) {
				where := newPlace(t, network)
				hub := openHub(t, nil)
				defer hub.Close()
				entered, release, gone := make(chan struct{}), make(chan struct{}), make(chan struct{})
				h := &handlerFuncs{
					message:      func(*sockhub.Reply, []byte) { close(entered); <-release },
					disconnected: func(sockhub.Disconnection) { close(gone) },
				}
				l, err := hub.Listen(t.Context(), network, where, &sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
				if err != nil {
					t.Fatal(err)
				}
				defer func() { close(release); <-gone }()
				from := &net.Dialer{}
				if network == "unixgram" {
					from.LocalAddr = &net.UnixAddr{Name: where + "c", Net: network}
				}
				p, err := from.Dial(network, l.Addr().String())
				if err != nil {
					t.Error(err)
					close(entered)
					close(gone)
					return
				}
				defer p.Close()
				p.Write([]byte("x"))
				<-entered
				end(hub, l)
				listensAgain(t, l.Addr())
			})
		}
	}
}

// When Hub.Close returns, an address is free also where another goroutine is in
// Listener.Close. Hub.Close did not know that Listener any more.
func TestHubCloseBesideListenerClose(t *testing.T) {
	rounds := 100
	if testing.Short() {
		rounds = 20
	}
	for _, network := range []string{"udp", "unixgram", "unix"} {
		t.Run(network, func(t *testing.T) {
			where := newPlace(t, network)
			for i := 0; i < rounds && !t.Failed(); i++ {
				hub, err := sockhub.New(context.Background(), nil)
				if err != nil {
					t.Fatal(err)
				}
				l, err := hub.Listen(t.Context(), network, where, nil)
				if err != nil {
					t.Fatal(err)
				}
				begun, closed := make(chan struct{}), make(chan struct{})
				go func() { close(begun); l.Close(); close(closed) }()
				<-begun
				for range i % 50 {
					runtime.Gosched()
				}
				hub.Close()
				listensAgain(t, l.Addr())
				<-closed
			}
		})
	}
}

// slowToClose is a socket whose Close is not over before it may be.
type slowToClose struct {
	close      func() error
	begun, may chan struct{}
	once       sync.Once
	over       atomic.Bool
}

func newSlowToClose(close func() error) *slowToClose {
	return &slowToClose{close: close, begun: make(chan struct{}), may: make(chan struct{})}
}

func (s *slowToClose) Close() (err error) {
	s.once.Do(func() {
		err = s.close()
		close(s.begun)
		<-s.may
		s.over.Store(true)
	})
	return err
}

type lateListener struct {
	net.Listener
	*slowToClose
}

func (l lateListener) Close() error { return l.slowToClose.Close() }

type latePackets struct {
	net.PacketConn
	*slowToClose
}

func (p latePackets) Close() error { return p.slowToClose.Close() }

// Hub.Close waits for the Close of a socket that another goroutine has begun. It returned
// before.
func TestHubCloseWaitsForAListenerThatIsBeingClosed(t *testing.T) {
	for name, serve := range map[string]func(*sockhub.Hub) (*sockhub.Listener, *slowToClose, error){
		"Serve": func(h *sockhub.Hub) (*sockhub.Listener, *slowToClose, error) {
			inner, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return nil, nil, err
			}
			slow := newSlowToClose(inner.Close)
			l, err := h.Serve(lateListener{inner, slow}, nil)
			return l, slow, err
		},
		"ServePacket": func(h *sockhub.Hub) (*sockhub.Listener, *slowToClose, error) {
			inner, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				return nil, nil, err
			}
			slow := newSlowToClose(inner.Close)
			l, err := h.ServePacket(latePackets{inner, slow}, nil)
			return l, slow, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStand(t, nil, nil)
			l, slow, err := serve(s.Hub)
			if err != nil {
				t.Fatal(err)
			}
			closed := async(func() (int, error) { return 0, l.Close() })
			<-slow.begun
			early := async(func() (int, error) { s.Hub.Close(); return 0, nil })
			select {
			case <-early:
				t.Error("Hub.Close has returned")
			case <-time.After(30 * time.Millisecond):
			}
			close(slow.may)
			if r := <-closed; r.err != nil {
				t.Error(r.err)
			}
			s.Hub.Close()
			if !slow.over.Load() {
				t.Error("it is not closed")
			}
		})
	}
}

// ---- sockets of the user's ----

// ownPackets is a PacketConn without deadlines, on which comes what is put into in.
type ownPackets struct {
	in      chan ownPacket
	closed  chan struct{}
	once    sync.Once
	writing chan struct{} // closed in WriteTo, which then waits for Close; nil: it does not
}

type ownPacket struct {
	from net.Addr
	body []byte
}

func newOwnPackets() *ownPackets {
	return &ownPackets{in: make(chan ownPacket), closed: make(chan struct{})}
}

func (c *ownPackets) ReadFrom(p []byte) (int, net.Addr, error) {
	select {
	case d := <-c.in:
		return copy(p, d.body), d.from, nil
	case <-c.closed:
		return 0, nil, net.ErrClosed
	}
}

func (c *ownPackets) WriteTo(p []byte, _ net.Addr) (int, error) {
	if c.writing == nil {
		return len(p), nil
	}
	close(c.writing)
	<-c.closed
	return 0, net.ErrClosed
}
func (c *ownPackets) Close() error                     { c.once.Do(func() { close(c.closed) }); return nil }
func (c *ownPackets) LocalAddr() net.Addr              { return &net.UDPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 8} }
func (c *ownPackets) SetDeadline(time.Time) error      { return errors.ErrUnsupported }
func (c *ownPackets) SetReadDeadline(time.Time) error  { return errors.ErrUnsupported }
func (c *ownPackets) SetWriteDeadline(time.Time) error { return errors.ErrUnsupported }

// slowAddr is an address that can be read once, by who looks up its session, and then
// not before it is released, so that who accepts the session waits.
type slowAddr struct {
	reads    atomic.Int32
	asked    chan struct{} // capacity 1
	released chan struct{}
}

func (*slowAddr) Network() string { return "udp" }
func (a *slowAddr) String() string {
	if a.reads.Add(1) > 1 {
		select {
		case a.asked <- struct{}{}:
		default:
		}
		<-a.released
	}
	return "10.0.0.1:1"
}

// closedByUser has sessions wait to be accepted, each with a large packet, while the
// user closes the socket.
func closedByUser(t *testing.T, hub *sockhub.Hub, sessions int, o *sockhub.ListenOptions) {
	t.Helper()
	pc := newOwnPackets()
	if _, err := hub.ServePacket(pc, o); err != nil {
		t.Fatal(err)
	}
	first := &slowAddr{asked: make(chan struct{}, 1), released: make(chan struct{})}
	pc.in <- ownPacket{first, []byte("x")}
	<-first.asked
	for i := range sessions {
		pc.in <- ownPacket{&net.UDPAddr{IP: net.IPv4(10, 0, 1, 1), Port: i + 1}, make([]byte, 60_000)}
	}
	synctest.Wait()
	pc.Close()
	synctest.Wait()
	close(first.released)
	synctest.Wait()
}

// What sessions held that nobody had accepted when the user closed their socket is free
// for the other hubs of a Budget: it was taken for ever.
func TestPacketConnThatItsUserClosesFreesTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		budget := sockhub.NewBudget(512<<10, 0, 0)
		o := &sockhub.Options{Budget: budget, MaxMessage: 64 << 10}
		other := openHub(t, o)
		defer other.Close()
		for range 3 {
			hub := openHub(t, o)
			closedByUser(t, hub, 8, nil)
			if hub.Stats().Dropped == 0 {
				t.Error("there was room for all: this shows nothing")
			}
			hub.Close()
		}
		pc := newOwnPackets()
		if _, err := other.ServePacket(pc, nil); err != nil {
			t.Fatal(err)
		}
		pc.in <- ownPacket{&net.UDPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1}, make([]byte, 60_000)}
		synctest.Wait()
		if s := other.Stats(); s.MessagesIn != 1 || s.Dropped != 0 {
			t.Errorf("no room for a packet: %d in, %d dropped", s.MessagesIn, s.Dropped)
		}
	})
}

// Sessions that had made place, and that nobody had accepted when the user closed their
// socket, are in nobody's place any more: for each, MaxConns was one more for ever.
func TestPacketConnThatItsUserClosesLeavesMaxConns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{MaxConns: 2})
		defer hub.Close()
		go func() {
			for range hub.Events() {
			}
		}()
		closedByUser(t, hub, 5, &sockhub.ListenOptions{MaxConns: 1})
		var in int
		for range 6 {
			a, b := net.Pipe()
			defer b.Close()
			if _, err := hub.ServeConn(t.Context(), a, &sockhub.ListenOptions{Mode: sockhub.Anonymous}); err == nil {
				in++
			} else if !errors.Is(err, sockhub.ErrTooManyConns) {
				t.Error(err)
			}
		}
		if in != 2 {
			t.Errorf("%d connections were let in, want 2", in)
		}
	})
}

// A PacketConn without deadlines holds nobody up for ever in its WriteTo: whoever closed
// the hub was.
func TestPacketConnThatIsStuckInWriteToIsClosed(t *testing.T) {
	for name, end := range map[string]func(*sockhub.Hub, *sockhub.Listener){
		"Close":                    func(h *sockhub.Hub, _ *sockhub.Listener) { h.Close() },
		"Listener.Close and Close": func(h *sockhub.Hub, l *sockhub.Listener) { l.Close(); h.Close() },
		"Shutdown":                 func(h *sockhub.Hub, _ *sockhub.Listener) { h.Shutdown(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := openHub(t, nil)
				pc := newOwnPackets()
				defer pc.Close()
				pc.writing = make(chan struct{})
				h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(m) }}
				l, err := hub.ServePacket(pc, &sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
				if err != nil {
					t.Fatal(err)
				}
				pc.in <- ownPacket{&net.UDPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1}, []byte("x")}
				<-pc.writing
				mustEndWithin(t, name, time.Minute, func() { end(hub, l) })
				select {
				case <-pc.closed:
				default:
					t.Error("the socket is open")
				}
			})
		})
	}
}

// A datagram for a peer that is gone is in Stats.Dropped, although it ends the client: it
// was in no figure at all.
func TestDatagramForAPeerThatIsGoneIsDropped(t *testing.T) {
	dir := filepath.Dir(newPlace(t, "unixgram"))
	at := func(name string) *net.UnixAddr {
		return &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unixgram"}
	}
	for name, connect := range map[string]func(*testing.T, *stand) (*sockhub.Conn, io.Closer){
		"a client": func(t *testing.T, s *stand) (*sockhub.Conn, io.Closer) {
			if _, err := s.Listen(soon(t), "unixgram", at("a").Name, nil); err != nil {
				t.Fatal(err)
			}
			p, err := net.DialUnix("unixgram", at("b"), at("a"))
			if err != nil {
				t.Fatal(err)
			}
			p.Write([]byte("hello"))
			return s.first(), p
		},
		"who was dialed": func(t *testing.T, s *stand) (*sockhub.Conn, io.Closer) {
			p, err := net.ListenUnixgram("unixgram", at("c"))
			if err != nil {
				t.Fatal(err)
			}
			c, err := s.Dial(soon(t), "unixgram", at("c").Name, &sockhub.DialOptions{Dialer: &net.Dialer{LocalAddr: at("d")}})
			if err != nil {
				t.Fatal(err)
			}
			return c, p
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStand(t, nil, nil)
			c, p := connect(t, s)
			p.Close()
			c.TrySend([]byte("lost"))
			r := s.end(c).Report
			if n := s.Stats().Dropped; n+r.UnsentMessages != 1 {
				t.Errorf("%d are dropped, %d unsent, of 1 that was sent to nobody", n, r.UnsentMessages)
			}
		})
	}
}

// ---- readers ----

// lastMoment is a context that ends at the moment at which somebody waits for that, and
// at says so.
type lastMoment struct {
	context.Context
	at func()
}

func (c lastMoment) Done() <-chan struct{} { c.at(); return c.Context.Done() }

// A SendFrom that returns nil has sent its message, and the connection goes on: it was
// ended where ctx ended just after the last byte of a file.
func TestContextThatEndsWhenAFileWasSentEndsNothing(t *testing.T) {
	s := newStand(t, nil, nil)
	s.readers = true
	l := s.listen("tcp", &sockhub.ListenOptions{Mode: sockhub.Anonymous})
	const size = 200_000
	// In each there are two things to wait for that have come, of which one is drawn.
	for i := range 20 {
		file, want := aFile(t, size)
		p := dialHub(t, l, "")
		got := make(chan []byte, 1)
		go func() { m, _ := p.tryReceive(); got <- m }()
		c := s.nth(i)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		err := c.SendFrom(lastMoment{ctx, func() {
			eventually(t, "it is written", func() bool { return c.Stats().MessagesOut == 1 })
			cancel()
		}}, size, file)
		if m := <-got; !bytes.Equal(m, want) {
			t.Fatalf("%d bytes came", len(m))
		}
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if err := c.TrySend([]byte("next")); err != nil {
			t.Fatalf("round %d: SendFrom returned nil, and the next Send %v", i, err)
		}
		if m, err := p.tryReceive(); string(m) != "next" || err != nil {
			t.Fatalf("round %d: SendFrom returned nil, and then came %q, %v", i, m, err)
		}
	}
}

// wrongCounts is a reader that gives the first bytes of a pattern, and then says that it
// has read what it has not.
type wrongCounts struct {
	good   *bytes.Reader
	wrong  func(room int) int
	closed chan struct{}
}

func (r wrongCounts) Read(p []byte) (int, error) {
	if r.good.Len() > 0 {
		return r.good.Read(p)
	}
	return r.wrong(len(p)), nil
}
func (r wrongCounts) Close() error { close(r.closed); return nil }

// A count that cannot be is the reader's failure, and nothing is sent but what it gave.
// More than there was room for had memory sent that it had not written, and less than
// nothing was a panic of ours.
func TestReaderWithWrongCountsFails(t *testing.T) {
	const size = 300_000
	for name, wrong := range map[string]func(int) int{
		"negative":      func(int) int { return -1 },
		"very negative": func(int) int { return math.MinInt },
		"one too many":  func(room int) int { return room + 1 },
		"far too many":  func(int) int { return 1 << 30 },
	} {
		for _, given := range []int{0, 1000, 64 << 10, 100_000} { // pieces are of 64 KiB
			check := func(t *testing.T, p *peer, err error) {
				t.Helper()
				if err == nil || !strings.Contains(err.Error(), "message from a reader") {
					t.Errorf("the error is %v", err)
				}
				got, _ := io.ReadAll(p)
				got = got[min(8, len(got)):]
				if !bytes.HasPrefix(pattern(given), got) {
					t.Errorf("%d bytes came, and it gave %d", len(got), given)
				}
			}
			t.Run(fmt.Sprintf("SendFrom/%s after %d", name, given), func(t *testing.T) {
				s := newStand(t, nil, nil)
				s.readers = true
				p := dialHub(t, s.listen("tcp", &sockhub.ListenOptions{Mode: sockhub.Anonymous}), "")
				c := s.first()
				err := c.SendFrom(soon(t), size, wrongCounts{bytes.NewReader(pattern(given)), wrong, nil})
				c.Close()
				check(t, p, err)
			})
			t.Run(fmt.Sprintf("Reply.SendFrom/%s after %d", name, given), func(t *testing.T) {
				s := newStand(t, nil, nil)
				s.readers = true
				r := wrongCounts{bytes.NewReader(pattern(given)), wrong, make(chan struct{})}
				gone := make(chan error, 1)
				h := &handlerFuncs{
					message:      func(reply *sockhub.Reply, _ []byte) { reply.SendFrom(size, r) },
					disconnected: func(d sockhub.Disconnection) { gone <- d.Err },
				}
				p := dialHub(t, s.listen("tcp", &sockhub.ListenOptions{Mode: sockhub.Anonymous, Handler: func(*sockhub.Conn) sockhub.Handler { return h }}), "")
				p.send([]byte("go"))
				select {
				case err := <-gone:
					check(t, p, err)
				case <-soon(t).Done():
					t.Fatal("the connection goes on")
				}
				<-r.closed
			})
		}
	}
}

// ---- options ----

// No address of a proxy is that of a peer on a Unix socket: ProxyFrom was taken there, and
// believed nobody.
func TestProxyFromOnUnixSocketsNamesTheField(t *testing.T) {
	networks := []string{"unix", "unixgram"}
	if runtime.GOOS == "linux" {
		networks = append(networks, "unixpacket")
	}
	s := newStand(t, nil, nil)
	o := &sockhub.ListenOptions{ProxyFrom: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}}
	for _, network := range networks {
		t.Run(network, func(t *testing.T) {
			path := newPlace(t, network)
			l, err := s.Listen(soon(t), network, path, o)
			if err == nil {
				l.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), "ListenOptions.ProxyFrom") {
				t.Errorf("the field is not named: %v", err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the socket's file is there: %v", err)
			}
		})
	}
}
