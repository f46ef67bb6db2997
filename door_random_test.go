package sockhub_test

// Peers at a door that looks twice: a proxy's header, Classify, TLS, a certificate's name.

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
)

var doorKeys = sync.OnceValues(func() (*authority, []tls.Certificate) {
	ca := newAuthority()
	var all []tls.Certificate
	for i := range 6 {
		all = append(all, ca.certify(fmt.Sprint("n", i)))
	}
	return ca, all
})

// TestDoorAtRandom has peers come to a Listener by way of a proxy's header, Classify and TLS,
// whose certificates say which name they may have, and leave at any byte and in every way,
// while their connections go from Handlers to Events and back. They come back at once under
// their name. Who does all in order is let in, is received whole and gets each answer.
func TestDoorAtRandom(t *testing.T) {
	eachSeed(t, 2, func(t *testing.T, seed uint64) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			(&entrance{t: t, rng: rand.New(rand.NewPCG(seed, 12)), drawn: rand.New(rand.NewPCG(seed, 13))}).run()
		})
	})
}

type entrance struct {
	t   *testing.T
	rng *rand.Rand
	hub *sockhub.Hub

	mu     sync.Mutex
	drawn  *rand.Rand // by callbacks
	conns  map[*sockhub.Conn]*visitLog
	visits map[string]*visitor
}

type visitLog struct {
	announced int
	ended     []sockhub.Disconnection
	told      []sockhub.Disconnection
	got       []string
	sent      []string
}

// visitor is one visit, as the peer saw it.
type visitor struct {
	id    string
	sent  []string
	got   []string
	ok    bool // heard OK
	whole bool // sent all, finished in order and read to the end, without an error
}

// intN draws for callbacks, of which several may run at once: what is drawn is the seed's,
// which of them draws it is not.
func (e *entrance) intN(n int) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.drawn.IntN(n)
}

func (e *entrance) log(c *sockhub.Conn, f func(*visitLog)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.conns[c]
	if l == nil {
		l = new(visitLog)
		e.conns[c] = l
	}
	f(l)
}

func (e *entrance) run() {
	t, rng := e.t, e.rng
	e.conns, e.visits = make(map[*sockhub.Conn]*visitLog), make(map[string]*visitor)
	ca, certs := doorKeys()
	budget := sockhub.NewBudget(1<<20, 1<<20, 0)
	e.hub = openHub(t, &sockhub.Options{
		Budget: budget, MaxMessage: 100_000, Duplicates: pick(rng, sockhub.RefuseNew, sockhub.ReplaceOld), ReuseBuffers: rng.IntN(2) == 0,
		Logger: slog.New(slog.DiscardHandler), Linger: 50 * time.Millisecond, HandshakeTimeout: patience, ConnOutbound: pick(rng, int64(0), 4000),
		StreamOver: pick(rng, int64(0), 3000),
	})
	names := func(p sockhub.Peer) error {
		if p.TLS == nil || len(p.TLS.PeerCertificates) == 0 {
			return errors.New("no certificate")
		}
		return sockhub.TLSName(p.Name)(p)
	}
	server := &tls.Config{Certificates: []tls.Certificate{ca.certify("127.0.0.1")}, ClientCAs: ca.pool, ClientAuth: tls.RequireAndVerifyClientCert}
	server.MaxVersion = pick(rng, uint16(0), tls.VersionTLS12)
	handled := func(*sockhub.Conn) sockhub.Handler {
		if e.intN(2) == 0 {
			return nil
		}
		return &doorman{e: e}
	}
	proxied := rng.IntN(2) == 0
	lo := &sockhub.ListenOptions{Classify: func(p sockhub.Peer, first []byte) (*sockhub.ListenOptions, int, error) {
		switch {
		case len(first) == 0:
			return nil, 1 + e.intN(3), nil
		case len(first) < 5 && e.intN(2) == 0:
			return nil, len(first) + 1 + e.intN(20), nil
		case first[0] == 0x16:
			return &sockhub.ListenOptions{TLS: server, Admit: names, Handler: handled, Tag: "tls"}, 0, nil
		}
		return nil, 0, nil
	}, Handler: handled, Tag: "plain"}
	if proxied {
		lo.ProxyFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}
	for i := range 3 {
		if rng.IntN(2) == 0 {
			e.hub.Expect(fmt.Sprint("n", i), nil)
		}
	}
	t.Logf("proxied %v", proxied)
	l, err := e.hub.Listen(soon(t), "tcp4", "127.0.0.1:0", lo)
	if err != nil {
		t.Fatal(err)
	}
	var loops, work sync.WaitGroup
	loops.Go(e.receive)
	stop := make(chan struct{})
	own := fork(rng)
	loops.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(own.IntN(3000)) * time.Microsecond):
			}
			for c := range e.hub.Conns() {
				switch own.IntN(3) {
				case 0:
					c.SetHandler(&doorman{e: e})
				case 1:
					c.SetHandler(nil)
				}
			}
		}
	})
	for i := range 6 {
		own := fork(rng)
		conf := &tls.Config{RootCAs: ca.pool, ServerName: "127.0.0.1", Certificates: certs[i : i+1], ClientSessionCache: tls.NewLRUClientSessionCache(3)} // a session has its certificate
		work.Go(func() {
			for k := range 12 {
				v := &visitor{id: fmt.Sprint("v", i, "x", k)}
				e.mu.Lock()
				e.visits[v.id] = v
				e.mu.Unlock()
				e.visit(v, l.Addr().String(), fmt.Sprint("n", i), conf, proxied, own)
			}
		})
	}
	work.Wait()
	close(stop)
	eventually(t, "all have ended", func() bool {
		s := e.hub.Stats()
		return s.Conns == 0 && s.Connecting == 0 && s.Accepted == s.Disconnected
	})
	eventually(t, "nothing is held", func() bool { return budget.Held()+e.hub.Held() == "" })
	e.hub.Close()
	loops.Wait()
	e.check()
}

