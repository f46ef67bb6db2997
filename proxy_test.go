package sockhub_test

// PROXY headers.

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

const (
	proxyV1 = "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"
	proxyV2 = "\r\n\r\n\x00\r\nQUIT\n" + "\x21\x11\x00\x0c" + "\xc0\x00\x02\x01" + "\xc6\x33\x64\x07" + "\xdc\x04" + "\x01\xbb"
	local   = "\r\n\r\n\x00\r\nQUIT\n" + "\x20\x00\x00\x00"
	// behind is the client that both name.
	behind = "192.0.2.1:56324"
)

var proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// through connects as a proxy does, and writes these parts one by one.
func through(t *testing.T, l *sockhub.Listener, parts ...string) *peer {
	t.Helper()
	nc, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range parts {
		if _, err := io.WriteString(nc, part); err != nil {
			t.Fatal(err)
		}
		runtime.Gosched() // so that it may arrive alone
	}
	return greet(t, nc, "")
}

func TestProxyTellsTheClient(t *testing.T) {
	t.Parallel()
	name := string(wire([]byte("alice")))
	for _, test := range []struct {
		what  string
		parts []string
		want  string // "": the proxy's own address
	}{
		{"v1 with the name", []string{proxyV1 + name}, behind},
		{"v2 with the name", []string{proxyV2 + name}, behind},
		{"v1 byte by byte", strings.Split(proxyV1+name, ""), behind},
		{"v2 byte by byte", strings.Split(proxyV2+name, ""), behind},
		{"v1 unknown", []string{"PROXY UNKNOWN\r\n", name}, ""},
		{"v2 local", []string{local + name}, ""},
	} {
		t.Run(test.what, func(t *testing.T) {
			t.Parallel()
			var asked []netip.AddrPort
			s := newStand(t, nil, echo)
			l := s.listen("tcp4", &sockhub.ListenOptions{ProxyFrom: proxies, Admit: func(p sockhub.Peer) error {
				asked = append(asked, p.AddrPort)
				return nil
			}})
			p := through(t, l, test.parts...)
			if m := p.receive(); string(m) != "OK" {
				t.Fatalf("the answer to the name is %q", m)
			}
			want := test.want
			if want == "" {
				want = p.LocalAddr().String()
			}
			c := s.first()
			if got := c.Peer(); c.Name() != "alice" || got.AddrPort.String() != want || got.Remote.String() != want {
				t.Errorf("the peer is %v, %v; want %s", got, got.Remote, want)
			}
			if got := c.Peer().Local.String(); got != l.Addr().String() {
				t.Errorf("our end is %s, want %v", got, l.Addr())
			}
			if len(asked) != 1 || asked[0].String() != want {
				t.Errorf("the rule was asked about %v, want %s", asked, want)
			}
			p.send([]byte("hello"))
			if m := p.receive(); string(m) != "hello" {
				t.Errorf("the echo is %q", m)
			}
		})
	}
}

func TestRulesSeeTheClientOfAProxy(t *testing.T) {
	t.Parallel()
	s := newStand(t, nil, nil)
	l := s.listen("tcp4", &sockhub.ListenOptions{ProxyFrom: proxies, Mode: sockhub.Anonymous, Admit: sockhub.Loopback()})
	through(t, l, proxyV2).atEnd()
	through(t, l, local)
	if got := s.first().Peer().AddrPort.Addr(); !got.IsLoopback() {
		t.Errorf("admitted %v", got)
	}
}

func TestTLSAndClassifyBehindAProxy(t *testing.T) {
	t.Parallel()
	ca := newAuthority()
	type call struct {
		client string
		first  int
	}
	var calls []call
	s := newStand(t, nil, echo)
	o := &sockhub.ListenOptions{Tag: "chosen", TLS: &tls.Config{Certificates: []tls.Certificate{ca.certify("127.0.0.1")}}}
	l := s.listen("tcp4", &sockhub.ListenOptions{ProxyFrom: proxies,
		Classify: func(p sockhub.Peer, first []byte) (*sockhub.ListenOptions, int, error) {
			calls = append(calls, call{p.AddrPort.String(), len(first)})
			if len(first) < 3 {
				return nil, 3, nil
			}
			if string(first[:2]) != "\x16\x03" {
				return nil, 0, errors.New("not TLS")
			}
			return o, 0, nil
		}})
	// The header and the hello are one write, as a proxy may send them.
	nc, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	p := greet(t, tls.Client(&headed{Conn: nc, header: proxyV2}, &tls.Config{RootCAs: ca.pool, ServerName: "127.0.0.1"}), "alice")
	p.send([]byte("hello"))
	if m := p.receive(); string(m) != "hello" {
		t.Errorf("the echo is %q", m)
	}
	got := s.first().Peer()
	if got.AddrPort.String() != behind || got.TLS == nil || got.Tag != "chosen" {
		t.Errorf("the peer is %v, tag %q, TLS %v", got, got.Tag, got.TLS != nil)
	}
	if len(calls) != 2 || calls[0] != (call{behind, 0}) || calls[1].client != behind || calls[1].first < 3 {
		t.Errorf("Classify was called with %v", calls)
	}
}

