package sockhub_test

// Two hubs at the two ends of one connection, of any kind and at random.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
)

// TestPairsAtRandom connects two hubs over a socket or a net.Pipe, plainly, with TLS or with
// a tls.Conn of the user's own, and some over a connection of another's making. Both sides
// send in all ways that there are, until something ends the connection. Then what either
// side's calls have returned, what its report says and what the other side has received
// must tell the same story:
//
//   - each sender's messages arrive in order and without a hole, up to some point
//   - those that the report gives back are later ones: none of them has arrived
//   - the report has accepted what the calls have, and no less was written than arrived
//   - everything arrives, both ways, where nothing failed and one side only finished
//
// The stands see to it that each report balances and each connection ends once, and
// TestMain that no goroutine is left.
func TestPairsAtRandom(t *testing.T) {
	eachSeed(t, 12, func(t *testing.T, seed uint64) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { talkAtRandom(t, rand.New(rand.NewPCG(seed, 8))) })
	})
}

// talkAtRandom logs what it draws, which is shown if it fails.
func talkAtRandom(t *testing.T, rng *rand.Rand) {
	kinds := append(kinds(), "pipe", "pipe", "pipe") // where nothing is in the system's buffers
	kind := kinds[rng.IntN(len(kinds))]
	x, y := net.Pipe()
	if kind != "pipe" {
		x, y = socketPair(t, kind)
	}
	sever := func() { x.Close(); y.Close() }
	t.Cleanup(sever)
	t.Log("over", kind)
	x, failsX := oddly(t, x, rng)
	y, failsY := oddly(t, y, rng)
	fails := failsX || failsY

	mode := []sockhub.Mode{sockhub.Named, sockhub.Anonymous}[rng.IntN(2)]
	lo := &sockhub.ListenOptions{Mode: mode, HalfOpen: rng.IntN(3) == 0}
	do := &sockhub.DialOptions{Mode: mode, Name: "peer"}
	server, client := secure()
	server = server.Clone()
	server.MaxVersion = []uint16{tls.VersionTLS12, tls.VersionTLS13}[rng.IntN(2)]
	security := []string{"none", "TLS", "a tls.Conn"}[rng.IntN(3)]
	switch security {
	case "TLS":
		lo.TLS, do.TLS = server, client
	case "a tls.Conn":
		x, y = tls.Server(x, server), tls.Client(y, client)
	}
	t.Logf("mode %v, half open %v, security %s up to %#x", mode, lo.HalfOpen, security, server.MaxVersion)

	a, b := newTalker(t, rng, lo.HalfOpen), newTalker(t, rng, false)
	served := make(chan error, 1)
	go func() {
		var err error
		if a.c, err = a.ServeConn(soon(t), x, lo); err != nil {
			sever()
		}
		served <- err
	}()
	var err error
	if b.c, err = b.Attach(soon(t), y, do); err != nil {
		sever()
	}
	if err = errors.Join(err, <-served); err != nil {
		if !fails {
			t.Fatal(err)
		}
		return // within the handshake
	}

	var sending sync.WaitGroup
	a.send(rng, &sending)
	b.send(rng, &sending)
	first, second := a, b
	if rng.IntN(2) == 0 {
		first, second = b, a
	}
	how := []string{"Finish", "Close", "severed", "Shutdown", "Hub.Close"}[rng.IntN(5)]
	_, halvesX := x.(interface{ CloseWrite() error })
	_, halvesY := y.(interface{ CloseWrite() error })
	all := !fails && rng.IntN(2) == 0 // is to arrive
	switch {
	case all && (security == "TLS" || halvesX && halvesY) && rng.IntN(2) == 0:
		how = "CloseWrite"
	case all:
		how = "Finish at last"
	}
	t.Log("ended by", how)
	sleepFor(time.Duration(rng.IntN(1+rng.IntN(20))) * time.Millisecond)
	switch how {
	case "CloseWrite":
		first.c.CloseWrite()
	case "Finish at last":
		sending.Wait()
		first.gets(second)
		second.gets(first)
		first.c.Finish()
	case "Finish":
		first.c.Finish()
	case "Close":
		first.c.Close()
	case "severed":
		sever()
	case "Shutdown":
		first.Shutdown(soon(t))
	case "Hub.Close":
		first.Hub.Close()
	}
	endA, endB := a.end(a.c), b.end(b.c)
	sending.Wait()
	t.Logf("one end: %v, %v; the other: %v, %v", endA.Err, endA.Report, endB.Err, endB.Report)
	a.check(endA.Report, b, all)
	b.check(endB.Report, a, all)
}

