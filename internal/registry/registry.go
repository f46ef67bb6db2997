// Package registry hands out numbers for things that live and die, and finds a
// thing by its number with two loads and no lock.
package registry

import (
	"sync"
	"sync/atomic"
)

// Entry is what a Table holds: a thing that knows the number it was given.
type Entry interface{ Number() uint64 }

// Table gives each of its entries a number that is never given again: the
// index of a slot in the lower 32 bits, in the upper ones how often that slot
// was used before. 0 is never given. Get may be called from anywhere at any
// time; Add and Remove serialize themselves.
type Table[T any, P interface {
	*T
	Entry
}] struct {
	pages atomic.Pointer[[]*page[T]] // replaced when it grows, never changed

	mu   sync.Mutex // guards what follows, and every write to a slot
	free []uint32   // slots that Remove emptied
	uses []uint32   // how often each slot was given; one that would overflow is given up
	live int
}

const pageSize = 1024

type page[T any] [pageSize]atomic.Pointer[T]

// Add stores the entry that make returns for its number.
func (t *Table[T, P]) Add(make func(number uint64) P) P {
	t.mu.Lock()
	defer t.mu.Unlock()
	var i uint32
	if n := len(t.free); n > 0 {
		i, t.free = t.free[n-1], t.free[:n-1]
	} else {
		i = uint32(len(t.uses))
		t.uses = append(t.uses, 0)
		if i%pageSize == 0 {
			t.grow()
		}
	}
	t.uses[i]++
	e := make(uint64(t.uses[i])<<32 | uint64(i+1))
	(*t.pages.Load())[i/pageSize][i%pageSize].Store((*T)(e))
	t.live++
	return e
}

func (t *Table[T, P]) grow() {
	var pages []*page[T]
	if p := t.pages.Load(); p != nil {
		pages = append(pages, *p...)
	}
	pages = append(pages, new(page[T]))
	t.pages.Store(&pages)
}

// slot finds the place of a number, which may be no number at all.
func (t *Table[T, P]) slot(number uint64) *atomic.Pointer[T] {
	i := uint32(number) - 1 // 0 wraps to an index out of range
	p := t.pages.Load()
	if p == nil || uint64(i/pageSize) >= uint64(len(*p)) {
		return nil
	}
	return &(*p)[i/pageSize][i%pageSize]
}

// Get returns the entry with this number, or nil.
func (t *Table[T, P]) Get(number uint64) P {
	if s := t.slot(number); s != nil {
		// The slot may be another's by now: the entry itself tells.
		if e := P(s.Load()); e != nil && e.Number() == number {
			return e
		}
	}
	return nil
}

// Remove forgets the entry with this number and reports whether it was there.
func (t *Table[T, P]) Remove(number uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.slot(number)
	if s == nil {
		return false
	}
	if e := P(s.Load()); e == nil || e.Number() != number {
		return false
	}
	s.Store(nil)
	t.live--
	if i := uint32(number) - 1; t.uses[i] != ^uint32(0) {
		t.free = append(t.free, i)
	}
	return true
}

// Len is the number of entries.
func (t *Table[T, P]) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.live
}

// All yields the entries, without a lock: those that are there all the time
// surely, those that come or go meanwhile perhaps.
func (t *Table[T, P]) All(yield func(P) bool) {
	p := t.pages.Load()
	if p == nil {
		return
	}
	for _, page := range *p {
		for i := range page {
			if e := P(page[i].Load()); e != nil && !yield(e) {
				return
			}
		}
	}
}
