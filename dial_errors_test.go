package sockhub_test

// Dials that fail, and with which error.

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
)

// What is not OK is a refusal whatever it is, and counts as nothing that we have refused:
// what was longer than a name was another error, and a RefusedName.
func TestWhateverIsNotOKIsARefusal(t *testing.T) {
	for name, answer := range map[string]string{
		"nothing":            "",
		"an empty message":   string(frame("")),
		"another message":    string(frame("ok")),
		"as long as a name":  string(frame(strings.Repeat("x", sockhub.MaxNameLen))),
		"longer than a name": string(frame(strings.Repeat("x", sockhub.MaxNameLen+1))),
		"far too long":       "\xff\xff\xff\xff\xff\xff\xff\xff",
		"another protocol":   "HTTP/1.1 400 Bad Request\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := newStand(t, nil, nil)
			l := newDialed(t)
			go func() {
				p := l.next()
				io.WriteString(p, answer)
				if answer == "" {
					p.Conn.(*net.TCPConn).CloseWrite() // else the answer is enough
				}
				io.Copy(io.Discard, p)
				p.Close()
			}()
			if _, err := s.Dial(soon(t), "tcp", l.addr(), &sockhub.DialOptions{Name: "w"}); !errors.Is(err, sockhub.ErrRefused) {
				t.Error(err)
			}
			eventually(t, "the dial is over", func() bool { return s.Stats().Connecting == 0 })
			if st := s.Stats(); st.RefusedName+st.RefusedPolicy+st.RefusedLimit != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// Where the peer answers nothing, the error does not blame the network.
func TestWhatIsLackingIsTheAnswer(t *testing.T) {
	s := newStand(t, nil, nil)
	l := newDialed(t)
	ctx, cancel := context.WithCancel(soon(t))
	go func() { l.next(); cancel() }()
	_, err := s.Dial(ctx, "tcp", l.addr(), &sockhub.DialOptions{Name: "w"})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "in the handshake") {
		t.Error(err)
	}
}

// A long wrong answer is dialed again like a short one.
func TestLongWrongAnswersAreDialedAgain(t *testing.T) {
	s := newStand(t, nil, nil)
	l := newDialed(t)
	go func() {
		for range 2 {
			p := l.next()
			p.Write(wire(make([]byte, 300)))
			p.Close()
		}
		l.welcome()
	}()
	c, err := s.Dial(soon(t), "tcp", l.addr(), &sockhub.DialOptions{Name: "w", Reconnect: often})
	if err != nil {
		t.Fatal(err)
	}
	s.Forget(c.ID())
}

// The Dialer is copied like all options: what its user did with it later held for every
// further attempt, and raced with it.
func TestTheDialerIsCopied(t *testing.T) {
	s := newStand(t, nil, nil)
	l := newDialed(t)
	accepted := make(chan *peer, 1)
	go func() { accepted <- l.welcome() }()
	var before, after atomic.Int32
	dialer := &net.Dialer{Control: func(string, string, syscall.RawConn) error { before.Add(1); return nil }}
	c, err := s.Dial(soon(t), "tcp", l.addr(), &sockhub.DialOptions{Name: "w", Reconnect: often, Dialer: dialer})
	if err != nil {
		t.Fatal(err)
	}
	dialer.Control = func(string, string, syscall.RawConn) error { after.Add(1); return nil }
	(<-accepted).Close()
	l.welcome()
	if before.Load() < 2 || after.Load() > 0 {
		t.Errorf("the Dialer of the call was used %d times, what became of it %d times", before.Load(), after.Load())
	}
	s.Forget(c.ID())
}

// An address that is wrong in itself is an error at once on every network: some were tried
// for ever.
func TestAddressesThatAreWrongInThemselves(t *testing.T) {
	s, ctx := newStand(t, nil, nil), soon(t)
	var all sync.WaitGroup
	for _, test := range []struct {
		network, address string
		local            net.Addr
	}{
		{"udp", "127.0.0.1", nil},
		{"udp4", "[::1]:1", nil},
		{"udp6", "127.0.0.1:1", nil},
		{"tcp", "127.0.0.1", nil},
		{"tcp4", "[::1]:1", nil},
		{"tcp6", "127.0.0.1:1", nil},
		{"tcp", "127.0.0.1:1", &net.UDPAddr{}},
		{"unix", "", nil},
		{"unix", "/" + strings.Repeat("x", 200), nil},
		{"tcp4", "[fe80::1%1]:1", nil},
		{"tcp6", "[::ffff:127.0.0.1]:1", nil},
		{"tcp", "127.0.0.1:no-such-service", nil},
		{"tcp", "127.0.0.1:65536", nil},
		{"tcp6", "[::1]:1", &net.UnixAddr{Net: "unix", Name: "x"}},
		{"udp", "127.0.0.1:1", &net.TCPAddr{}},
		{"unix", "x", &net.TCPAddr{}},
		{"unix", "x", &net.UnixAddr{Net: "unixgram", Name: "y"}},
	} {
		all.Go(func() {
			_, err := s.Dial(ctx, test.network, test.address, &sockhub.DialOptions{
				Mode: sockhub.Anonymous, Dialer: &net.Dialer{LocalAddr: test.local}, Reconnect: &sockhub.Backoff{Min: time.Hour, Max: time.Hour}})
			if op := new(net.OpError); !errors.As(err, &op) || op.Op != "dial" || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s %.30q: %v", test.network, test.address, err) // the last attempt's beside the end of ctx is not at once
			}
		})
	}
	all.Wait()
}

