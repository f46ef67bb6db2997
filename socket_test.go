package sockhub_test

// The same program over every kind of socket.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
)

// sizes are those of the echo tests: around every boundary of the code.
var sizes = []int{
	0, 1, 7, 8, 9, 127, 0, 255, 256, 2047, 2048, 2049, 4096, 8183, 8184, 8185, 0, 16375, 16376, 16377, 16384, 20000,
	65535, 65536, 65537, 1 << 20, 3, 9 << 20, 1, 0,
}

func TestEchoOverEveryKindOfSocket(t *testing.T) {
	for _, kind := range withTLS() {
		for _, mode := range []sockhub.Mode{sockhub.Named, sockhub.Anonymous} {
			t.Run(fmt.Sprint(kind, "/", mode), func(t *testing.T) {
				t.Parallel()
				server := newStand(t, nil, echo)
				client := newStand(t, &sockhub.Options{Name: "client"}, nil)
				l := server.listen(kind, &sockhub.ListenOptions{Mode: mode})
				c, err := client.dial(kind, l, sockhub.DialOptions{Mode: mode})
				if err != nil {
					t.Fatal(err)
				}
				echoThrough(t, client, c, bodies(1, sizes))
				name := ""
				if mode == sockhub.Named {
					name = "client"
				}
				if got := server.first().Name(); got != name {
					t.Errorf("the peer's name is %q, want %q", got, name)
				}
				if err := client.Shutdown(soon(t)); err != nil {
					t.Error(err)
				}
				if d := client.end(c); !errors.Is(d.Err, sockhub.ErrClosed) || d.Report.WrittenMessages != uint64(len(sizes)) {
					t.Errorf("our end: %v, %+v", d.Err, d.Report)
				}
				if d := server.end(server.first()); d.Err != io.EOF || d.Report.WrittenMessages != uint64(len(sizes)) {
					t.Errorf("the peer's end: %v, %+v", d.Err, d.Report)
				}
			})
		}
	}
}

// echoThrough sends msgs in one SendMany, while the events are received, and
// checks that they come back.
func echoThrough(t *testing.T, s *stand, c *sockhub.Conn, msgs [][]byte) {
	t.Helper()
	s.mu.Lock()
	before := len(s.msgs[c])
	s.mu.Unlock()
	if n, err := c.SendMany(soon(t), slices.Values(msgs)); n != len(msgs) || err != nil {
		t.Fatalf("SendMany accepted %d, %v", n, err)
	}
	if err := sameBodies(s.got(c, before+len(msgs))[before:], msgs); err != nil {
		t.Fatal(err)
	}
}

