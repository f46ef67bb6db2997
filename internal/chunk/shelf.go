package chunk

import (
	"runtime"
	"slices"
	"sync"
	"time"
)

// shelf holds the chunks of one size that nobody uses. A sync.Pool forgets what
// it holds at every second collection, and large messages that are received
// into new memory bring the next collection about: with 1,000 connections of
// 1 MiB each, clearing new pages was half of the work. A shelf forgets only what
// nobody has needed for a while.
type shelf struct {
	mu    sync.Mutex // a leaf
	free  []*Chunk   // the one used last is taken first
	least int        // so many were there at all times since the last sweep
}

var shelves [maxBits + 1]shelf // by the logarithm of the size

func (s *shelf) take() (c *Chunk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.free) - 1; n >= 0 {
		c, s.free[n] = s.free[n], nil
		s.free = s.free[:n]
		s.least = min(s.least, n)
	}
	return c
}

func (s *shelf) put(c *Chunk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, c)
}

// sweep lets go of the chunks that were not needed since the last time.
func (s *shelf) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = slices.Delete(s.free, 0, s.least)
	s.least = len(s.free)
}

// sweepEvery is how long a chunk lies on its shelf at least.
const sweepEvery = time.Second

// sweeper is collected by each garbage collection, of which there is one every
// two minutes even in a program that allocates nothing; that runs its cleanup.
// So the shelves are swept without a goroutine of their own.
type sweeper struct{ last time.Time }

func init() { sweepNext(time.Now()) }

func sweepNext(last time.Time) {
	s := &sweeper{last}
	runtime.AddCleanup(s, sweepAll, last)
}

func sweepAll(last time.Time) {
	if now := time.Now(); now.Sub(last) >= sweepEvery {
		last = now
		for i := range shelves {
			shelves[i].sweep()
		}
	}
	sweepNext(last)
}
