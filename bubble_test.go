package sockhub_test

// What the tests in bubbles of synctest have in common, beside room: one
// connection in memory, and what becomes of it.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// line is one anonymous connection of a hub, and the peer's end of it.
type line struct {
	*room
	c *sockhub.Conn
	p *memnet.End
}

// newLine makes a hub with one connection, whose report as new is taken.
func newLine(t *testing.T, o *sockhub.Options, mo *memnet.Options, lo *sockhub.ListenOptions) *line {
	t.Helper()
	r := newRoom(t, o, nil)
	c, p := r.serve(mo, lo)
	r.take()
	return &line{r, c, p}
}

// serve serves one end of a new connection, anonymously unless lo says
// otherwise, and returns the other.
func (r *room) serve(mo *memnet.Options, lo *sockhub.ListenOptions) (*sockhub.Conn, *memnet.End) {
	r.t.Helper()
	ours, peer := memnet.Pair(mo)
	var o sockhub.ListenOptions
	if lo != nil {
		o = *lo
	}
	if o.Mode == 0 {
		o.Mode = sockhub.Anonymous
	}
	c, err := r.ServeConn(r.t.Context(), ours, &o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { peer.Close() })
	return c, peer
}

// stuck is a buffer that no whole message fits into.
var stuck = &memnet.Options{Buffer: 4}

// ended takes batches until the connection's end, which it returns.
func (l *line) ended() sockhub.Disconnection { l.t.Helper(); return l.endOf(l.c) }

func (r *room) endOf(c *sockhub.Conn) sockhub.Disconnection {
	r.t.Helper()
	for {
		b := r.take()
		for _, d := range b.Disconnected {
			if d.Conn == c {
				checkReport(r.t, c, d, false)
				return d
			}
		}
		if len(batchText(b))+len(b.Drained) == 0 {
			r.t.Fatalf("%v has not ended: %+v", c, c.Stats())
		}
	}
}

// endsWith checks the reason of the end.
func (l *line) endsWith(want error) sockhub.Disconnection {
	l.t.Helper()
	d := l.ended()
	if !errors.Is(d.Err, want) {
		l.t.Fatalf("ended with %v, want %v", d.Err, want)
	}
	return d
}

// sent is Send that must not wait.
func (l *line) sent(msgs ...string) {
	l.t.Helper()
	for _, m := range msgs {
		if err := l.c.TrySend([]byte(m)); err != nil {
			l.t.Fatal(err)
		}
	}
}

// drained takes what waits, and returns how many Drained there were.
func (l *line) drained() (n int) {
	l.t.Helper()
	for {
		b := l.take()
		if len(b.Drained)+len(batchText(b)) == 0 {
			return n
		}
		n += len(b.Drained)
	}
}

// readAll reads messages until the end. cut are the bytes of an unfinished one,
// its header included.
func readAll(p io.Reader) (msgs [][]byte, cut []byte, err error) {
	wire, err := io.ReadAll(p)
	for len(wire) >= 8 {
		n := binary.LittleEndian.Uint64(wire)
		if n > uint64(len(wire)-8) {
			break
		}
		msgs = append(msgs, wire[8:8+n])
		wire = wire[8+n:]
	}
	return msgs, wire, err
}

// texts are messages as strings.
func texts(msgs [][]byte) (all []string) {
	for _, m := range msgs {
		all = append(all, string(m))
	}
	return all
}

// unsent are a report's.
func unsent(r sockhub.Report) []string { return texts(slices.Collect(r.Unsent())) }

// numbered is message k of some sender: different from all others, and of any
// size from its number's on.
func numbered(k, size int) []byte {
	m := fmt.Appendf(nil, "%06d ", k)
	return append(m, bytes.Repeat([]byte{byte('a' + k%26)}, max(0, size-len(m)))...)
}

// result is what a call returns that runs in a goroutine.
type result struct {
	n   int
	err error
}

// async runs a call that may have to wait.
func async(f func() (int, error)) <-chan result {
	done := make(chan result, 1)
	go func() {
		n, err := f()
		done <- result{n, err}
	}()
	return done
}

// sending runs a Send.
func (l *line) sending(ctx context.Context, m string) <-chan result {
	return async(func() (int, error) { return 0, l.c.Send(ctx, []byte(m)) })
}

// waits checks that none of the calls has returned.
func waits(t *testing.T, calls ...<-chan result) {
	t.Helper()
	synctest.Wait()
	for i, call := range calls {
		select {
		case r := <-call:
			t.Fatalf("call %d has returned: %+v", i, r)
		default:
		}
	}
}

// returns checks that a call returns without any time passing.
func returns(t *testing.T, call <-chan result, want error) int {
	t.Helper()
	synctest.Wait()
	select {
	case r := <-call:
		if !errors.Is(r.err, want) {
			t.Fatalf("the call returned %v, want %v", r.err, want)
		}
		return r.n
	default:
		t.Fatal("the call waits")
		return 0
	}
}

// within reports how long f takes.
func within(f func()) time.Duration {
	begun := time.Now()
	f()
	return time.Since(begun)
}

// sleepFor waits for d in a bubble. Use it wherever d may be nothing, instead of
// <-time.After(d): two goroutines of a bubble that receive from channels of timers
// which have gone off already crash the race detector (golang/go#78156).
func sleepFor(d time.Duration) {
	if d > 0 {
		<-time.After(d)
	}
}

// eachBubble is eachSeed, with a bubble for each.
func eachBubble(t *testing.T, n int, run func(t *testing.T, seed uint64)) {
	t.Helper()
	eachSeed(t, n, func(t *testing.T, seed uint64) {
		synctest.Test(t, func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("again with: -run '^%s$' -names.seed=%d", t.Name(), seed)
				}
			}()
			run(t, seed)
		})
	})
}