// headed puts a header before the first bytes that are written.
type headed struct {
	net.Conn
	header string
}

func (h *headed) Write(p []byte) (int, error) {
	n := len(h.header)
	m, err := h.Conn.Write(append([]byte(h.header), p...))
	h.header = ""
	return max(0, m-n), err
}

func TestHeaderOfAStrangerIsData(t *testing.T) {
	t.Parallel()
	s := newStand(t, nil, nil)
	for i, from := range [][]netip.Prefix{nil, {netip.MustParsePrefix("127.0.0.2/32"), netip.MustParsePrefix("::/0")}} {
		l := s.listen("tcp4", &sockhub.ListenOptions{ProxyFrom: from, Mode: sockhub.Raw})
		p := through(t, l, proxyV1)
		p.closeWrite()
		c := s.nth(i)
		s.end(c)
		var got string
		for _, m := range s.got(c, 1) {
			got += string(m)
		}
		if got != proxyV1 || c.Peer().AddrPort.String() != p.LocalAddr().String() {
			t.Errorf("%v: received %q from %v", from, got, c.Peer())
		}
	}
}

func TestProxyWithoutAHeaderIsRefused(t *testing.T) {
	t.Parallel()
	s := newStand(t, nil, nil)
	l := s.listen("tcp4", &sockhub.ListenOptions{ProxyFrom: proxies})
	refused := []string{string(wire([]byte("alice"))), "PROXY TCP4 ::1 ::1 1 1\r\n", strings.Replace(proxyV2, "\x21\x11\x00", "\x21\x11\xff", 1)}
	for _, first := range refused {
		nc, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		nc.Write([]byte(first))
		// A reset, where there was more than was read.
		if n, err := io.Copy(io.Discard, greet(t, nc, "")); n != 0 || isTimeout(err) {
			t.Errorf("%q was answered %d bytes, %v", first, n, err)
		}
	}
	p := through(t, l, "PROXY TCP4 ")
	s.Close()
	if _, err := p.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("a header under way at the hub's end: %v", err)
	}
	if n := s.Stats().RefusedPolicy; n != uint64(len(refused)) {
		t.Errorf("%d refused, want %d", n, len(refused))
	}
}

func TestHandshakeTimeoutIncludesTheHeader(t *testing.T) {
	t.Parallel()
	const limit = 800 * time.Millisecond
	s := newStand(t, &sockhub.Options{HandshakeTimeout: limit}, nil)
	l := s.listen("tcp4", &sockhub.ListenOptions{ProxyFrom: proxies})
	through(t, l, "PROXY TCP4 ").atEnd()
	// A header in the last moment does not begin a new time.
	start := time.Now()
	p := through(t, l, "PROXY ")
	<-time.After(limit * 3 / 4)
	io.WriteString(p, "UNKNOWN\r\n") // fails if it is late already
	io.Copy(io.Discard, p)
	if d := time.Since(start); d > limit*3/2 {
		t.Errorf("the handshake took %v of %v", d, limit)
	}
	s.Close() // then it is counted
	if n := s.Stats().HandshakeTimeouts; n != 2 {
		t.Errorf("%d timeouts, want 2", n)
	}
}

func TestProxyFromOptions(t *testing.T) {
	t.Parallel()
	s := newStand(t, nil, nil)
	if _, err := s.Listen(soon(t), "tcp4", "127.0.0.1:0", &sockhub.ListenOptions{ProxyFrom: make([]netip.Prefix, 1)}); err == nil {
		t.Error("an invalid prefix is no error")
	}
	a, b := net.Pipe()
	defer b.Close()
	if _, err := s.ServeConn(soon(t), a, &sockhub.ListenOptions{ProxyFrom: proxies}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("ServeConn: %v, want ErrUnsupported", err)
	}
}