func TestListenersComeAndGo(t *testing.T) {
	t.Parallel()
	const each = 8
	server := newStand(t, nil, echo)
	client := newStand(t, nil, nil)
	small := bodies(3, []int{0, 1, 100, 5000, 40000})
	type line struct {
		l *sockhub.Listener
		c *sockhub.Conn
	}
	var mu sync.Mutex
	var lines []line
	var wg sync.WaitGroup
	for _, kind := range kinds() {
		for i := range each {
			wg.Go(func() {
				mode := sockhub.Named
				if i%2 == 1 {
					mode = sockhub.Anonymous
				}
				network, addr := address(t, kind)
				l, err := server.Listen(soon(t), network, addr, &sockhub.ListenOptions{Mode: mode})
				if err != nil {
					t.Error(err)
					return
				}
				o := &sockhub.DialOptions{Mode: mode, Name: fmt.Sprintf("%s-%d", kind, i)}
				c, err := client.Dial(soon(t), network, l.Addr().String(), o)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				lines = append(lines, line{l, c})
			})
		}
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	if n := server.Stats().Listeners; n != len(lines) {
		t.Errorf("%d listeners, want %d", n, len(lines))
	}
	for _, x := range lines {
		echoThrough(t, client, x.c, small)
	}
	for i, x := range lines {
		if i%2 == 0 {
			wg.Go(func() {
				if err := x.l.Close(); err != nil {
					t.Errorf("closing %v: %v", x.l.Addr(), err)
				}
				if err := x.l.Close(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("closing %v again: %v", x.l.Addr(), err)
				}
				for late := time.After(patience); ; { // a process that another test starts has all descriptors for a moment
					nc, err := net.Dial(x.l.Addr().Network(), x.l.Addr().String())
					if err != nil {
						break
					}
					nc.Close()
					select {
					case <-late:
						t.Errorf("%v still accepts", x.l.Addr())
						return
					case <-time.After(time.Millisecond):
					}
				}
			})
		}
	}
	wg.Wait()
	for _, x := range lines {
		echoThrough(t, client, x.c, small) // the connections of a closed listener too
	}
	for i, x := range lines {
		if i%2 == 0 {
			// The place is free again, its file included.
			l, err := server.Listen(soon(t), x.l.Addr().Network(), x.l.Addr().String(), &sockhub.ListenOptions{Mode: sockhub.Anonymous})
			if err != nil {
				t.Error(err)
				continue
			}
			p := dialHub(t, l, "")
			p.send([]byte("again"))
			if m := p.receive(); string(m) != "again" {
				t.Errorf("got %q", m)
			}
			p.Close()
		}
	}
}

// plain hides everything but Read, Write and Close.
type plain struct{ io.ReadWriteCloser }

// joined is a stream of two halves.
type joined struct {
	io.Reader
	io.Writer
	close func() error
}

func (j joined) Close() error { return j.close() }

// timed is joined with the deadlines of its halves.
type timed struct {
	joined
	r, w *os.File
}

func (s timed) SetReadDeadline(t time.Time) error  { return s.r.SetReadDeadline(t) }
func (s timed) SetWriteDeadline(t time.Time) error { return s.w.SetWriteDeadline(t) }

// pipes makes pairs of connected streams that are no sockets.
var pipes = map[string]func(t *testing.T) (a, b io.ReadWriteCloser){
	"net.Pipe": func(t *testing.T) (a, b io.ReadWriteCloser) { return net.Pipe() },
	"net.Pipe without deadlines": func(t *testing.T) (a, b io.ReadWriteCloser) {
		x, y := net.Pipe()
		return plain{x}, plain{y}
	},
	"io.Pipe": func(t *testing.T) (a, b io.ReadWriteCloser) {
		r1, w1 := io.Pipe()
		r2, w2 := io.Pipe()
		return joined{r1, w2, func() error { return errors.Join(r1.Close(), w2.Close()) }},
			joined{r2, w1, func() error { return errors.Join(r2.Close(), w1.Close()) }}
	},
	"os.Pipe":                     func(t *testing.T) (a, b io.ReadWriteCloser) { x, y := osPipes(t); return x, y },
	"os.Pipe without deadlines":   func(t *testing.T) (a, b io.ReadWriteCloser) { x, y := osPipes(t); return plain{x}, plain{y} },
	"a socket of somebody else's": func(t *testing.T) (a, b io.ReadWriteCloser) { x, y := tcpPair(t); return struct{ net.Conn }{x}, y },
	"a socket":                    func(t *testing.T) (a, b io.ReadWriteCloser) { x, y := tcpPair(t); return x, y },
}

func osPipes(t *testing.T) (a, b timed) {
	r1, w1, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r2, w2, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	half := func(r, w *os.File) timed {
		return timed{joined{r, w, func() error { return errors.Join(r.Close(), w.Close()) }}, r, w}
	}
	return half(r1, w2), half(r2, w1)
}

func tcpPair(t *testing.T) (a, b net.Conn) { return socketPair(t, "tcp") }

// socketPair is both ends of a new connection of this kind.
func socketPair(t *testing.T, kind string) (a, b net.Conn) {
	l, err := net.Listen(address(t, kind))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial(l.Addr().Network(), l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// servePipe puts a hub on either end of a pipe.
func servePipe(t *testing.T, name string, server, client *stand, lo *sockhub.ListenOptions, do *sockhub.DialOptions) (served, attached *sockhub.Conn, serveErr, attachErr error) {
	t.Helper()
	a, b := pipes[name](t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		served, serveErr = server.ServeConn(soon(t), a, lo)
	}()
	attached, attachErr = client.Attach(soon(t), b, do)
	<-done
	return served, attached, serveErr, attachErr
}

func TestPipesAreConnections(t *testing.T) {
	for name := range pipes {
		for _, mode := range []sockhub.Mode{sockhub.Named, sockhub.Anonymous} {
			t.Run(fmt.Sprint(name, "/", mode), func(t *testing.T) {
				t.Parallel()
				server, client := newStand(t, nil, echo), newStand(t, nil, nil)
				s, c, err1, err2 := servePipe(t, name, server, client,
					&sockhub.ListenOptions{Mode: mode, Tag: "a"}, &sockhub.DialOptions{Mode: mode, Name: "n", Tag: "b"})
				if err1 != nil || err2 != nil {
					t.Fatal(err1, err2)
				}
				if s.Peer().Dialed || s.Peer().Tag != "a" || !c.Peer().Dialed || c.Peer().Tag != "b" {
					t.Errorf("peers: %+v, %+v", s.Peer(), c.Peer())
				}
				echoThrough(t, client, c, bodies(2, []int{0, 1, 4096, 65536, 1 << 20, 7}))
				c.Finish()
				if d := client.end(c); d.Err != sockhub.ErrClosed {
					t.Errorf("our end: %v", d.Err)
				}
				if d := server.end(s); d.Err != io.EOF {
					t.Errorf("the peer's end: %v", d.Err)
				}
			})
		}
		t.Run(name+"/refused", func(t *testing.T) {
			t.Parallel()
			server, client := newStand(t, nil, nil), newStand(t, nil, nil)
			_, _, err1, err2 := servePipe(t, name, server, client,
				&sockhub.ListenOptions{Admit: sockhub.Nobody()}, &sockhub.DialOptions{Name: "n"})
			if _, ok := errors.AsType[*sockhub.AdmissionError](err1); !ok {
				t.Errorf("ServeConn: %v", err1)
			}
			if !errors.Is(err2, sockhub.ErrRefused) {
				t.Errorf("Attach: %v", err2)
			}
		})
		t.Run(name+"/closed hub", func(t *testing.T) {
			t.Parallel()
			server, client := newStand(t, nil, nil), newStand(t, nil, nil)
			s, c, err1, err2 := servePipe(t, name, server, client, nil, &sockhub.DialOptions{Name: "n"})
			if err1 != nil || err2 != nil {
				t.Fatal(err1, err2)
			}
			client.Hub.Close()
			if d := client.end(c); d.Err != sockhub.ErrClosed {
				t.Errorf("our end: %v", d.Err)
			}
			server.end(s)
		})
	}
}

func TestPeerFinishesSendingAndIsAnswered(t *testing.T) {
	for _, kind := range withTLS() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newStand(t, nil, echo)
			p := dialKind(t, kind, s.listen(kind, nil), "p")
			want := bodies(4, []int{5, 0, 100000, 8})
			go func() { p.send(want...); p.closeWrite() }()
			for k, w := range want {
				if m := p.receive(); string(m) != string(w) {
					t.Fatalf("answer %d has %d bytes", k, len(m))
				}
			}
			p.atEnd()
			p.Close()
			d := s.end(s.first())
			if d.Err != io.EOF || d.Report.WrittenMessages != 4 {
				t.Errorf("the end: %v, %+v", d.Err, d.Report)
			}
			if s.ended[d.Conn] != 1 {
				t.Errorf("%d times Ended", s.ended[d.Conn])
			}
		})
	}
}

