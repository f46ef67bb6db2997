package burst

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/sockhub/sockhub/internal/outq"
)

func TestPace(t *testing.T) {
	var p Pace
	for _, step := range []struct {
		epoch       uint64
		would, next bool
	}{
		{0, false, false}, {0, true, true}, {0, true, true}, // a burst
		{1, true, true},                                         // behind a burst, the first one too
		{2, false, false}, {3, false, false}, {4, false, false}, // one in each
		{4, true, true},
		{6, false, false}, // an epoch with none between
	} {
		if got := p.Would(step.epoch); got != step.would {
			t.Errorf("%+v: Would is %v", step, got)
		}
		if got := p.Next(step.epoch); got != step.next {
			t.Errorf("%+v: Next is %v", step, got)
		}
	}
	if p.More(2); !p.Next(7) {
		t.Error("what was sent with the last one does not count")
	}
}

// receiver has joined a cast, or not, and gets its messages in any case.
type receiver struct {
	mu   sync.Mutex
	k    *Cast[*receiver]
	seat int
	q    outq.Queue
}

// leave is what touching a receiver does.
func (r *receiver) leave() {
	if r.k != nil {
		r.k.Leave(r.seat, &r.q)
		r.k = nil
	}
}

func (r *receiver) send(msg []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leave()
	r.q.Append(outq.Default, msg)
}

// Everybody gets all that is broadcast, in order and once, whoever joins and leaves, while
// others touch them.
func TestCastsOnAModel(t *testing.T) {
	added := 0 // where nobody else touches them
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var casts Casts[*receiver]
		all := make([]*receiver, 3+rng.IntN(20))
		for i := range all {
			all[i] = new(receiver)
		}
		stop := make(chan struct{})
		var toucher sync.WaitGroup
		touched := rand.New(rand.NewPCG(seed, 2))
		toucher.Go(func() {
			for seed%2 == 1 {
				select {
				case <-stop:
					return
				default:
				}
				r := all[touched.IntN(len(all))]
				r.mu.Lock()
				r.leave()
				r.mu.Unlock()
			}
		})
		var want []string
		for n := range 1000 {
			msg := fmt.Appendf(nil, "message %d", n)
			want = append(want, string(msg))
			k, to, begin := casts.Find(uint64(n/20), len(msg))
			if k != nil {
				if in, others, ok := k.Add(msg); ok {
					if in+len(others) != len(all) {
						t.Fatalf("seed %d: %d and %d of %d", seed, in, len(others), len(all))
					}
					for _, i := range others {
						to[i].send(msg)
					}
					if seed%2 == 0 {
						added++
					}
					continue
				}
				k.Drop()
			}
			if !begin {
				for _, r := range all {
					r.send(msg)
				}
				continue
			}
			k = casts.Begin(msg, 1<<10)
			for _, r := range all {
				if rng.IntN(8) == 0 {
					k.Pass()
					r.send(msg)
					continue
				}
				r.mu.Lock()
				r.leave()
				r.k, r.seat = k, k.Join(100)
				r.mu.Unlock()
			}
			casts.Publish(k, all)
		}
		close(stop)
		toucher.Wait()
		for i, r := range all {
			r.leave()
			var got []string
			for b := range r.q.Bodies() {
				got = append(got, string(b))
			}
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d: receiver %d got %d messages of %d, or others", seed, i, len(got), len(want))
			}
		}
	}
	if added == 0 {
		t.Error("nothing was added to a cast")
	}
}

func TestACastRefusesWhatItHasNoRoomFor(t *testing.T) {
	var casts Casts[int]
	k := casts.Begin([]byte("x"), 1+outq.Overhead+10+outq.Overhead)
	for range 3 {
		k.Join(9)
	}
	if _, _, ok := k.Add(make([]byte, 10)); ok {
		t.Error("took a message that is too long for those who joined")
	}
	if n, others, ok := k.Add(make([]byte, 9)); !ok || n != 3 || others != nil {
		t.Error(n, others, ok)
	}
	if _, _, ok := k.Add(make([]byte, 2)); ok {
		t.Error("took more than there is room for")
	}
	var q outq.Queue
	k.Leave(1, &q)
	if q.Len() != 2 || q.Bytes() != 10 {
		t.Errorf("%d messages, %d bytes", q.Len(), q.Bytes())
	}
	if _, _, begin := casts.Find(1, longest+1); begin {
		t.Error("a large message may begin a cast")
	}
}
