package sockhub_test

// Names at the same moment: one owner at a time.

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

var (
	namesSeed  = flag.Uint64("names.seed", 0, "run the random tests of names and reports with this seed alone")
	seeds      = flag.Int("seeds", 0, "the number of seeds of each of these tests, instead of its own")
	seedOfThem = flag.Uint64("seeds.from", 0, "draw these from this seed, instead of from chance")
)

// eachSeed runs a random test with n seeds, or with what was asked for.
func eachSeed(t *testing.T, n int, run func(t *testing.T, seed uint64)) {
	draw := rand.Uint64
	if *seedOfThem != 0 {
		draw = rand.New(rand.NewPCG(*seedOfThem, 0)).Uint64
	}
	if *seeds > 0 {
		n = *seeds
	}
	if *namesSeed != 0 {
		run(t, *namesSeed)
		return
	}
	for range n {
		seed := draw()
		run(t, seed)
		if t.Failed() {
			t.Fatalf("again with: -run '^%s$' -names.seed=%d", t.Name(), seed)
		}
	}
}

// ---- one owner ----

// holder is a peer that heard OK. left is closed before it leaves, and when it
// sees that it was ended.
type holder struct{ left chan struct{} }

// owners are those who believe to own each name. When a peer hears OK, all who
// heard it before must have left, or see their end in the same instant: in a
// bubble of synctest no time passes while anybody can run.
type owners struct {
	mu sync.Mutex
	of map[string][]*holder
}

func (o *owners) enter(name string, p *memnet.End) (*holder, error) {
	me := &holder{left: make(chan struct{})}
	o.mu.Lock()
	before := o.of[name]
	o.of[name] = append(before[:len(before):len(before)], me)
	o.mu.Unlock()
	for _, h := range before {
		select {
		case <-h.left:
		case <-time.After(1):
			// Or the OK of who has lost the name again was read late.
			p.SetReadDeadline(time.Now().Add(1))
			if _, err := p.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
				return me, fmt.Errorf("two own the name %s", name)
			}
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	var rest []*holder // those who came later, and me
	for _, h := range o.of[name] {
		select {
		case <-h.left:
		default:
			rest = append(rest, h)
		}
	}
	o.of[name] = rest
	return me, nil
}

// Peers claim a few names, hold them and leave in several ways, while the
// program registers and forgets these names with all kinds of rules and
// policies.
func TestANameNeverHasTwoOwners(t *testing.T) {
	n := 60
	if testing.Short() {
		n = 10
	}
	eachSeed(t, n, func(t *testing.T, seed uint64) {
		synctest.Test(t, func(t *testing.T) { claimAtRandom(t, seed) })
	})
}

func claimAtRandom(t *testing.T, seed uint64) {
	const peers, steps, programs = 12, 20, 3
	names := []string{"a", "b", "c"}
	rng := rand.New(rand.NewPCG(seed, 0))
	policies := []sockhub.DuplicatePolicy{sockhub.RefuseNew, sockhub.ReplaceOld}
	hub, err := sockhub.New(context.Background(), &sockhub.Options{
		Duplicates: policies[rng.IntN(2)],
		Unexpected: []sockhub.UnexpectedPolicy{sockhub.HoldUnexpected, sockhub.RefuseUnexpected}[rng.IntN(2)],
	})
	if err != nil {
		t.Fatal(err)
	}
	l := memnet.Listen(&memnet.Options{Seed: seed, Unix: rng.IntN(2) == 0})
	if _, err := hub.Serve(l, nil); err != nil {
		t.Fatal(err)
	}

	received := make(chan error, 1)
	go func() { received <- checkEvents(hub, rand.New(rand.NewPCG(seed, 1))) }()
	var (
		all   sync.WaitGroup
		own   = owners{of: map[string][]*holder{}}
		heard atomic.Int64
	)
	for i := range peers {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 100+uint64(i)))
			for range steps {
				name := names[rng.IntN(len(names))]
				pause(rng)
				p, err := l.Dial(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				p.Write(frame(name))
				if answer, _ := io.ReadAll(io.LimitReader(p, 10)); string(answer) != string(frame("OK")) {
					if len(answer) > 0 {
						t.Errorf("the answer is %q", answer)
					}
					p.Close()
					continue
				}
				heard.Add(1)
				me, err := own.enter(name, p)
				if err != nil {
					t.Error(err)
				}
				hold(p, rng)
				close(me.left)
				if rng.IntN(2) == 0 {
					p.Close()
				} else {
					p.Reset()
				}
			}
		})
	}
	for i := range programs {
		all.Go(func() { registerAtRandom(hub, rand.New(rand.NewPCG(seed, 200+uint64(i))), names, steps, policies) })
	}
	all.Wait()
	synctest.Wait()
	hub.Close()
	if err := <-received; err != nil {
		t.Error(err)
	}
	if heard.Load() == 0 {
		t.Error("nobody was let in")
	}
}