func TestHalfOpenConnectionLivesUntilFinished(t *testing.T) {
	for _, kind := range withTLS() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newStand(t, nil, nil)
			p := dialKind(t, kind, s.listen(kind, &sockhub.ListenOptions{HalfOpen: true}), "p")
			p.send([]byte("question"))
			p.closeWrite()
			c := s.first()
			s.until("Ended", func() bool { return s.ended[c] == 1 })
			for k := range 10 {
				if err := c.Send(soon(t), body(0, k, 1000*k)); err != nil {
					t.Fatal(err)
				}
				if m := p.receive(); string(m) != string(body(0, k, 1000*k)) {
					t.Fatalf("message %d differs", k)
				}
			}
			c.Finish()
			p.atEnd()
			if d := s.end(c); d.Err != sockhub.ErrClosed || d.Report.WrittenMessages != 10 {
				t.Errorf("the end: %v, %+v", d.Err, d.Report)
			}
		})
	}
}

func TestCloseWriteEndsOneDirectionAlone(t *testing.T) {
	for _, kind := range withTLS() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newStand(t, nil, nil)
			p := dialKind(t, kind, s.listen(kind, nil), "p")
			c := s.first()
			want := body(5, 0, 300000)
			if err := c.Send(soon(t), want); err != nil {
				t.Fatal(err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if err := c.TrySend(nil); err != sockhub.ErrClosed {
				t.Errorf("Send after CloseWrite: %v", err)
			}
			if m := p.receive(); string(m) != string(want) {
				t.Fatal("the message differs")
			}
			p.atEnd()
			in := bodies(6, []int{0, 1, 200000, 17})
			p.send(in...)
			if err := sameBodies(s.got(c, len(in)), in); err != nil {
				t.Fatal(err)
			}
			p.Close()
			if d := s.end(c); d.Err != io.EOF || d.Report.WrittenMessages != 1 {
				t.Errorf("the end: %v, %+v", d.Err, d.Report)
			}
		})
	}
}

