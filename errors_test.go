package sockhub_test

// Which error is which: what errors.Is and errors.As say of those that calls return and
// connections end with.

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// Whatever is asked of a hub that was closed is ErrClosed, which is net.ErrClosed, and what
// it was given is closed.
func TestErrorsOfAClosedHub(t *testing.T) {
	s := newStand(t, nil, nil)
	open := s.listen("tcp4", nil)
	s.Close()
	ctx := soon(t)
	anonymous := sockhub.DialOptions{Mode: sockhub.Anonymous}
	again := anonymous
	again.Reconnect = new(sockhub.Backoff)
	inner, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	over := func(call func(ours net.Conn) error) error {
		ours, peer := net.Pipe()
		err := call(ours)
		closedBy(t, peer)
		return err
	}
	for call, err := range map[string]error{
		"Listen":       second(s.Listen(ctx, "tcp4", "127.0.0.1:0", nil)),
		"Listen, udp":  second(s.Listen(ctx, "udp4", "127.0.0.1:0", nil)),
		"Serve":        second(s.Serve(inner, nil)),
		"ServePacket":  second(s.ServePacket(pc, nil)),
		"Dial":         second(s.Dial(ctx, "tcp4", inner.Addr().String(), &anonymous)),
		"Dial again":   second(s.Dial(ctx, "tcp4", inner.Addr().String(), &again)),
		"ServeConn":    over(func(ours net.Conn) error { return second(s.ServeConn(ctx, ours, nil)) }),
		"Attach":       over(func(ours net.Conn) error { return second(s.Attach(ctx, ours, &anonymous)) }),
		"Expect":       second(s.Expect("w", nil)),
		"Send":         s.Send(ctx, 1, nil),
		"TrySend":      s.TrySend(1, nil),
		"SendMany":     second(s.SendMany(ctx, 1, slices.Values([][]byte{nil}))),
		"Close, again": open.Close(),
	} {
		if !errors.Is(err, sockhub.ErrClosed) || !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %v", call, err)
		}
	}
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	inner.(*net.TCPListener).SetDeadline(time.Unix(1, 0))
	if _, err := inner.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a Serve that fails has closed the listener: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// Of a connection that this side has closed everything is ErrClosed, and of one that its
// peer has ended ErrNotConnected, also where the peer had finished in order.
func TestErrorsOfAConnectionThatHasEnded(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(c *sockhub.Conn, p *memnet.End)
		want error
		calm error // of Finish and CloseWrite
	}{
		"closed":   {func(c *sockhub.Conn, _ *memnet.End) { c.Close() }, sockhub.ErrClosed, nil},
		"finished": {func(c *sockhub.Conn, p *memnet.End) { c.Finish(); p.Close() }, sockhub.ErrClosed, nil},
		"reset":    {func(_ *sockhub.Conn, p *memnet.End) { p.Reset() }, sockhub.ErrNotConnected, sockhub.ErrNotConnected},
		"left":     {func(_ *sockhub.Conn, p *memnet.End) { p.Close() }, sockhub.ErrNotConnected, sockhub.ErrNotConnected},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLine(t, nil, nil, nil)
				test.end(l.c, l.p)
				l.ended()
				ctx := t.Context()
				var refused *sockhub.BroadcastError
				n, err := l.Broadcast(slices.Values([]*sockhub.Conn{l.c}), nil)
				if !errors.As(err, &refused) || n != 0 || len(refused.Refused) != 1 || refused.Refused[0].Conn != l.c {
					t.Errorf("Broadcast: %d, %v", n, err)
				}
				for call, err := range map[string]error{
					"Send":       l.c.Send(ctx, nil),
					"TrySend":    l.c.TrySend(nil),
					"SendParts":  l.c.SendParts(ctx, nil, nil),
					"SendMany":   second(l.c.SendMany(ctx, slices.Values([][]byte{nil}))),
					"SendFrom":   l.c.SendFrom(ctx, 1, bytes.NewReader([]byte{1})),
					"SetHandler": l.c.SetHandler(sockhub.BaseHandler{}),
					"SetRaw":     l.c.SetRaw(true),
					"Broadcast":  err,
				} {
					if !errors.Is(err, test.want) {
						t.Errorf("%s: %v, want %v", call, err, test.want)
					}
				}
				if err := l.c.Finish(); err != test.calm {
					t.Errorf("Finish: %v", err)
				}
				if err := l.c.CloseWrite(); err != test.calm {
					t.Errorf("CloseWrite: %v", err)
				}
				if err := l.c.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
		})
	}
}