// pause waits for a random while, which is often none.
func pause(rng *rand.Rand) {
	if rng.IntN(3) > 0 {
		sleepFor(time.Duration(rng.IntN(5)) * time.Millisecond)
	}
}

// hold reads until the end or for a random while.
func hold(p *memnet.End, rng *rand.Rand) {
	p.SetReadDeadline(time.Now().Add(time.Duration(rng.IntN(8)) * time.Millisecond))
	p.Read(make([]byte, 1))
}

// registerAtRandom is one of several parts of a program that do not know of
// each other.
func registerAtRandom(hub *sockhub.Hub, rng *rand.Rand, names []string, steps int, policies []sockhub.DuplicatePolicy) {
	mine := map[string]sockhub.ID{}
	for range steps {
		pause(rng)
		name := names[rng.IntN(len(names))]
		if id, ok := mine[name]; ok {
			hub.Forget(id)
			delete(mine, name)
			continue
		}
		o := &sockhub.ClientOptions{Duplicates: policies[rng.IntN(2)]}
		if rng.IntN(4) == 0 {
			o.Admit = deny
		}
		if id, err := hub.Expect(name, o); err == nil {
			mine[name] = id
		}
	}
}

// checkEvents receives until the hub is closed, at random moments, and checks
// what is promised about the connections of one ID.
func checkEvents(hub *sockhub.Hub, rng *rand.Rand) (err error) {
	live := map[sockhub.ID]*sockhub.Conn{}
	known := map[*sockhub.Conn]bool{}
	fail := func(format string, args ...any) {
		if err == nil {
			err = fmt.Errorf(format, args...)
		}
	}
	for b := range hub.Events() {
		seen := map[sockhub.ID]*sockhub.Conn{}
		once := func(c *sockhub.Conn) {
			if other := seen[c.ID()]; other != nil && other != c {
				fail("two connections of %d in one batch", c.ID())
			}
			seen[c.ID()] = c
		}
		for _, c := range b.Unknown {
			once(c)
			if known[c] {
				fail("%v is reported again", c)
			}
			known[c] = true
			live[c.ID()] = c
		}
		for _, c := range b.Connected {
			once(c)
			if now := live[c.ID()]; now != nil && now != c {
				fail("%d is connected twice", c.ID())
			} else if known[c] && now != c {
				fail("%v is adopted after its end", c)
			}
			known[c] = true
			live[c.ID()] = c
		}
		for _, d := range b.Disconnected {
			once(d.Conn)
			if live[d.Conn.ID()] != d.Conn {
				fail("%v ended, and was not connected", d.Conn)
			}
			delete(live, d.Conn.ID())
		}
		pause(rng)
	}
	if len(live) > 0 {
		fail("%d connections were not reported as ended", len(live))
	}
	return err
}

// ---- linearizability ----

// call is one call of the registry, between two ticks of a common clock.
type call struct {
	kind       string // "expect", "forget" or "lookup"
	id         sockhub.ID
	ok         bool
	begun, got int64
}

func (c call) String() string {
	return fmt.Sprintf("%d-%d %s %d %v", c.begun, c.got, c.kind, c.id, c.ok)
}

// Several goroutines register one name, forget it and look it up. There must be
// an order of their calls, agreeing with their times, in which each result is
// the one that a program without concurrency would have seen.
func TestRegistryIsLinearizable(t *testing.T) {
	rounds := 2000
	if testing.Short() {
		rounds = 200
	}
	hub := openHub(t, nil)
	eachSeed(t, rounds, func(t *testing.T, seed uint64) {
		history := callAtRandom(t, hub, seed)
		if !linearizable(history, 0, 0, map[string]bool{}) {
			t.Errorf("no order explains this:\n%v", history)
		}
	})
}

