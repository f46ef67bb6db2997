package outq

import (
	"math"
	"sync/atomic"
)

const (
	slabBytes = 16 << 10
	slabMsgs  = 256
)

// Slab gathers small messages that one goroutine, its writer, adds without the
// lock that the queue's owner serializes calls by. What it has added is the
// queue's when it is published, and is moved there by whoever has the lock next:
// Queue.Take. So the price of a message is one atomic store, where the lock and
// the copying of a queue of its own cost four times that.
//
// Why that is right: the writer only ever writes beyond what is published, and
// Take only reads what is, so they do not touch the same bytes; the store that
// publishes, and the load that finds it, order the bytes between them. Only Reset
// makes the writer begin again at the front, and it needs the lock.
type Slab struct {
	// The writer's own.
	bytes, msgs int // added

	published atomic.Uint64 // bytes<<32 | msgs

	// Guarded by the queue's lock.
	takenBytes, takenMsgs int

	sizes [slabMsgs]message
	buf   [slabBytes]byte
}

// Add adds a message, unless there is no room for it, or it is better not copied
// twice.
func (s *Slab) Add(f Framing, body []byte) bool {
	const maxHeader = 64
	at := s.bytes
	if len(body) > inline/4 || at+maxHeader+len(body) > slabBytes || s.msgs == slabMsgs {
		return false
	}
	header := 0
	if f != nil {
		h := f(s.buf[at:at:slabBytes], uint64(len(body)))
		if header = len(h); header > 0 && &h[0] != &s.buf[at] {
			copy(s.buf[at:], h) // as it may, append has made memory of its own
		}
	}
	copy(s.buf[at+header:], body)
	s.sizes[s.msgs&(slabMsgs-1)] = newMessage(len(body), header, false)
	s.msgs++
	s.bytes = at + header + len(body)
	return true
}

// Publish makes what was added the queue's.
func (s *Slab) Publish() { s.published.Store(uint64(s.bytes)<<32 | uint64(s.msgs)) }

// Charge is at least what everything added since Reset counts against a limit.
func (s *Slab) Charge() int64 { return int64(s.bytes) + int64(s.msgs)*Overhead }

// Reset makes room for more. Everything added must have been published and
// taken. The caller is the writer, and has the lock.
func (s *Slab) Reset() {
	s.bytes, s.msgs, s.takenBytes, s.takenMsgs = 0, 0, 0, 0
	s.published.Store(0)
}

// Waiting reports whether something was published and not taken. The caller has
// the lock.
func (s *Slab) Waiting() bool { return int(s.published.Load()&math.MaxUint32) > s.takenMsgs }

// Take moves what was published to the end of q, and returns how many messages
// that were, and the bytes of their bodies.
func (q *Queue) Take(s *Slab) (msgs int, bytes int64) {
	data, sizes := s.takenBytes, s.takenMsgs
	p := s.published.Load()
	s.takenBytes, s.takenMsgs = int(p>>32), int(p&math.MaxUint32)
	buf, ms := s.buf[data:s.takenBytes], s.sizes[sizes:s.takenMsgs]
	t := q.tail
	if t == nil || len(t.buf)+len(buf) > cap(t.buf) {
		t = q.push(len(buf))
	}
	t.buf = append(t.buf, buf...)
	t.msgs = append(t.msgs, ms...)
	for _, m := range ms {
		bytes += int64(m.body())
	}
	t.wire += int64(len(buf))
	t.bytes += bytes
	q.msgs += len(ms)
	q.bytes += bytes
	return len(ms), bytes
}
