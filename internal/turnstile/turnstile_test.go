package turnstile

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestSoManyAreInsideAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 32
		ts := New(limit)
		var inside, most atomic.Int64
		var all sync.WaitGroup
		for i := range 10 * limit {
			all.Go(func() {
				for range 3 {
					ts.Enter()
					n := inside.Add(1)
					for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
					}
					<-time.After(time.Duration(i%7) * time.Millisecond)
					inside.Add(-1)
					ts.Leave()
				}
			})
		}
		all.Wait()
		if most.Load() != limit || ts.Len() != 0 || len(ts.next) != 0 {
			t.Errorf("%d at a time, of %d; in the end %d, and %d may come", most.Load(), limit, ts.Len(), len(ts.next))
		}
	})
}
