package sockhub_test

// What Handlers answer over transports that fail: the reports balance.

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// TestAnswersBalanceUnderFaults is TestReportsBalanceUnderFaults with a Handler that
// answers meanwhile, messages that are sent from readers, a peer that talks, and TLS for
// some.
func TestAnswersBalanceUnderFaults(t *testing.T) {
	eachBubble(t, 200, func(t *testing.T, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 1))
		chance := func() float64 { return max(0, rng.Float64()*1.5-0.5) }
		mo := &memnet.Options{
			Buffer: 1 + rng.IntN(30_000), Seed: rng.Uint64(), Unix: rng.IntN(3) == 0, NoWriteNow: rng.IntN(3) == 0,
			Faults: memnet.Faults{ShortWrite: chance(), ShortRead: chance(), Blind: chance(), Spurious: chance(), Delay: chance(), Stall: chance()},
		}
		switch at := 3000 + rng.Int64N(40_000); rng.IntN(5) { // mostly after the handshake
		case 0:
			mo.Faults.ResetAt[0] = at
		case 1:
			mo.Faults.FailWriteAt[0] = at
		}
		ours, end := memnet.Pair(mo)
		answerAtRandom(t, rng, ours, end, func() { end.Reset() }, time.Millisecond)
	})
}

// Over sockets, TLS does not wait where it does in memory.
func TestAnswersBalanceOverSockets(t *testing.T) {
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "s")} {
		t.Run(network, func(t *testing.T) {
			l, err := net.Listen(network, address)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			eachSeed(t, 20, func(t *testing.T, seed uint64) {
				end, err := net.Dial(network, l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				ours, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				end.(interface{ SetReadBuffer(int) error }).SetReadBuffer(4096)
				ours.(interface{ SetWriteBuffer(int) error }).SetWriteBuffer(4096)
				reset := func() {
					if c, ok := end.(*net.TCPConn); ok {
						c.SetLinger(0)
					}
					end.Close()
				}
				answerAtRandom(t, rand.New(rand.NewPCG(seed, 1)), ours, end, reset, 20*time.Microsecond)
			})
		})
	}
}