func TestServeConnDoesNotPassOverClassify(t *testing.T) {
	t.Parallel()
	a, b := net.Pipe()
	defer b.Close()
	_, err := newStand(t, nil, nil).ServeConn(soon(t), a, &sockhub.ListenOptions{
		Mode:     sockhub.Anonymous,
		Classify: func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) { return nil, 0, nil },
	})
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v, want ErrUnsupported", err)
	}
}

// HandshakeTimeout holds before the handshake too where a connection has no deadlines.
func TestHandshakeTimeoutWithoutDeadlines(t *testing.T) {
	for what, o := range map[string]sockhub.ListenOptions{
		"a header": {ProxyFrom: proxies},
		"Classify": {Classify: func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) { return nil, 4, nil }},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := openHub(t, nil)
				l := memnet.Listen(&memnet.Options{Remote: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}})
				if _, err := s.Serve(timeless{l}, &o); err != nil {
					t.Fatal(err)
				}
				p, err := l.Dial(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				start := time.Now()
				if _, err := p.Read(make([]byte, 1)); err == nil {
					t.Error("something was said")
				}
				if d := time.Since(start); d != sockhub.DefaultHandshakeTimeout {
					t.Errorf("it went after %v, want %v", d, sockhub.DefaultHandshakeTimeout)
				}
				synctest.Wait()
				if n := s.Stats().HandshakeTimeouts; n != 1 {
					t.Errorf("%d timeouts, want 1", n)
				}
			})
		})
	}
}

// Nor does it wait for a Close that says goodbye first, as that of package tls does.
func TestHandshakeTimeoutOfAConnThatSaysGoodbye(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openHub(t, nil)
		l := memnet.Listen(stuck)
		server, client := secure()
		if _, err := s.Serve(tls.NewListener(l, server), &sockhub.ListenOptions{
			Classify: func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) { return nil, 4, nil },
		}); err != nil {
			t.Fatal(err)
		}
		p, err := l.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if err := tls.Client(p, client).Handshake(); err != nil {
			t.Fatal(err)
		}
		<-time.After(sockhub.DefaultHandshakeTimeout + time.Second/2)
		if n := s.Stats().HandshakeTimeouts; n != 1 {
			t.Errorf("%d timeouts, want 1", n)
		}
	})
}

// timeless is a listener of connections without deadlines.
type timeless struct{ net.Listener }

func (l timeless) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return timelessConn{c}, nil
}

type timelessConn struct{ net.Conn }

func (timelessConn) SetDeadline(time.Time) error      { return errors.ErrUnsupported }
func (timelessConn) SetReadDeadline(time.Time) error  { return errors.ErrUnsupported }
func (timelessConn) SetWriteDeadline(time.Time) error { return errors.ErrUnsupported }

// Who has made room for another while Classify was asked takes no place again.
func TestWhoMadeRoomTakesNoPlaceAgain(t *testing.T) {
	for _, proxied := range []bool{false, true} {
		t.Run(fmt.Sprint("proxied ", proxied), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := openHub(t, &sockhub.Options{MaxPending: 1})
				asked := 0
				decide := make(chan struct{})
				o := &sockhub.ListenOptions{Classify: func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) {
					if asked++; asked == 1 {
						<-decide
					}
					return nil, 0, nil
				}}
				if proxied {
					o.ProxyFrom = proxies
				}
				l := memnet.Listen(&memnet.Options{Remote: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}})
				if _, err := s.Serve(l, o); err != nil {
					t.Fatal(err)
				}
				dial := func() *memnet.End {
					p, err := l.Dial(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					if proxied {
						io.WriteString(p, proxyV1)
					}
					synctest.Wait()
					return p
				}
				const evictable = 1100 * time.Millisecond
				defer dial().Close()
				<-time.After(evictable)
				defer dial().Close() // in its place
				<-time.After(evictable)
				close(decide)
				synctest.Wait()
				if got := s.Stats(); got.RefusedLimit != 1 || got.Connecting != 1 {
					t.Errorf("%d refused for a limit and %d connecting, want 1 and 1", got.RefusedLimit, got.Connecting)
				}
			})
		})
	}
}