// reset ends a peer's connection so that the other side sees ECONNRESET: a TCP
// peer by not lingering, a Unix one by leaving something unread.
func (p *peer) reset() {
	if c, ok := p.Conn.(*net.TCPConn); ok {
		c.SetLinger(0)
	}
	p.Close()
}

func TestCleanEndAndResetAreToldApart(t *testing.T) {
	tests := []struct {
		name string
		do   func(p *peer, c *sockhub.Conn)
		want error
	}{
		{"close", func(p *peer, c *sockhub.Conn) { p.Close() }, io.EOF},
		{"close after a message", func(p *peer, c *sockhub.Conn) { p.send([]byte("x")); p.Close() }, io.EOF},
		{"close within a header", func(p *peer, c *sockhub.Conn) { p.Write(make([]byte, 7)); p.Close() }, io.ErrUnexpectedEOF},
		{"close between header and body", func(p *peer, c *sockhub.Conn) { p.Write(wire(make([]byte, 1<<20))[:8]); p.Close() }, io.ErrUnexpectedEOF},
		{"close within a body", func(p *peer, c *sockhub.Conn) { p.Write(wire(make([]byte, 9))[:16]); p.Close() }, io.ErrUnexpectedEOF},
		{"reset", func(p *peer, c *sockhub.Conn) {
			if p.LocalAddr().Network() == "unix" {
				c.Send(context.Background(), []byte("unread"))
				p.Read(make([]byte, 1))
			}
			p.reset()
		}, syscall.ECONNRESET},
		{"reset after FIN", func(p *peer, c *sockhub.Conn) {
			c.Send(context.Background(), []byte("unread"))
			p.Read(make([]byte, 1))
			p.closeWrite()
			p.reset()
		}, syscall.ECONNRESET},
	}
	for _, kind := range kinds() {
		for _, tt := range tests {
			t.Run(kind+"/"+tt.name, func(t *testing.T) {
				t.Parallel()
				s := newStand(t, nil, nil)
				p := dialHub(t, s.listen(kind, &sockhub.ListenOptions{HalfOpen: tt.name == "reset after FIN"}), "p")
				c := s.first()
				tt.do(p, c)
				if d := s.end(c); !errors.Is(d.Err, tt.want) {
					t.Errorf("ended with %v, want %v", d.Err, tt.want)
				}
			})
		}
	}
}

// A write that fails takes the record of a reset away from the reader.
func TestResetIsSeenAlsoByWhoWrites(t *testing.T) {
	t.Parallel()
	s := newStand(t, nil, nil)
	l := s.listen("tcp4", nil)
	for range 200 {
		p := dialHub(t, l, "p")
		s.until("its connection", func() bool { return len(s.conns) > len(s.gone) })
		s.mu.Lock()
		c := s.conns[len(s.conns)-1]
		s.mu.Unlock()
		go p.reset()
		for c.TrySend([]byte("are you there?")) == nil {
			runtime.Gosched()
		}
		if d := s.end(c); !errors.Is(d.Err, syscall.ECONNRESET) && !errors.Is(d.Err, syscall.EPIPE) && !errors.Is(d.Err, sockhub.ErrBackpressure) {
			t.Fatalf("ended with %v after a reset", d.Err)
		}
	}
}
