package sockhub_test

// Orderly ends, at random.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// TestOrderlyEndsDeliverAll has one connection to which many send in all ways, and which
// answers, while one side or both end it in order. All that was accepted arrives, in the
// order of who has sent it; only what a Handler has answered in a call within which the
// output ended may be given back.
func TestOrderlyEndsDeliverAll(t *testing.T) {
	eachBubble(t, 150, func(t *testing.T, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 80))
		o := &orderly{t: t, made: map[string]int{}, accepted: map[string][]string{}}
		o.hub = openHub(t, &sockhub.Options{
			ConnOutbound: 500 + rng.Int64N(30_000), OutboundLimit: []int64{0, 30_000 + rng.Int64N(100_000)}[rng.IntN(2)], MaxConns: 8,
			ReuseBuffers: rng.IntN(2) == 0, StreamOver: []int64{0, 100}[rng.IntN(2)],
			Overflow: []sockhub.OverflowPolicy{sockhub.BlockSender, sockhub.DropNewest}[rng.IntN(2)],
		})
		o.how = orderlyEnd(rng.IntN(int(orderlyEnds)))
		o.lo.HalfOpen = o.how == peerFinishes && rng.IntN(2) == 0
		if rng.IntN(2) == 0 {
			answers := fork(rng)
			o.lo.Handler = func(*sockhub.Conn) sockhub.Handler { return o.handler(answers) }
		}
		o.run(rng)
	})
}

type orderlyEnd int

const (
	peerFinishes orderlyEnd = iota
	weFinish
	weFinishOutputFirst
	bothFinish
	hubShutsDown
	orderlyEnds
)

type orderly struct {
	t   *testing.T
	hub *sockhub.Hub
	how orderlyEnd
	lo  sockhub.ListenOptions
	c   *sockhub.Conn

	mu       sync.Mutex
	made     map[string]int      // messages, by who sends them
	accepted map[string][]string // likewise
	end      *sockhub.Disconnection
}

func (o *orderly) run(rng *rand.Rand) {
	var peer *memnet.End
	o.c, peer = serveMemory(o.t, o.hub, &memnet.Options{
		Seed: rng.Uint64(), Buffer: 200 + rng.IntN(20_000), Unix: rng.IntN(2) == 0, NoWriteNow: rng.IntN(3) == 0,
		Faults: memnet.Faults{ShortWrite: 0.1, ShortRead: 0.1, Spurious: 0.1, Delay: 0.1, MaxWait: 20 * time.Millisecond},
	}, o.lo)
	var events, work sync.WaitGroup
	answers := fork(rng)
	events.Go(func() { o.events(answers) })
	var got [][]byte
	reads := fork(rng)
	work.Go(func() {
		var cut []byte
		var err error
		if got, cut, err = readAll(&unhurried{peer, reads}); len(cut) > 0 || err != nil {
			o.t.Errorf("the peer's input ends with %d bytes and %v", len(cut), err)
		}
		peer.Close()
	})
	for i := range 2 {
		sender := fork(rng)
		work.Go(func() { o.send(fmt.Sprint("sender ", i), sender) })
	}
	ends := fork(rng)
	work.Go(func() { o.finish(peer, ends) })
	work.Wait()
	<-time.After(time.Minute)
	o.hub.Close()
	events.Wait()
	o.check(texts(got))
}

// message is what who sends next.
func (o *orderly) message(who string, rng *rand.Rand) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.made[who]++
	size := rng.IntN(3000)
	if rng.IntN(15) == 0 {
		size = rng.IntN(300_000)
	}
	return fmt.Sprintf("%s:%d:", who, o.made[who]) + strings.Repeat("x", size)
}

func (o *orderly) accept(who string, msgs ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.accepted[who] = append(o.accepted[who], msgs...)
}

// answer sends one message by send.
func (o *orderly) answer(who string, rng *rand.Rand, send func(m string) error) {
	if m := o.message(who, rng); send(m) == nil {
		o.accept(who, m)
	}
}

const byHandler = "a Handler"

func (o *orderly) handler(rng *rand.Rand) sockhub.Handler {
	more := rng.IntN(3) == 0 // at each Drained
	return &handlerFuncs{
		message: func(r *sockhub.Reply, _ []byte) {
			for range rng.IntN(3) {
				o.answer(byHandler, rng, func(m string) error {
					if rng.IntN(3) == 0 {
						return r.SendFrom(uint64(len(m)), io.NopCloser(&unhurried{strings.NewReader(m), fork(rng)}))
					}
					return r.Send([]byte(m))
				})
			}
			rest(rng, 5, 30)
		},
		drained: func(r *sockhub.Reply) {
			if more && rng.IntN(2) == 0 {
				o.answer(byHandler, rng, func(m string) error { return r.Send([]byte(m)) })
			}
			rest(rng, 5, 30)
		},
		ended: func(r *sockhub.Reply) {
			o.answer(byHandler, rng, func(m string) error { return r.Send([]byte(m)) })
			o.finishLater()
		},
		disconnected: func(d sockhub.Disconnection) { o.end = &d },
	}
}