// An error of the system has all that package net's have, whichever side of it is asked.
func TestErrorOfTheSystem(t *testing.T) {
	s := newStand(t, nil, nil)
	l := s.listen("tcp4", &sockhub.ListenOptions{Mode: sockhub.Anonymous})
	p := dialHub(t, l, "")
	c := s.first()
	p.Conn.(*net.TCPConn).SetLinger(0)
	p.Close()
	err := s.end(c).Err
	var (
		op    *net.OpError
		call  *os.SyscallError
		errno syscall.Errno
	)
	if !errors.As(err, &op) || op.Op != "read" || op.Net != "tcp4" || op.Addr.String() != c.Peer().Remote.String() || op.Source == nil {
		t.Errorf("%#v", err)
	}
	if !errors.As(err, &call) || !errors.As(err, &errno) || !errors.Is(err, syscall.ECONNRESET) && runtime.GOOS != "windows" {
		t.Errorf("%#v", err)
	}
	if cause := context.Cause(c.Context()); cause != err {
		t.Errorf("the context's cause is %v", cause)
	}
}

// A peer that resets the connection after the name refuses as one does that closes it.
func TestResetAfterTheNameIsARefusal(t *testing.T) {
	s := newStand(t, nil, nil)
	l := newDialed(t)
	go func() {
		p := l.next()
		p.Conn.(*net.TCPConn).SetLinger(0)
		p.Close()
	}()
	_, err := s.Dial(soon(t), "tcp", l.addr(), &sockhub.DialOptions{Name: "w"})
	if !errors.Is(err, sockhub.ErrRefused) || runtime.GOOS != "windows" && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
}

// What cannot be had matches errors.ErrUnsupported, and what it was asked of is closed.
func TestErrorsOfWhatIsUnsupported(t *testing.T) {
	s, ctx := newStand(t, nil, nil), soon(t)
	server, client := secure()
	for name, o := range map[string]sockhub.ListenOptions{
		"TLS":       {TLS: server},
		"ProxyFrom": {ProxyFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}},
		"Classify":  {Classify: func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) { return nil, 0, nil }},
	} {
		ours, peer := net.Pipe()
		if _, err := s.ServeConn(ctx, struct{ io.ReadWriteCloser }{ours}, &o); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
		closedBy(t, peer)
	}
	ours, peer := net.Pipe()
	if _, err := s.Attach(ctx, struct{ io.ReadWriteCloser }{ours}, &sockhub.DialOptions{Name: "w", TLS: client}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	closedBy(t, peer)

	l, err := s.Listen(ctx, "udp4", "127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Dial(ctx, "udp4", l.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetRaw(true); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

// Reply.SetRaw, which has no error to return, panics where Conn.SetRaw has one.
func TestReplySetRawOnPackets(t *testing.T) {
	s := newStand(t, nil, nil)
	l, err := s.Listen(soon(t), "udp4", "127.0.0.1:0", &sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler {
		return &handlerFuncs{message: func(r *sockhub.Reply, _ []byte) { r.SetRaw(true) }}
	}})
	if err != nil {
		t.Fatal(err)
	}
	p := dialHub(t, l, "")
	p.Write([]byte("x"))
	eventually(t, "the panic", func() bool { return s.Stats().Panics == 1 })
}

// A panic with an error is that error too.
func TestPanicWithAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openHub(t, &sockhub.Options{Admit: func(sockhub.Peer) error { panic(io.ErrNoProgress) }})
		ours, peer := memnet.Pair(nil)
		defer peer.Close()
		_, err := s.ServeConn(t.Context(), ours, &sockhub.ListenOptions{Mode: sockhub.Anonymous})
		if p := new(sockhub.PanicError); !errors.As(err, &p) || !errors.As(err, new(*sockhub.AdmissionError)) || !errors.Is(err, io.ErrNoProgress) {
			t.Error(err)
		}
	})
}

