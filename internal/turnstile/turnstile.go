// Package turnstile bounds how many goroutines do something at a time, at the price of one
// addition where they are fewer.
package turnstile

import "sync/atomic"

// T is a turnstile. Its methods may be called from any goroutine.
type T struct {
	most   int64         // constant
	inside atomic.Int64  // and who waits
	next   chan struct{} // one for each that has left while others waited; never closed
}

// New returns a turnstile that lets at most so many in at a time.
func New(most int) T { return T{most: int64(most), next: make(chan struct{}, most)} }

// Enter returns when the caller is inside.
func (t *T) Enter() {
	if t.inside.Add(1) > t.most {
		<-t.next
	}
}

// Leave lets another in. It does not wait: there is room in next for all that are inside.
func (t *T) Leave() {
	if t.inside.Add(-1) >= t.most {
		t.next <- struct{}{}
	}
}

// Len is how many are inside, or wait to be.
func (t *T) Len() int { return int(t.inside.Load()) }