// answerAtRandom checks the accounts of a connection whose peer has the other end. All
// waits are in proportion to unit.
func answerAtRandom(t *testing.T, rng *rand.Rand, ours, end net.Conn, reset func(), unit time.Duration) {
	fork := func() *rand.Rand { return rand.New(rand.NewPCG(rng.Uint64(), 1)) }
	defer end.Close()
	policy := sockhub.OverflowPolicy(1 + rng.IntN(4))
	h := &randomAnswers{sender: sender{name: "h", rng: fork()}, end: make(chan sockhub.Disconnection, 1)}
	lo := &sockhub.ListenOptions{Mode: sockhub.Anonymous, ConnOutbound: 1 + rng.Int64N(20_000), Overflow: policy,
		Handler: func(*sockhub.Conn) sockhub.Handler { return h }}
	p := end
	if rng.IntN(2) == 0 {
		server, client := secure()
		lo.TLS, p = server, tls.Client(end, client)
	}
	hub := openHub(t, &sockhub.Options{Linger: time.Second, OutboundLimit: []int64{0, 30_000}[rng.IntN(2)]})

	var (
		peer  sync.WaitGroup
		plain strings.Builder // what the peer got
	)
	rr, rw := fork(), fork()
	pace := time.Duration(rng.IntN(20)) * unit
	peer.Go(func() {
		for buf := make([]byte, 4000); ; {
			n, err := p.Read(buf[:1+rr.IntN(len(buf))])
			plain.Write(buf[:n])
			if err != nil {
				return
			}
			if rr.IntN(4) == 0 {
				sleepFor(pace)
			}
		}
	})
	c, err := hub.ServeConn(t.Context(), ours, lo)
	if err != nil {
		if strings.Contains(err.Error(), "remote error") {
			t.Fatalf("the peer refuses TLS: %v", err)
		}
		return // a fault has met the handshake of TLS
	}
	quiet := make(chan struct{})
	peer.Go(func() {
		for range 40 {
			select {
			case <-quiet:
				return
			case <-time.After(time.Duration(rw.IntN(20)) * unit):
			}
			if _, err := p.Write(frame(string(make([]byte, rw.IntN(1000))))); err != nil {
				return
			}
		}
	})

	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+rng.IntN(3000))*unit)
	defer cancel()
	var sending sync.WaitGroup
	senders := []*sender{&h.sender}
	for i := range 3 {
		s := &sender{name: fmt.Sprint(i), rng: fork()}
		senders = append(senders, s)
		sending.Go(func() {
			for range 8 {
				if s.rng.IntN(3) == 0 {
					m := s.message(100_000)
					s.sent(m, c.SendFrom(ctx, uint64(len(m)), strings.NewReader(m)))
				}
				s.accepted = append(s.accepted, sendAtRandom(t, ctx, c, i, s.rng, unit)...)
			}
		})
	}
	sleepFor(time.Duration(rng.IntN(1000)) * unit)
	how := rng.IntN(3)
	switch how {
	case 0:
		c.Close()
	case 1:
		reset()
	default: // also if a fault has ended it, or will
		sending.Wait()
		c.Finish()
	}
	sending.Wait()
	close(quiet)
	left := make(chan struct{})
	go func() { peer.Wait(); close(left) }()
	select {
	case <-left:
	case <-time.After(30_000 * unit): // a write has failed, and the peer has yet to leave
	}
	end.Close()
	peer.Wait()

	d := <-h.end
	r := d.Report
	what := fmt.Sprintf("TLS %v, %v, ended by %d with %v: %v", lo.TLS != nil, policy, how, d.Err, r)
	all, cut := uint64(0), uint64(0)
	for _, s := range senders {
		all += uint64(len(s.accepted))
	}
	known := unsent(r)
	if r.Cut {
		cut = 1
		if m := r.CutMessage(); m != nil {
			known = slices.Insert(known, 0, string(m))
		} else if r.AcceptedMessages == all+1 {
			all++ // that SendFrom has failed, and is accounted for all the same
		}
	}
	if r.AcceptedMessages != all || all != r.WrittenMessages+r.UnsentMessages+r.DroppedMessages+cut {
		t.Errorf("%d were accepted: %s", all, what)
	}
	if r.DroppedMessages > 0 && policy != sockhub.DropOldest {
		t.Errorf("dropped: %s", what)
	}
	got, _, _ := readAll(strings.NewReader(plain.String()))
	if uint64(len(got)) > r.WrittenMessages {
		t.Errorf("%d arrived: %s", len(got), what)
	}
	known = append(texts(got), known...)
	for _, s := range senders {
		rest := s.accepted
		for _, m := range known {
			if !strings.HasPrefix(m, s.name+":") {
				continue
			}
			at := slices.Index(rest, m)
			if at < 0 {
				t.Fatalf("%.20q arrived or is unsent in the wrong place, or twice, or was never accepted: %s", m, what)
			}
			rest = rest[at+1:]
		}
	}
	hub.Close()
	if s := hub.Stats(); s.QueuedOut != 0 || s.QueuedIn != 0 {
		t.Errorf("%+v after %s", s, what)
	}
}

// sender keeps account of what was accepted of its messages.
type sender struct {
	name     string
	rng      *rand.Rand
	accepted []string
	n        int
}

func (s *sender) message(longest int) string {
	s.n++
	return fmt.Sprint(s.name, ":m", s.n, ":") + strings.Repeat(string(rune('a'+s.rng.IntN(26))), s.rng.IntN(1+s.rng.IntN(longest)))
}

func (s *sender) sent(m string, err error) {
	if err == nil {
		s.accepted = append(s.accepted, m)
	}
}

// randomAnswers is a Handler that answers as it likes.
type randomAnswers struct {
	sockhub.BaseHandler
	sender
	end chan sockhub.Disconnection
}

func (h *randomAnswers) Message(r *sockhub.Reply, _ []byte) {
	for range h.rng.IntN(3) {
		m := h.message(6000)
		switch h.rng.IntN(5) {
		case 0:
			h.sent(m, r.SendFrom(uint64(len(m)), io.NopCloser(strings.NewReader(m))))
		case 1:
			h.sent(m, r.Send([]byte(m)))
			r.Flush()
		default:
			h.sent(m, r.Send([]byte(m)))
		}
	}
}

func (h *randomAnswers) Drained(r *sockhub.Reply) { h.Message(r, nil) }

func (h *randomAnswers) Disconnected(d sockhub.Disconnection) { h.end <- d }
