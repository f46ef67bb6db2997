package fanin

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// batch is a run of numbers.
type batch struct{ items []int }

// source collects numbers and remembers what was taken.
type source struct {
	wake chan struct{}

	mu     sync.Mutex
	built  []int
	taken  []int
	wanted bool
}

func (s *source) add(n int) {
	s.mu.Lock()
	s.built = append(s.built, n)
	s.mu.Unlock()
	s.signal()
}

func (s *source) want(on bool) {
	s.mu.Lock()
	s.wanted = on
	s.mu.Unlock()
	s.signal()
}

func (s *source) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *source) Pending() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.built) > 0
}

func (s *source) Collect(prev *batch) *batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	if prev == nil {
		if len(s.built) == 0 {
			return nil
		}
		prev = new(batch)
	}
	prev.items = append(prev.items, s.built...)
	s.built = nil
	return prev
}

func (s *source) Taken(b *batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken = append(s.taken, b.items...)
}

func (s *source) Wanted(*batch) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wanted
}

func (s *source) known() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.taken)
}

func start(t *testing.T) (s *source, out chan *batch, end func()) {
	s = &source{wake: make(chan struct{}, 1)}
	out = make(chan *batch, 1)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { Run(out, s.wake, done, s) })
	return s, out, sync.OnceFunc(func() { close(done); wg.Wait() })
}

func sequence(n int) (all []int) {
	for i := range n {
		all = append(all, i)
	}
	return all
}

// Everything arrives once and in order whatever the timing of both sides, a
// batch is known to be taken only when it was received, and always when
// somebody waits to know.
func TestRandomSchedules(t *testing.T) {
	for seed := range uint64(1500) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 7))
			pause := func(r *rand.Rand) {
				if r.IntN(3) > 0 {
					<-time.After(time.Duration(1+r.IntN(20)) * time.Microsecond)
				}
			}
			s, out, end := start(t)
			const n = 60
			var wg sync.WaitGroup
			rp, rw, rc := rand.New(rand.NewPCG(seed, 8)), rand.New(rand.NewPCG(seed, 9)), rand.New(rand.NewPCG(seed, 10))
			var mu sync.Mutex
			var got []int
			wg.Go(func() {
				for i := range n {
					s.add(i)
					pause(rp)
				}
			})
			wg.Go(func() {
				for range 20 {
					s.want(rw.IntN(2) == 0)
					pause(rw)
				}
				s.want(true)
			})
			stop := r.IntN(4) == 0 // the receiver gives up for good at some point
			limit := r.IntN(n)
			received := make(chan struct{})
			go func() {
				defer close(received)
				for b := range out {
					mu.Lock()
					got = append(got, b.items...)
					enough := stop && len(got) > limit
					mu.Unlock()
					if enough {
						return
					}
					pause(rc)
				}
			}()
			wg.Wait()
			synctest.Wait()
			mu.Lock()
			have := slices.Clone(got)
			mu.Unlock()
			known := s.known()
			if len(known) > len(have) || !slices.Equal(known, have[:len(known)]) {
				t.Fatalf("seed %d: taken as far as is known: %v; received: %v", seed, known, have)
			}
			if !stop && (len(have) == n) != (len(known) == n) {
				// All was received and somebody waited to know.
				<-time.After(time.Second)
				if len(s.known()) != n {
					t.Fatalf("seed %d: received %d, known to be taken %d", seed, n, len(s.known()))
				}
			}
			end() // returns whether or not anybody receives
			<-received
			for b := range out {
				got = append(got, b.items...)
			}
			if !slices.Equal(got, sequence(n)) {
				t.Fatalf("seed %d: received %v", seed, got)
			}
		})
	}
}

func TestMergesWhileTheReceiverIsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, out, end := start(t)
		defer end()
		for i := range 10 {
			s.add(i)
			synctest.Wait()
		}
		if b := <-out; !slices.Equal(b.items, sequence(10)) {
			t.Errorf("received %v, want all ten in one batch", b.items)
		}
	})
}

func TestTakenIsLearnedWithoutNewEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, out, end := start(t)
		defer end()
		s.want(true)
		s.add(0)
		synctest.Wait()
		if len(s.known()) != 0 {
			t.Fatal("known to be taken before it was")
		}
		<-out
		synctest.Wait()
		if len(s.known()) != 1 {
			t.Error("not known to be taken")
		}
		if len(out) != 0 {
			t.Error("the empty batch was left in the channel")
		}
	})
}

func TestEndWithoutAReceiver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, out, end := start(t)
		s.add(0)
		synctest.Wait()
		s.add(1)
		end()
		if b := <-out; !slices.Equal(b.items, []int{0, 1}) {
			t.Errorf("the last batch has %v, want both", b.items)
		}
		if _, ok := <-out; ok {
			t.Error("the channel is not closed after the last batch")
		}
	})
}