func callAtRandom(t *testing.T, hub *sockhub.Hub, seed uint64) (history []call) {
	const goroutines, calls = 4, 6
	var (
		clock  atomic.Int64
		latest atomic.Uint64 // an ID that may be registered
		mu     sync.Mutex
		wg     sync.WaitGroup
	)
	begin := make(chan struct{})
	for i := range goroutines {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			<-begin
			for range calls {
				c := call{begun: clock.Add(1)}
				var err error
				switch rng.IntN(5) {
				case 0, 1:
					c.kind = "expect"
					c.id, err = hub.Expect("w", nil)
					if c.ok = err == nil; c.ok {
						latest.Store(uint64(c.id))
					} else if !errors.Is(err, sockhub.ErrNameTaken) {
						t.Error(err)
					}
				case 2, 3:
					c.kind, c.id = "forget", sockhub.ID(latest.Load())
					err = hub.Forget(c.id)
					if c.ok = err == nil; !c.ok && !errors.Is(err, sockhub.ErrUnknownID) {
						t.Error(err)
					}
				default:
					c.kind = "lookup"
					c.id, c.ok = hub.Lookup("w")
				}
				c.got = clock.Add(1)
				mu.Lock()
				history = append(history, c)
				mu.Unlock()
			}
		})
	}
	close(begin)
	wg.Wait()
	if id, ok := hub.Lookup("w"); ok {
		hub.Forget(id)
	}
	return history
}

// linearizable tries all orders of the calls that are not done, the bits of
// done, from the state in which id is registered, 0 if none.
func linearizable(history []call, done uint64, id sockhub.ID, failed map[string]bool) bool {
	if done == 1<<len(history)-1 {
		return true
	}
	state := fmt.Sprint(done, " ", id)
	if failed[state] {
		return false
	}
	first := int64(1<<63 - 1) // the end of the call that ended first: what began later comes after it
	for i, c := range history {
		if done&(1<<i) == 0 {
			first = min(first, c.got)
		}
	}
	for i, c := range history {
		if done&(1<<i) != 0 || c.begun > first {
			continue
		}
		if next, ok := c.apply(id); ok && linearizable(history, done|1<<i, next, failed) {
			return true
		}
	}
	failed[state] = true
	return false
}

// apply is what the call does to the state, if its result is possible in it.
func (c call) apply(id sockhub.ID) (next sockhub.ID, ok bool) {
	switch {
	case c.kind == "expect" && c.ok:
		return c.id, id == 0 && c.id != 0
	case c.kind == "expect":
		return id, id != 0
	case c.kind == "forget" && c.ok:
		return 0, id == c.id && id != 0
	case c.kind == "forget":
		return id, id != c.id || id == 0
	}
	return id, c.id == id && c.ok == (id != 0)
}

// The checker must find what is wrong.
func TestLinearizableFindsWhatIsWrong(t *testing.T) {
	for _, test := range []struct {
		want    bool
		history []call
	}{
		{true, []call{{"expect", 1, true, 1, 4}, {"lookup", 0, false, 2, 3}}},
		{true, []call{{"expect", 1, true, 1, 4}, {"lookup", 1, true, 2, 3}}},
		{false, []call{{"expect", 1, true, 1, 2}, {"lookup", 0, false, 3, 4}}},
		{false, []call{{"expect", 1, true, 1, 4}, {"expect", 2, true, 2, 3}}},
		{true, []call{{"expect", 1, true, 1, 4}, {"expect", 2, true, 2, 6}, {"forget", 1, true, 3, 5}}},
		{false, []call{{"expect", 1, true, 1, 2}, {"forget", 1, false, 3, 4}}},
		{false, []call{{"expect", 0, false, 1, 2}}},
	} {
		if got := linearizable(test.history, 0, 0, map[string]bool{}); got != test.want {
			var text []string
			for _, c := range test.history {
				text = append(text, c.String())
			}
			t.Errorf("%s: %v", strings.Join(text, "; "), got)
		}
	}
}