// cutting is a connection that ends when so many bytes were written.
type cutting struct {
	*net.TCPConn
	left int // less than 0: never
	how  int
	cut  bool
}

func (c *cutting) Write(p []byte) (int, error) {
	if c.left < 0 || len(p) <= c.left {
		c.left -= len(p) // stays below 0, if it was
		if c.left < -1<<30 {
			c.left = -1
		}
		return c.TCPConn.Write(p)
	}
	n, _ := c.TCPConn.Write(p[:c.left])
	c.left, c.cut = 0, true
	end(c.TCPConn, c.how)
	return n, errors.New("cut")
}

func end(c *net.TCPConn, how int) {
	switch how {
	case 0:
		c.CloseWrite()
	case 1:
		c.SetLinger(0)
		c.Close()
	case 2:
		c.Close()
	}
}

func (e *entrance) visit(v *visitor, addr, name string, conf *tls.Config, proxied bool, rng *rand.Rand) {
	nc, err := net.Dial("tcp4", addr)
	if err != nil {
		e.t.Error(err)
		return
	}
	tcp := nc.(*net.TCPConn)
	defer tcp.Close()
	tcp.SetDeadline(time.Now().Add(20 * time.Second))
	c := &cutting{TCPConn: tcp, left: -1, how: rng.IntN(3)}
	if rng.IntN(3) == 0 {
		c.left = rng.IntN(1 + rng.IntN(6000))
	}
	if proxied {
		h := []byte("PROXY TCP4 10.1.2.3 10.0.0.1 1000 2000\r\n")
		if rng.IntN(2) == 0 {
			h = []byte("PROXY UNKNOWN\r\n")
		}
		if _, err := c.Write(h); err != nil {
			return
		}
	}
	var stream net.Conn = c
	secure := rng.IntN(3) > 0
	if secure {
		s := tls.Client(c, conf)
		if err := s.Handshake(); err != nil {
			if !c.cut {
				e.t.Errorf("visit %s: %v", v.id, err)
			}
			return
		}
		stream = s
	}
	var first []byte
	first = append(first, frame(name)...)
	early := rng.IntN(2) == 0
	n := rng.IntN(20)
	message := func(k int) string {
		return fmt.Sprint(v.id, ":", k, ":") + strings.Repeat("x", rng.IntN(1+rng.IntN(5000)))
	}
	k := 0
	if early {
		for ; k < n/2; k++ {
			m := message(k)
			v.sent = append(v.sent, m)
			first = append(first, frame(m)...)
		}
	}
	if _, err := stream.Write(first); err != nil {
		if !c.cut {
			e.t.Errorf("visit %s: %v", v.id, err)
		}
		return
	}
	var reading sync.WaitGroup
	var rerr error
	reads := fork(rng)
	reading.Go(func() {
		var in io.Reader = stream
		if reads.IntN(2) == 0 {
			in = &unhurried{stream, reads}
		}
		msgs, cut, err := readAll(in)
		rerr = err
		if len(cut) > 0 && err == nil {
			rerr = io.ErrUnexpectedEOF
		}
		v.got = texts(msgs)
	})
	fails := false
	for ; k < n; k++ {
		m := message(k)
		v.sent = append(v.sent, m)
		if _, err := stream.Write(frame(m)); err != nil {
			fails = true
			break
		}
		rest(rng, 6, 3)
	}
	last := -1
	if !fails {
		switch last = rng.IntN(4); last {
		case 0, 1:
			if h, ok := stream.(*tls.Conn); ok {
				fails = h.CloseWrite() != nil
			} else {
				tcp.CloseWrite()
			}
		case 2: // without goodbye
			end(tcp, rng.IntN(2)*2)
		case 3:
			tcp.SetLinger(0)
			tcp.Close()
		}
	} else if !c.cut {
		e.t.Errorf("visit %s: a write fails: %v", v.id, err)
	}
	if fails && c.how == 0 {
		rest(rng, 1, 10)
		tcp.Close()
	}
	reading.Wait()
	v.ok = len(v.got) > 0 && v.got[0] == "OK"
	v.whole = !fails && last < 2 && rerr == nil && !c.cut
	if !fails && last < 2 && !v.whole {
		e.t.Errorf("visit %s, in order: secure %v, %d messages: %v, cut %v", v.id, secure, len(v.sent), rerr, c.cut)
	}
	if v.whole && !v.ok {
		e.t.Errorf("visit %s was not let in", v.id)
	}
}