// Where a context ends what waits, the error is its cause.
func TestCausesOfContexts(t *testing.T) {
	why := errors.New("because")
	waiting := func(t *testing.T) *line {
		l := newLine(t, &sockhub.Options{WriteTimeout: -1, ConnOutbound: 100}, stuck, nil)
		l.sent(string(make([]byte, 200)))
		return l
	}
	for name, begin := range map[string]func(t *testing.T, ctx context.Context) <-chan result{
		"Send": func(t *testing.T, ctx context.Context) <-chan result { return waiting(t).sending(ctx, "x") },
		"SendParts": func(t *testing.T, ctx context.Context) <-chan result {
			l := waiting(t)
			return async(func() (int, error) { return 0, l.c.SendParts(ctx, nil) })
		},
		"SendMany": func(t *testing.T, ctx context.Context) <-chan result {
			l := waiting(t)
			return async(func() (int, error) { return l.c.SendMany(ctx, slices.Values([][]byte{nil})) })
		},
		"Hub.Send": func(t *testing.T, ctx context.Context) <-chan result {
			l := waiting(t)
			return async(func() (int, error) { return 0, l.Send(ctx, l.c.ID(), nil) })
		},
		"SendFrom": func(t *testing.T, ctx context.Context) <-chan result {
			l := waiting(t)
			return async(func() (int, error) { return 0, l.c.SendFrom(ctx, 1, bytes.NewReader([]byte{1})) })
		},
		"SendFrom, when some of it was written": func(t *testing.T, ctx context.Context) <-chan result {
			l := newLine(t, &sockhub.Options{WriteTimeout: -1}, stuck, nil)
			t.Cleanup(func() {
				if d := ended(t, l.Hub, l.c); d.Err != why || !d.Report.Cut {
					t.Errorf("%v, %v", d.Err, d.Report)
				}
			})
			return async(func() (int, error) { return 0, l.c.SendFrom(ctx, 1<<20, bytes.NewReader(make([]byte, 1<<20))) })
		},
		"ServeConn": func(t *testing.T, ctx context.Context) <-chan result {
			ours, peer := memnet.Pair(nil)
			t.Cleanup(func() { peer.Close() })
			hub := openHub(t, nil)
			return async(func() (int, error) { return 0, second(hub.ServeConn(ctx, ours, nil)) })
		},
		"Attach": func(t *testing.T, ctx context.Context) <-chan result {
			ours, peer := memnet.Pair(nil)
			t.Cleanup(func() { peer.Close() })
			hub := openHub(t, &sockhub.Options{Name: "w"})
			return async(func() (int, error) { return 0, second(hub.Attach(ctx, ours, nil)) })
		},
		"Shutdown": func(t *testing.T, ctx context.Context) <-chan result {
			l := newLine(t, nil, nil, &sockhub.ListenOptions{HalfOpen: true})
			return async(func() (int, error) { return 0, l.Shutdown(ctx) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				call := begin(t, ctx)
				waits(t, call)
				cancel(why)
				r := <-call
				if !errors.Is(r.err, why) {
					t.Error(r.err)
				}
			})
		})
	}
}

func TestNetworksThatAreUnknown(t *testing.T) {
	s, ctx := newStand(t, nil, nil), soon(t)
	for _, network := range []string{"", "tcp5", "ip", "unixstream"} {
		for op, err := range map[string]error{
			"listen": second(s.Listen(ctx, network, "127.0.0.1:0", nil)),
			"dial":   second(s.Dial(ctx, network, "127.0.0.1:1", &sockhub.DialOptions{Mode: sockhub.Anonymous, Reconnect: new(sockhub.Backoff)})),
		} {
			var e *net.OpError
			if !errors.As(err, &e) || e.Op != op || e.Net != network || !errors.Is(err, net.UnknownNetworkError(network)) {
				t.Errorf("%s %q: %#v", op, network, err)
			}
		}
	}
}

// Who has sent from a unixgram socket without an address cannot be answered.
func TestSenderWithoutAnAddress(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no such sockets")
	}
	s := newStand(t, nil, nil)
	_, path := address(t, "unix")
	if _, err := s.Listen(soon(t), "unixgram", path, nil); err != nil {
		t.Fatal(err)
	}
	p, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.Write([]byte("x"))
	c := s.first()
	if err := c.TrySend(nil); !errors.Is(err, sockhub.ErrNotConnected) {
		t.Error(err)
	}
	s.got(c, 1)
}