// What only may be wrong is dialed: what looks at addresses must let pass what package net
// takes.
func TestAddressesThatAreRight(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for _, test := range []struct {
		network, host string
		local         net.Addr
	}{
		{"tcp", "127.0.0.1", nil},
		{"tcp4", "127.0.0.1", &net.TCPAddr{}},
		{"tcp4", "::ffff:127.0.0.1", nil},
		{"tcp", "::ffff:127.0.0.1", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}},
		{"tcp4", "", nil},
		{"udp4", "127.0.0.1", &net.UDPAddr{}},
	} {
		address := net.JoinHostPort(test.host, port)
		d := &net.Dialer{LocalAddr: test.local}
		nc, err := d.DialContext(soon(t), test.network, address)
		if err != nil {
			t.Errorf("%s %s: package net does not take it either: %v", test.network, address, err)
			continue
		}
		nc.Close()
		s := newStand(t, nil, nil)
		if _, err := s.Dial(soon(t), test.network, address, &sockhub.DialOptions{Mode: sockhub.Anonymous, Dialer: d}); err != nil {
			t.Errorf("%s %s: %v", test.network, address, err)
		}
	}
}

// The last attempt's error is told, also if ctx ends during the next.
func TestTheLastAttemptIsTold(t *testing.T) {
	s := newStand(t, &sockhub.Options{Name: "me"}, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(soon(t))
	go func() {
		for _, then := range []func(){func() {}, cancel} {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			c.Read(make([]byte, 100))
			if then(); ctx.Err() == nil {
				c.Close() // refused
			}
		}
	}()
	_, err = s.Dial(ctx, "tcp", l.Addr().String(), &sockhub.DialOptions{Reconnect: &sockhub.Backoff{Min: time.Millisecond}})
	if !errors.Is(err, sockhub.ErrRefused) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Where no further attempt would help, there is none.
func TestDialOfAddressesThatAreWrong(t *testing.T) {
	hub := openHub(t, nil)
	for _, tt := range []struct {
		network, address string
		wrong            bool
	}{
		{"unix", "a\x00b", true},
		{"unix", "", true},
		{"tcp4", "[::1]:1", true},
		{"tcp6", "127.0.0.1:1", true},
		{"tcp4", "[::]:1", false},
		{"unix", "@a\x00b", false},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if !tt.wrong {
			cancel() // it is tried, and so this is seen
		}
		_, err := hub.Dial(ctx, tt.network, tt.address, &sockhub.DialOptions{Mode: sockhub.Anonymous, Reconnect: &sockhub.Backoff{}})
		if wrong := !errors.Is(err, context.Canceled); err == nil || wrong != tt.wrong || ctx.Err() == context.DeadlineExceeded {
			t.Errorf("%s %q: %v", tt.network, tt.address, err)
		}
		cancel()
	}
}
