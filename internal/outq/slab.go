package outq

import (
	"encoding/binary"
	"math"
	"slices"
	"sync/atomic"
)

// SlabMax is the longest body that a Slab takes. Longer ones are better not copied
// twice.
const SlabMax = Inline / 4

const (
	slabBytes = largeBlock
	slabMsgs  = 1024
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
// makes the writer begin again at the front, and only TakeWhole gives its memory
// away: both are the writer's, and need the lock.
//
// The zero value takes nothing before the first Reset.
type Slab struct {
	// The writer's own.
	bytes, msgs int // added
	buf         []byte
	sizes       []message
	block       *block // that they are the memory of

	published atomic.Uint64 // bytes<<32 | msgs

	// Guarded by the queue's lock.
	takenBytes, takenMsgs int
}

// Add adds a message, unless there is no room for it, or it is better not copied
// twice.
func (s *Slab) Add(f *Framing, body []byte) bool {
	if len(body) > SlabMax {
		return false
	}
	if f == Default {
		return s.AddDefault(body)
	}
	at := s.bytes
	if at+MaxHeader+len(body) > len(s.buf) || s.msgs >= len(s.sizes) {
		return false
	}
	header := 0
	if f != nil {
		h := f.Append(s.buf[at:at], uint64(len(body)))
		if header = checkHeader(len(h)); header > 0 && &h[0] != &s.buf[at] {
			copy(s.buf[at:], h) // as it may, append has made memory of its own
		}
	}
	s.add(at, header, body)
	return true
}

// AddDefault is Add with the default framing, of a body not longer than SlabMax. (A look
// at that here would have the compiler store the header in four pieces; and add is written
// out, which saves 9 instructions of 270 that an echo takes.)
func (s *Slab) AddDefault(body []byte) bool {
	end := s.bytes + defaultSize + len(body)
	if end > len(s.buf) || s.msgs >= len(s.sizes) {
		return false
	}
	b := s.buf[s.bytes:end]
	binary.LittleEndian.PutUint64(b, uint64(len(body)))
	copy(b[defaultSize:], body)
	s.sizes[s.msgs] = newMessage(len(body), defaultSize, false)
	s.msgs++
	s.bytes = end
	return true
}

// add adds the body of a message whose header begins at at.
func (s *Slab) add(at, header int, body []byte) {
	copy(s.buf[at+header:], body)
	s.sizes[s.msgs] = newMessage(len(body), header, false)
	s.msgs++
	s.bytes = at + header + len(body)
}

// Publish makes what was added the queue's.
func (s *Slab) Publish() { s.published.Store(s.added()) }

func (s *Slab) added() uint64 { return uint64(s.bytes)<<32 | uint64(s.msgs) }

// Reset makes room for more, of which the charge is at most limit. Everything added
// must have been published and taken. The caller is the writer, and has the lock.
func (s *Slab) Reset(limit int64) {
	s.bytes, s.msgs, s.takenBytes, s.takenMsgs = 0, 0, 0, 0
	s.published.Store(0)
	if s.block == nil {
		b := largeBlocks.Get().(*block)
		b.msgs = slices.Grow(b.msgs, slabMsgs)
		s.block, s.buf, s.sizes = b, b.buf, b.msgs
	}
	half := max(0, limit) / 2
	s.buf, s.sizes = s.buf[:min(slabBytes, half)], s.sizes[:min(slabMsgs, half/Overhead)]
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
	for _, m := range ms {
		bytes += int64(m.body())
	}
	q.addWhole(t, buf, ms, bytes)
	return len(ms), bytes
}

// TakeWhole is Take by the writer itself. If it is all that was added, the first in
// q, and enough for a large block, q gets the slab's memory instead of a copy, which
// then leaves from where it was written, and the slab takes nothing before Reset.
func (q *Queue) TakeWhole(s *Slab) (msgs int, bytes int64) {
	if s.bytes <= smallBlock || s.takenMsgs > 0 || q.msgs > 0 || s.published.Load() != s.added() {
		return q.Take(s)
	}
	q.Free()
	b := s.block
	b.buf, b.msgs = s.buf[:s.bytes], s.sizes[:s.msgs]
	for _, m := range b.msgs {
		bytes += int64(m.body())
	}
	b.wire, b.bytes = int64(len(b.buf)), bytes
	q.head, q.tail, q.msgs, q.bytes = b, b, len(b.msgs), bytes
	s.block, s.buf, s.sizes = nil, nil, nil
	s.takenBytes, s.takenMsgs = s.bytes, s.msgs
	return q.msgs, bytes
}