// talker is one side: a hub, its end of the connection, and what was accepted there.
type talker struct {
	*stand
	c    *sockhub.Conn
	sent [][]string // by sender; each element is that goroutine's
	cut  bool       // a SendFrom has failed, perhaps in the middle
}

// newTalker opens the hub. Who has a half-open connection finishes it after the peer.
func newTalker(t *testing.T, rng *rand.Rand, halfOpen bool) *talker {
	often, own := []int{1, 1000}[rng.IntN(2)], fork(rng)
	s := newStand(t, &sockhub.Options{ConnOutbound: []int64{0, 20_000, 300_000}[rng.IntN(3)]}, func(b *sockhub.Batch) {
		rest(own, often, 5)
		for _, c := range b.Ended {
			if halfOpen {
				c.Finish()
			}
		}
	})
	s.readers = true
	return &talker{stand: s}
}

// send has several senders send in all ways that there are. The last one sends large
// messages from readers.
func (tk *talker) send(rng *rand.Rand, sending *sync.WaitGroup) {
	tk.sent = make([][]string, 2+rng.IntN(2))
	last := len(tk.sent) - 1
	ctx, cancel := context.WithTimeout(tk.t.Context(), time.Duration(1+rng.IntN(1000))*time.Millisecond)
	tk.t.Cleanup(cancel)
	for s := range last {
		own := fork(rng)
		sending.Go(func() { tk.sent[s] = sendAtRandom(tk.t, ctx, tk.c, s, own, 100*time.Microsecond) })
	}
	own := fork(rng)
	sending.Go(func() {
		for k := range own.IntN(10) {
			m := fmt.Sprint(last, ":", k, ":") + strings.Repeat("x", own.IntN(1+own.IntN(300_000)))
			if tk.c.SendFrom(ctx, uint64(len(m)), strings.NewReader(m)) != nil {
				tk.cut = true
				return
			}
			tk.sent[last] = append(tk.sent[last], m)
		}
	})
}

// gets waits until all that the other side has accepted is here, or nothing comes any more.
func (tk *talker) gets(from *talker) {
	tk.until("all that was sent", func() bool {
		return len(tk.msgs[tk.c]) >= len(slices.Concat(from.sent...)) || len(tk.gone[tk.c]) > 0
	})
}

// check compares what the calls have accepted with the report, and with what the other
// side has received. all: that is everything.
func (tk *talker) check(r sockhub.Report, other *talker, all bool) {
	got := texts(other.got(other.c, 0))
	accepted := slices.Concat(tk.sent...)
	n, size := uint64(len(accepted)), uint64(len(strings.Join(accepted, "")))
	if tk.cut && r.Cut && r.AcceptedMessages == n+1 {
		n, size = n+1, size+r.CutSize
	}
	if r.AcceptedMessages != n || r.AcceptedBytes != size {
		tk.t.Errorf("the calls have accepted %d messages of %d bytes in all, the report: %+v", n, size, r)
	}
	if size := uint64(len(strings.Join(got, ""))); uint64(len(got)) > r.WrittenMessages || size > r.WrittenBytes {
		tk.t.Errorf("%d messages of %d bytes in all have arrived: %+v", len(got), size, r)
	}
	if all && len(got) != len(accepted) {
		tk.t.Errorf("%d of %d messages have arrived, though nothing failed: %+v", len(got), len(accepted), r)
	}
	arrived, returned := bySender(got), bySender(unsent(r))
	for s, sent := range tk.sent {
		first, later := arrived[fmt.Sprint(s)], returned[fmt.Sprint(s)]
		if len(first) > len(sent) || !slices.Equal(first, sent[:len(first)]) {
			tk.t.Errorf("sender %d: %d messages have arrived, and are not the first ones of %d", s, len(first), len(sent))
			continue
		}
		left := sent[len(first):]
		for _, m := range later {
			i := slices.Index(left, m)
			if i < 0 {
				tk.t.Errorf("sender %d: message %d is unsent, though it has arrived, or out of its place", s, number(m))
				break
			}
			left = left[i+1:]
		}
	}
}
