package watch

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// target records when it was checked, and asks for the next check step later,
// more times.
type target struct {
	mu    sync.Mutex
	step  time.Duration
	more  int
	times []time.Duration
}

func (t *target) Check(now time.Duration) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.times = append(t.times, now-1)
	if t.more == 0 {
		return 0
	}
	t.more--
	return now + t.step
}

func (t *target) seen() []time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.times
}

// start runs a Watch in the test's bubble.
func start(t *testing.T) *Watch {
	w, done := New(), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { w.Run(done) })
	t.Cleanup(func() { close(done); wg.Wait() })
	return w
}

func TestChecksAtTheEarliestMomentAndThenAsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		a, b := &target{step: 2 * time.Second, more: 2}, &target{}
		var ea, eb Entry
		w.Arm(&ea, a, w.Now()+5*time.Second)
		w.Arm(&eb, b, w.Now()+3*time.Second)
		w.Arm(&ea, a, w.Now()+time.Second)   // earlier: counts
		w.Arm(&eb, b, w.Now()+9*time.Second) // later: does not
		<-time.After(time.Minute)
		synctest.Wait()
		if d := cmp.Diff([]time.Duration{1e9, 3e9, 5e9}, a.seen()); d != "" {
			t.Errorf("a was checked at (-want +got):\n%s", d)
		}
		if d := cmp.Diff([]time.Duration{3e9}, b.seen()); d != "" {
			t.Errorf("b was checked at (-want +got):\n%s", d)
		}
	})
}

func TestDisarmedIsNotChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		a := &target{step: time.Second, more: 100}
		var e Entry
		w.Arm(&e, a, w.Now()+time.Second)
		<-time.After(3500 * time.Millisecond)
		w.Disarm(&e)
		<-time.After(time.Minute)
		if n := len(a.seen()); n != 3 {
			t.Errorf("checked %d times, want 3", n)
		}
	})
}

func TestDisarmIsFinalWhileChecksRun(t *testing.T) {
	w := start(t)
	// A round of the goroutine of checks is over once a later moment's
	// target was checked.
	settle := func() {
		done := make(signal)
		w.Arm(new(Entry), done, w.Now())
		<-done
	}
	for range 500 {
		a := &target{more: 100_000} // at once, again and again
		var e Entry
		w.Arm(&e, a, w.Now())
		for len(a.seen()) < 3 {
			runtime.Gosched()
		}
		w.Disarm(&e)
		settle() // the check that was running is over
		n := len(a.seen())
		settle()
		if m := len(a.seen()); m != n {
			t.Fatalf("checked %d times after Disarm", m-n)
		}
	}
}

// signal is closed by its first check.
type signal chan struct{}

func (s signal) Check(time.Duration) time.Duration { close(s); return 0 }

func TestManyTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		targets, entries := make([]target, 1000), make([]Entry, 1000)
		for i := range targets {
			targets[i].step, targets[i].more = time.Duration(1+i%7)*time.Second, 3
			w.Arm(&entries[i], &targets[i], w.Now()+time.Duration(i)*time.Millisecond)
		}
		<-time.After(time.Minute)
		synctest.Wait()
		for i := range targets {
			seen, due := targets[i].seen(), time.Duration(i)*time.Millisecond
			if len(seen) != 4 {
				t.Fatalf("target %d was checked %d times", i, len(seen))
			}
			for k, at := range seen {
				if late := at - due; late < 0 || late > together {
					t.Fatalf("check %d of target %d is late by %v", k, i, late)
				}
				due = at + targets[i].step
			}
		}
	})
}

// busy arms itself while it is checked, for earlier than it then asks for.
type busy struct {
	target
	w *Watch
	e Entry
}

func (b *busy) Check(now time.Duration) time.Duration {
	if len(b.seen()) == 0 {
		b.w.Arm(&b.e, b, now+time.Second)
	}
	return b.target.Check(now)
}

func TestArmedWhileItIsChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &busy{target: target{step: time.Minute, more: 1}, w: start(t)}
		b.w.Arm(&b.e, b, b.w.Now()+time.Second)
		<-time.After(time.Hour)
		synctest.Wait()
		if d := cmp.Diff([]time.Duration{1e9, 2e9}, b.seen()); d != "" {
			t.Errorf("checked at (-want +got):\n%s", d)
		}
	})
}

// Whatever is armed, armed for earlier and disarmed beside it, each is checked at its moment.
func TestArmsAndDisarmsAtRandom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, rnd := start(t), rand.New(rand.NewPCG(1, 2))
		const n = 100
		targets, entries, due := make([]target, n), make([]Entry, n), make([]time.Duration, n)
		for range 20 * n {
			i := rnd.IntN(n)
			if rnd.IntN(4) == 0 {
				w.Disarm(&entries[i])
				due[i] = 0
				continue
			}
			at := time.Duration(1+rnd.IntN(1000)) * time.Second
			w.Arm(&entries[i], &targets[i], w.Now()+at)
			if due[i] == 0 || at < due[i] {
				due[i] = at
			}
		}
		<-time.After(time.Hour)
		synctest.Wait()
		for i := range targets {
			var want []time.Duration
			if due[i] != 0 {
				want = append(want, due[i])
			}
			if d := cmp.Diff(want, targets[i].seen()); d != "" {
				t.Errorf("target %d was checked at (-want +got):\n%s", i, d)
			}
		}
	})
}
