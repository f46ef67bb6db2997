// Package watch runs all the clocks of a hub in one goroutine: of each
// connection it knows one moment at which to look at it, and what the
// connection finds then decides about the next.
//
// The clocks are lazy. Progress on a connection touches nothing here; only
// when the moment comes that was right without progress is the connection
// asked, and it names a later one. So a connection costs one operation on a
// heap for each time-out period, however busy it is.
package watch

import (
	"container/heap"
	"sync"
	"sync/atomic"
	"time"
)

// Target is looked at when its moment has come.
type Target interface {
	// Check is told the time, as Watch.Now gives it, and returns when to be
	// called next; 0 for not at all. It may be called up to 2 ms late, by
	// Run's goroutine, with no lock held, and must not block.
	Check(now time.Duration) (next time.Duration)
}

// Entry is one Target's place in a Watch. Its owner keeps it, zero at first.
type Entry struct {
	at     atomic.Int64 // the next moment; 0: none. Written under Watch.mu
	index  int          // in the heap, plus 1; 0: not in it
	target Target
}

// Watch is the clock of a hub. Create it with New and give it a goroutine
// with Run.
type Watch struct {
	epoch time.Time
	wake  chan struct{} // sent to by Arm when the first moment moved closer; received by Run; never closed

	mu    sync.Mutex // guards what follows and every Entry; nothing is locked inside it
	queue queue
}

// New makes a Watch whose time begins now.
func New() *Watch {
	return &Watch{epoch: time.Now(), wake: make(chan struct{}, 1)}
}

// Now is the monotonic time since New; it is never 0.
func (w *Watch) Now() time.Duration { return time.Since(w.epoch) + 1 }

// Time is the wall clock's time of a moment that Now has given.
func (w *Watch) Time(at time.Duration) time.Time { return w.epoch.Add(at - 1) }

// Arm sees to it that target is checked at the given time or earlier. Almost
// always it is to be checked earlier anyway, and Arm is one load.
func (w *Watch) Arm(e *Entry, target Target, at time.Duration) {
	if t := e.at.Load(); t != 0 && t <= int64(at) {
		return
	}
	w.mu.Lock()
	first := w.armLocked(e, target, at)
	w.mu.Unlock()
	if first {
		select {
		case w.wake <- struct{}{}:
		default: // Run will look anyway
		}
	}
}

// armLocked is Arm without the wake-up, and reports whether e has become the
// first in the queue.
func (w *Watch) armLocked(e *Entry, target Target, at time.Duration) (first bool) {
	if t := e.at.Load(); t != 0 && t <= int64(at) {
		return false
	}
	e.target = target
	e.at.Store(int64(at))
	if e.index != 0 {
		w.queue[e.index-1].at = int64(at)
		heap.Fix(&w.queue, e.index-1)
	} else {
		w.queue = append(w.queue, place{int64(at), e}) // heap.Push would allocate
		e.index = len(w.queue)
		heap.Fix(&w.queue, e.index-1)
	}
	return w.queue[0].e == e
}

// Disarm forgets e. A Check that is running goes on, but is the last.
func (w *Watch) Disarm(e *Entry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e.target = nil
	e.at.Store(0)
	if e.index != 0 {
		heap.Remove(&w.queue, e.index-1)
	}
}

// Run checks the targets until done is closed.
func (w *Watch) Run(done <-chan struct{}) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(w.checkDue())
		select {
		case <-timer.C:
		case <-w.wake:
		case <-done:
			return
		}
	}
}

// checkDue checks every target whose moment has come and returns how long
// there is nothing to do.
func (w *Watch) checkDue() time.Duration {
	for {
		w.mu.Lock()
		if len(w.queue) == 0 {
			w.mu.Unlock()
			return time.Hour
		}
		e, now := w.queue[0].e, w.Now()
		if wait := time.Duration(w.queue[0].at) - now; wait > 0 {
			w.mu.Unlock()
			return max(wait, together)
		}
		heap.Pop(&w.queue)
		e.at.Store(0) // from here on, Arm counts
		target := e.target
		w.mu.Unlock()
		if next := target.Check(now); next != 0 {
			w.rearm(e, next)
		}
	}
}

// rearm is Arm for an entry that may have been disarmed while it was checked,
// or may be at any moment: hence one lock around both the look and the arming.
// Run's own goroutine needs no wake-up.
func (w *Watch) rearm(e *Entry, at time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e.target != nil {
		w.armLocked(e, e.target, at)
	}
}

// together is how long Run waits at least, so that it looks at what is due at
// about the same time at once. With 10,000 connections there is one every few
// microseconds, and to wake up for each cost more than to look at it.
const together = 2 * time.Millisecond

// queue is a heap of entries, the earliest first. It holds their moments too, so
// that comparing does not reach for entries that are out of the caches.
type queue []place

type place struct {
	at int64
	e  *Entry
}

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at < q[j].at }

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].e.index, q[j].e.index = i+1, j+1
}

// Push is not used: see armLocked.
func (*queue) Push(any) { panic("watch: Push") }

// Pop removes the last. It returns nothing, which would be an allocation.
func (q *queue) Pop() any {
	last := len(*q) - 1
	(*q)[last].e.index = 0
	(*q)[last] = place{}
	*q = (*q)[:last]
	return nil
}