// events is the loop over Events.
func (o *orderly) events(rng *rand.Rand) {
	const who = "Events"
	for b := range o.hub.Events() {
		for c := range b.Messages() {
			for range rng.IntN(3) {
				o.answer(who, rng, func(m string) error { return c.TrySend([]byte(m)) })
			}
		}
		for _, d := range b.Received {
			if d.Stream != nil {
				io.Copy(io.Discard, d.Stream)
			}
		}
		for _, c := range b.Ended {
			o.answer(who, rng, func(m string) error { return c.TrySend([]byte(m)) })
			o.finishLater()
		}
		for _, d := range b.Disconnected {
			o.end = &d
		}
		b.Release()
		rest(rng, 3, 30)
	}
}

// finishLater is for a connection that is kept open for that.
func (o *orderly) finishLater() {
	if o.lo.HalfOpen {
		time.AfterFunc(time.Second, func() { o.c.Finish() })
	}
}

// send sends until the connection's output has ended.
func (o *orderly) send(who string, rng *rand.Rand) {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rng.IntN(300))*time.Millisecond)
		all := []string{o.message(who, rng)}
		n := 1
		var err error
		switch rng.IntN(4) {
		case 0:
			err = o.c.TrySend([]byte(all[0]))
		case 1:
			err = o.c.Send(ctx, []byte(all[0]))
		case 2:
			err = o.c.SendFrom(context.Background(), uint64(len(all[0])), &unhurried{strings.NewReader(all[0]), rng})
		case 3:
			all = append(all, o.message(who, rng), o.message(who, rng))
			n, err = o.c.SendMany(ctx, func(yield func([]byte) bool) {
				for _, m := range all {
					if rest(rng, 4, 20); !yield([]byte(m)) {
						return
					}
				}
			})
			o.accept(who, all[:n]...)
			n = 0
		}
		cancel()
		if err == nil {
			o.accept(who, all[:n]...)
		}
		if errors.Is(err, sockhub.ErrClosed) || errors.Is(err, sockhub.ErrNotConnected) {
			return
		}
		rest(rng, 2, 30)
	}
}

// finish has the peer say something, and ends the connection.
func (o *orderly) finish(peer *memnet.End, rng *rand.Rand) {
	for range rng.IntN(20) {
		peer.Write(frame(strings.Repeat("q", rng.IntN(200))))
		rest(rng, 2, 50)
	}
	rest(rng, 1, 300)
	switch o.how {
	case peerFinishes:
		peer.CloseWrite()
	case weFinish:
		o.c.Finish()
	case weFinishOutputFirst:
		o.c.CloseWrite()
		rest(rng, 2, 50)
		peer.CloseWrite()
	case bothFinish:
		peer.CloseWrite()
		rest(rng, 2, 20)
		o.c.Finish()
	case hubShutsDown:
		if err := o.hub.Shutdown(context.Background()); err != nil {
			o.t.Error(err)
		}
	}
}

func (o *orderly) check(got []string) {
	if o.end == nil {
		o.t.Fatal("it has not ended")
	}
	checkReport(o.t, o.c, *o.end, false)
	if r := o.end.Report; r.Cut || r.DroppedMessages > 0 || !errors.Is(o.end.Err, sockhub.ErrClosed) && o.end.Err != io.EOF {
		o.t.Errorf("ended with %v: %v", o.end.Err, r)
	}
	by := map[string][]string{}
	sort := func(m string) string {
		who, _, _ := strings.Cut(m, ":")
		by[who] = append(by[who], m)
		return who
	}
	for _, m := range got {
		sort(m)
	}
	for _, m := range unsent(o.end.Report) {
		if who := sort(m); who != byHandler {
			o.t.Errorf("a message of %s is unsent", who)
		}
	}
	for who, want := range o.accepted {
		if err := sameTexts(by[who], want); err != nil {
			o.t.Errorf("%s: %v", who, err)
		}
		delete(by, who)
	}
	for who, msgs := range by {
		o.t.Errorf("%d messages of %s have arrived that were not accepted", len(msgs), who)
	}
}