func (e *entrance) receive() {
	for b := range e.hub.Events() {
		for _, c := range slices.Concat(b.Connected, b.Unknown) {
			e.log(c, func(l *visitLog) { l.announced++ })
		}
		for _, d := range b.Received {
			for _, m := range d.Messages {
				e.got(d.Conn, m, func(a []byte) error {
					ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
					defer cancel()
					return d.Conn.Send(ctx, a)
				})
			}
			if d.Stream != nil {
				if m, err := io.ReadAll(d.Stream); err == nil {
					e.got(d.Conn, m, d.Conn.TrySend)
				}
			}
		}
		for _, d := range b.Disconnected {
			e.log(d.Conn, func(l *visitLog) { l.ended = append(l.ended, d) })
		}
		b.Release()
	}
}

func (e *entrance) got(c *sockhub.Conn, m []byte, answer func([]byte) error) {
	a := append([]byte("to "), m[:min(len(m), 1+e.intN(3000))]...)
	e.log(c, func(l *visitLog) { l.got = append(l.got, string(m)) })
	if e.intN(3) > 0 && answer(bytes.Clone(a)) == nil {
		e.log(c, func(l *visitLog) { l.sent = append(l.sent, string(a)) })
	}
}

type doorman struct {
	e *entrance
	sockhub.BaseHandler
}

func (d *doorman) Message(r *sockhub.Reply, m []byte) { d.e.got(r.Conn(), m, r.Send) }
func (d *doorman) Stream(r *sockhub.Reply, s *sockhub.Stream) {
	if m, err := io.ReadAll(s); err == nil {
		d.e.got(r.Conn(), m, r.Send)
	}
}
func (d *doorman) Disconnected(x sockhub.Disconnection) {
	d.e.log(x.Conn, func(l *visitLog) { l.told = append(l.told, x) })
}

func (e *entrance) check() {
	t := e.t
	met := make(map[string]bool)
	for c, l := range e.conns {
		if l.announced > 1 || len(l.ended) != l.announced || len(l.told) > 1 || len(l.ended)+len(l.told) == 0 {
			t.Errorf("%v: announced %d times, ended %d, Handlers told %d", c, l.announced, len(l.ended), len(l.told))
			continue
		}
		d := slices.Concat(l.ended, l.told)[0]
		balances(t, c, d)
		if d.Report.AcceptedMessages != uint64(len(l.sent)) {
			t.Errorf("%v: %d were accepted: %v", c, len(l.sent), d.Report)
		}
		if len(l.got) == 0 {
			continue
		}
		id, _, _ := strings.Cut(l.got[0], ":")
		v := e.visits[id]
		if v == nil {
			t.Errorf("%v: got %.30q", c, l.got[0])
			continue
		}
		if met[id] {
			t.Errorf("visit %s is that of two connections", id)
		}
		met[id] = true
		slices.SortStableFunc(l.got, func(a, b string) int { return number(a) - number(b) })
		if len(l.got) > len(v.sent) || !slices.Equal(l.got, v.sent[:len(l.got)]) {
			t.Errorf("visit %s: received %d of %d, or others", id, len(l.got), len(v.sent))
		}
		if v.whole && (len(l.got) != len(v.sent) || d.Err != io.EOF) {
			t.Errorf("visit %s: received %d of %d, and ended with %v", id, len(l.got), len(v.sent), d.Err)
		}
		if !v.ok {
			continue
		}
		arrived := slices.Clone(v.got[1:])
		back := unsent(d.Report)
		if v.whole && uint64(len(arrived)) != d.Report.WrittenMessages || uint64(len(arrived)) > d.Report.WrittenMessages {
			t.Errorf("visit %s: %d arrived: %v", id, len(arrived), d.Report)
		}
		left := make(map[string]int)
		for _, m := range l.sent {
			left[m]++
		}
		for _, m := range append(arrived, back...) {
			if left[m]--; left[m] < 0 {
				t.Errorf("visit %s: %.30q was not accepted, or came twice", id, m)
			}
		}
	}
	for id, v := range e.visits {
		if v.whole && len(v.sent) > 0 && !met[id] {
			t.Errorf("visit %s: nothing was received of %d", id, len(v.sent))
		}
	}
	if s := e.hub.Stats(); s.Accepted < uint64(len(e.conns)) {
		t.Errorf("%d connections: %+v", len(e.conns), s)
	}
}
