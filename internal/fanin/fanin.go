// Package fanin is the protocol between a goroutine that collects what many
// others report and a receiver who takes it in batches, from a channel, at his
// own pace: one batch at most waits in the channel, what happens meanwhile is
// merged into it, and the collector learns when a batch has been taken.
package fanin

import "runtime"

// Source is where batches come from. Its methods are called by Run's goroutine
// alone, and lock what they need.
type Source[B any] interface {
	// Pending reports whether anything is collected that is in no batch yet.
	// It is asked after every wake-up.
	Pending() bool

	// Collect returns what is pending as a batch, merged behind what prev
	// holds, if that is not nil. It returns nil if there is nothing at all.
	Collect(prev *B) *B

	// Taken says that the receiver has b, or that b is the last one.
	Taken(b *B)

	// Wanted reports whether somebody waits for b to be taken. When that
	// becomes true, wake must be sent to.
	Wanted(b *B) bool
}

// Run puts the batches of s into out until end is closed, then what is left
// as a last batch, and closes out. It is the only sender on out, whose
// capacity is 1. A value in wake means that Pending or Wanted may have become
// true; wake has capacity 1, and its senders do not wait.
//
// A batch that was put counts as taken when the channel is seen empty, or when
// another one could be put behind it: Run alone sends, so somebody received.
// As a channel tells nobody that its value was received, Run finds out when it
// has something new; where somebody waits to know, it sends an empty batch,
// which the channel accepts at the moment in which the one before is received,
// and takes that back at once, if it is still there.
func Run[B any](out chan *B, wake, end <-chan struct{}, s Source[B]) {
	var waiting *B // put, and not known to be taken
	for {
		var offer chan<- *B // nil, so never ready, unless somebody waits
		var follow *B
		if waiting != nil && s.Wanted(waiting) {
			offer, follow = out, new(B)
		}
		select {
		case <-wake:
			// A send on wake puts this goroutine next in line, before the
			// others that are ready to report. Letting them go first makes
			// one batch of what would have been one each.
			runtime.Gosched()
		case offer <- follow:
			s.Taken(waiting)
			waiting = nil
			takeBack(out)
		case <-end:
			waiting = settle(out, s, waiting)
			if last := s.Collect(waiting); last != nil {
				out <- last
				s.Taken(last) // by whom it may concern: nobody waits for that
			}
			close(out)
			return
		}
		if s.Pending() {
			waiting = s.Collect(settle(out, s, waiting))
			if waiting != nil {
				out <- waiting // the channel is empty: this does not block
			}
		}
	}
}

// settle empties the channel and returns what was still waiting in it, or nil
// if that has been taken.
func settle[B any](out chan *B, s Source[B], waiting *B) *B {
	if waiting == nil {
		return nil
	}
	if b := takeBack(out); b != nil {
		return b
	}
	s.Taken(waiting)
	return nil
}

func takeBack[B any](out chan *B) *B {
	select {
	case b := <-out:
		return b
	default:
		return nil
	}
}
