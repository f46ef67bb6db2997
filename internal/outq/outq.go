// Package outq is the queue of a connection's output: messages already framed
// for the wire, kept so that many of them leave in one vectored write, and so
// that at any moment it can be said which of them were written, which was cut
// and which never left.
//
// It only computes: no goroutines, no locks. Its owner serializes the calls.
package outq

import (
	"encoding/binary"
	"iter"
	"sync"

	"github.com/sockhub/sockhub/internal/chunk"
)

const (
	// MaxHeader is the longest header of a Framing.
	MaxHeader = 64

	// Overhead is what a message is charged beside its length.
	Overhead = 64

	// Inline is the size up to which a body is copied behind its header
	// instead of being referenced: below it, an iovec costs more than the
	// copy.
	Inline = 2048

	// A block's memory for small bytes: the first block of a burst is
	// small, so that a connection with one message waiting holds little;
	// the next ones are as large as a write is worth.
	smallBlock = 4 << 10
	largeBlock = 64 << 10

	// A block is closed beyond this many references.
	maxRefs = 128
)

// Framing is how the length of a message is written; nil writes nothing (raw
// bytes).
type Framing struct {
	// Append appends the header of a message of n bytes to dst.
	Append func(dst []byte, n uint64) []byte
}

// Default is the framing with 8 bytes, little-endian. The queue knows it, and
// writes it without a call, which would cost as much as copying a small body.
var Default = &Framing{binary.LittleEndian.AppendUint64}

const defaultSize = 8

// block is a run of whole messages. All headers and small bodies lie in buf,
// one after the other; large bodies are referenced: refs[i].body follows
// buf[:refs[i].at]. So a block becomes up to 2×len(refs)+1 slices on the wire.
type block struct {
	// To add a small message touches two lines of this.
	buf   []byte
	msgs  []message
	wire  int64 // bytes on the wire, from the first message on that was neither written nor dropped
	bytes int64 // of bodies, likewise
	refs  []ref
	next  *block

	msg0, buf0, ref0 int // where that message begins

	shared bool // buf and msgs are those of a Run: there is no room for more, and they are not used again
}

// Blocks that were wholly written are used again. What a report tells of is
// never given back, so it is the caller's for good.
var (
	smallBlocks = sync.Pool{New: func() any { return &block{buf: make([]byte, 0, smallBlock)} }}
	largeBlocks = sync.Pool{New: func() any { return &block{buf: make([]byte, 0, largeBlock)} }}

	sharedBlocks = sync.Pool{New: func() any { return new(block) }} // for what is not theirs
)

func (b *block) reset() {
	for i := range b.refs {
		b.refs[i].forget()
	}
	b.next = nil
	b.buf, b.refs, b.msgs = b.buf[:0], b.refs[:0], b.msgs[:0]
	b.msg0, b.buf0, b.ref0, b.wire, b.bytes = 0, 0, 0, 0, 0
}

func (b *block) recycle() {
	if b.shared {
		*b = block{}
		sharedBlocks.Put(b)
		return
	}
	b.reset()
	switch cap(b.buf) {
	case smallBlock:
		smallBlocks.Put(b)
	case largeBlock:
		largeBlocks.Put(b)
	} // else a Framing has put other memory in its place
}

// shift passes over the first message, and lets go of its referenced body:
// the small bytes stay until the block goes, as they are one allocation.
func (b *block) shift() message {
	m := b.msgs[b.msg0]
	b.msg0++
	b.buf0 += m.header()
	b.wire -= int64(m.wire())
	b.bytes -= int64(m.body())
	if !m.byRef() {
		b.buf0 += m.body()
		return m
	}
	for size := m.body(); size > 0; b.ref0++ {
		size -= len(b.refs[b.ref0].body)
		b.refs[b.ref0].forget()
	}
	return m
}

// at finds the place of the byte n bytes into the first message: in buf, or
// off bytes into refs[r] where buf[:buf] is written.
func (b *block) at(n int) (buf, r, off int) {
	buf, r = b.buf0, b.ref0
	if n == 0 {
		return buf, r, 0
	}
	m := b.msgs[b.msg0]
	if !m.byRef() || n <= m.header() {
		return buf + n, r, 0
	}
	for off = n - m.header(); off >= len(b.refs[r].body); r++ {
		off -= len(b.refs[r].body)
	}
	return buf + m.header(), r, off
}

// bodies yields the bodies from the i-th message after the first on.
func (b *block) bodies(skip int, yield func([]byte) bool) bool {
	buf, r := b.buf0, b.ref0
	for i, m := range b.msgs[b.msg0:] {
		buf += m.header()
		var body []byte
		if m.byRef() {
			body = b.refs[r].body
			r++
			for whole := false; len(body) < m.body(); r++ { // sent as parts
				if !whole {
					body, whole = append(make([]byte, 0, m.body()), body...), true
				}
				body = append(body, b.refs[r].body...)
			}
		} else {
			body = b.buf[buf : buf+m.body()]
			buf += m.body()
		}
		if i >= skip && !yield(body[:len(body):len(body)]) {
			return false
		}
	}
	return true
}

type ref struct {
	at    int
	body  []byte
	chunk *chunk.Chunk // that body lies in, and the block has a reference to; or nil
}

// forget lets go of a referenced body.
func (r *ref) forget() {
	if r.chunk != nil {
		r.chunk.Release()
	}
	r.body, r.chunk = nil, nil
}

// message is what a block remembers of one message: the length of its body,
// of its header, and whether the body is referenced.
type message uint64

func newMessage(body, header int, byRef bool) message {
	m := message(body)<<8 | message(header)<<1
	if byRef {
		m |= 1
	}
	return m
}

func (m message) body() int   { return int(m >> 8) }
func (m message) header() int { return int(m >> 1 & 0x7f) }
func (m message) byRef() bool { return m&1 != 0 }
func (m message) wire() int   { return m.body() + m.header() }

// Queue is a FIFO of framed messages. Its zero value is empty.
type Queue struct {
	head, tail *block
	msgs       int
	bytes      int64 // of bodies
}

// Len is the number of messages, Bytes that of their bodies' bytes.
func (q *Queue) Len() int     { return q.msgs }
func (q *Queue) Bytes() int64 { return q.bytes }
func (q *Queue) Empty() bool  { return q.msgs == 0 }

// Charge is what the queued messages count against a limit.
func (q *Queue) Charge() int64 { return q.bytes + int64(q.msgs)*Overhead }

// Append queues one message. A small body is copied, a large one is kept by
// reference and must not change until it is written.
func (q *Queue) Append(f *Framing, body []byte) {
	if len(body) <= Inline {
		q.copied(f, body)
	} else {
		q.referred(f, body, nil)
	}
}

// AppendFitting is Append in the default framing of a small body, if its copy has room
// behind the last message.
func (q *Queue) AppendFitting(body []byte) bool {
	b := q.tail
	if b == nil || len(b.refs) >= maxRefs {
		return false
	}
	at := len(b.buf)
	end := at + defaultSize + len(body)
	if end > cap(b.buf) {
		return false
	}
	b.buf = b.buf[:end]
	p := b.buf[at:]
	binary.LittleEndian.PutUint64(p, uint64(len(body)))
	copy(p[defaultSize:], body)
	q.add(b, len(body), defaultSize, false)
	return true
}

// AppendBorrowed is Append of a body that may lie in memory that is used again.
// The queue keeps the memory from that until the body is written, or copies a
// body that is a small part of it.
func (q *Queue) AppendBorrowed(f *Framing, body []byte) {
	if len(body) <= Inline {
		q.copied(f, body)
	} else {
		q.borrowed(f, body)
	}
}

func (q *Queue) borrowed(f *Framing, body []byte) {
	switch c := chunk.Of(body); {
	case c == nil:
		q.referred(f, body, nil)
	case small(body, c):
		q.copied(f, body)
	default:
		c.Retain()
		q.referred(f, body, c)
	}
}

// copied queues a message with a copy of its body, referred one that refers to it:
// if that lies in a chunk, with a reference to the chunk, which is the queue's now.
func (q *Queue) copied(f *Framing, body []byte) {
	if f == Default && q.AppendFitting(body) {
		return
	}
	b, header := q.header(f, len(body), len(body))
	b.buf = append(b.buf, body...)
	q.add(b, len(body), header, false)
}

func (q *Queue) referred(f *Framing, body []byte, c *chunk.Chunk) {
	b, header := q.header(f, len(body), 0)
	b.refs = append(b.refs, ref{len(b.buf), body, c})
	q.add(b, len(body), header, true)
}

// small reports whether a body is not worth keeping its chunk for.
func small(body []byte, c *chunk.Chunk) bool {
	return len(body) < len(c.Mem())/4 && len(body) <= largeBlock/2
}

// AppendPartsBorrowed is AppendParts of parts that AppendBorrowed would take.
func (q *Queue) AppendPartsBorrowed(f *Framing, parts [][]byte, size int) {
	if size <= Inline {
		q.AppendParts(f, parts, size)
		return
	}
	b, header := q.header(f, size, 0)
	for _, p := range parts {
		if len(p) > 0 {
			c := chunk.Of(p)
			if c != nil && small(p, c) {
				p, c = append([]byte(nil), p...), nil
			} else if c != nil {
				c.Retain()
			}
			b.refs = append(b.refs, ref{len(b.buf), p, c})
		}
	}
	q.add(b, size, header, true)
}

// AppendParts queues one message made of parts, whose lengths add up to size.
func (q *Queue) AppendParts(f *Framing, parts [][]byte, size int) {
	byRef := size > Inline
	room := size
	if byRef {
		room = 0
	}
	b, header := q.header(f, size, room)
	for _, p := range parts {
		switch {
		case !byRef:
			b.buf = append(b.buf, p...)
		case len(p) > 0:
			b.refs = append(b.refs, ref{at: len(b.buf), body: p})
		}
	}
	q.add(b, size, header, byRef)
}

// header writes the header of a message of n bytes into the last block, or a
// new one, if there is not room for it and for more bytes behind it.
func (q *Queue) header(f *Framing, n, more int) (b *block, size int) {
	b = q.tail
	if b == nil || len(b.buf)+MaxHeader+more > cap(b.buf) || len(b.refs) >= maxRefs {
		b = q.push(MaxHeader + more) // at most Inline more: any block has room
	}
	switch at := len(b.buf); f {
	case nil:
	case Default:
		b.buf, size = binary.LittleEndian.AppendUint64(b.buf, uint64(n)), defaultSize
	default:
		buf := f.Append(b.buf, uint64(n))
		size = checkHeader(len(buf) - at)
		b.buf = buf
	}
	return b, size
}

func (q *Queue) push(need int) *block {
	if t := q.tail; t != nil && t == q.head && cap(t.buf) == smallBlock && len(t.refs) == 0 && len(t.buf)+need <= largeBlock {
		return q.enlarge()
	}
	pool := &smallBlocks
	if q.tail != nil && !q.tail.shared || need > smallBlock {
		pool = &largeBlocks
	}
	b := pool.Get().(*block)
	q.link(b, b)
	return b
}

// link puts the blocks from first to last behind those of q, and counts nothing.
func (q *Queue) link(first, last *block) {
	if q.tail == nil {
		q.head = first
	} else {
		q.tail.next = first
	}
	q.tail = last
}

// enlarge gives a queue of one small block a large one instead: what lies in one
// piece leaves by a system call for one piece, which saves more than this copy
// costs.
func (q *Queue) enlarge() *block {
	t, b := q.tail, largeBlocks.Get().(*block)
	b.buf, b.msgs = append(b.buf, t.buf...), append(b.msgs, t.msgs...)
	b.msg0, b.buf0, b.wire, b.bytes = t.msg0, t.buf0, t.wire, t.bytes
	q.head, q.tail = b, b
	t.recycle()
	return b
}

func (q *Queue) add(b *block, body, header int, byRef bool) {
	m := newMessage(body, header, byRef)
	b.msgs = append(b.msgs, m)
	b.wire += int64(m.wire())
	b.bytes += int64(body)
	q.msgs++
	q.bytes += int64(body)
}

// addWhole adds to b, the last block, messages without references, of which buf is
// what they are on the wire.
func (q *Queue) addWhole(b *block, buf []byte, msgs []message, bytes int64) {
	b.buf, b.msgs = append(b.buf, buf...), append(b.msgs, msgs...)
	b.wire += int64(len(buf))
	b.bytes += bytes
	q.msgs += len(msgs)
	q.bytes += bytes
}

// Splice moves everything in p to the end of q and leaves p empty.
func (q *Queue) Splice(p *Queue) {
	if p.msgs == 0 {
		return
	}
	if q.msgs == 0 {
		q.Free()
	}
	q.link(p.head, p.tail)
	q.msgs += p.msgs
	q.bytes += p.bytes
	*p = Queue{}
}

// Absorb moves everything in p to the end of q. A few messages are copied behind
// what q ends with, but not what they refer to, and p keeps its block for the next
// ones, where Splice would leave q with a block for each few messages.
func (q *Queue) Absorb(p *Queue) {
	b, t := p.head, q.tail
	if p.msgs == 0 {
		return
	}
	if q.msgs == 0 || b != p.tail || t.shared || len(t.refs)+len(b.refs) > maxRefs || len(t.buf)+len(b.buf) > cap(t.buf) {
		q.Splice(p)
		return
	}
	for _, r := range b.refs {
		r.at += len(t.buf)
		t.refs = append(t.refs, r)
	}
	clear(b.refs) // they are t's now
	t.buf = append(t.buf, b.buf...)
	t.msgs = append(t.msgs, b.msgs...)
	t.wire += b.wire
	t.bytes += b.bytes
	q.msgs += p.msgs
	q.bytes += p.bytes
	b.reset()
	p.msgs, p.bytes = 0, 0
}

// Free lets go of the block that Absorb has left. The queue must be empty.
func (q *Queue) Free() {
	if b := q.head; b != nil {
		*q = Queue{}
		b.recycle()
	}
}

// DropFirst removes the first message and returns the length of its body. The
// queue must not be empty.
func (q *Queue) DropFirst() (body int) {
	b := q.head
	m := b.shift()
	q.msgs--
	q.bytes -= int64(m.body())
	if b.msg0 == len(b.msgs) {
		q.pop()
	}
	return m.body()
}

func (q *Queue) pop() {
	if q.head = q.head.next; q.head == nil {
		q.tail = nil
	}
}

// Bodies yields the bodies of the queued messages in order. The slices are
// good for as long as they are held.
func (q *Queue) Bodies() iter.Seq[[]byte] { return q.bodies(0) }

func (q *Queue) bodies(skip int) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		n := skip
		for b := q.head; b != nil && b.bodies(n, yield); b = b.next {
			n = 0
		}
	}
}

// Writing is the run of messages that is being written. Its zero value is
// empty. What Take has moved into it is no longer in the queue; DropFirst
// cannot touch it.
type Writing struct {
	q  Queue
	in int // bytes written of the first message, its header included
}

// Take moves all of q behind what w holds.
func (w *Writing) Take(q *Queue) { w.q.Splice(q) }

// Empty reports that all was written.
func (w *Writing) Empty() bool { return w.q.msgs == 0 }

// Len and Bytes are those of the messages not wholly written, the one that is
// partly written included; Charge is what they count against a limit.
func (w *Writing) Len() int      { return w.q.msgs }
func (w *Writing) Bytes() int64  { return w.q.bytes }
func (w *Writing) Charge() int64 { return w.q.Charge() }

// Vec appends to dst the slices to write next: in at most cap(dst) slices, and
// no further one when there are bytes bytes in them already. A body of which only
// a sixteenth of that would be left is not cut: the rest would be a system call of
// its own, and a packet.
func (w *Writing) Vec(dst [][]byte, bytes int) [][]byte {
	in, slack := w.in, bytes/16
	for b := w.q.head; b != nil; b = b.next {
		buf, r, off := b.at(in)
		in = 0
		for {
			end := len(b.buf)
			if r < len(b.refs) {
				end = b.refs[r].at
			}
			if end > buf {
				if len(dst) == cap(dst) || bytes <= 0 {
					return dst
				}
				dst = append(dst, b.buf[buf:end])
				bytes -= end - buf
				buf = end
			}
			if r == len(b.refs) {
				break
			}
			if len(dst) == cap(dst) || bytes <= 0 {
				return dst
			}
			body := b.refs[r].body[off:]
			if len(body) > bytes+slack {
				body = body[:bytes]
			}
			dst = append(dst, body)
			bytes -= len(body)
			r, off = r+1, 0
		}
	}
	return dst
}

// Wrote says that the next n bytes were written, and returns how many
// messages this completed and the bytes of their bodies.
func (w *Writing) Wrote(n int) (msgs int, bytes int64) {
	w.in += n
	for b := w.q.head; b != nil; b = w.q.head {
		if int64(w.in) >= b.wire { // the common case: no walk
			w.in -= int(b.wire)
			msgs += len(b.msgs) - b.msg0
			bytes += b.bytes
			w.q.pop()
			b.recycle()
			continue
		}
		for w.in >= b.msgs[b.msg0].wire() {
			m := b.shift()
			w.in -= m.wire()
			msgs++
			bytes += int64(m.body())
		}
		break
	}
	w.q.msgs -= msgs
	w.q.bytes -= bytes
	return msgs, bytes
}

// Restart counts what was written of the first message as not written.
func (w *Writing) Restart() { w.in = 0 }

// Skip forgets the first message, whatever was written of it. There has to be one.
func (w *Writing) Skip() {
	w.q.DropFirst()
	w.in = 0
}

// Cut tells of the message that is partly written: its body, and how many
// bytes of the body were written. The header may have been cut too.
func (w *Writing) Cut() (body []byte, written int, ok bool) {
	if w.in == 0 {
		return nil, 0, false
	}
	for body = range w.q.bodies(0) {
		break
	}
	m := w.q.head.msgs[w.q.head.msg0]
	return body, max(0, w.in-m.header()), true
}

// Own makes the referenced bodies in chunks, and what is a Run's, memory of w's own.
func (w *Writing) Own() {
	for b := w.q.head; b != nil; b = b.next {
		if b.shared {
			b.buf = append([]byte(nil), b.buf...)
		}
		for i := range b.refs {
			if r := &b.refs[i]; r.chunk != nil {
				body := append([]byte(nil), r.body...)
				r.forget()
				r.body = body
			}
		}
	}
}

// Unwritten yields the bodies of the messages of which nothing was written.
func (w *Writing) Unwritten() iter.Seq[[]byte] {
	if w.in > 0 {
		return w.q.bodies(1)
	}
	return w.q.bodies(0)
}

// checkHeader returns n, the length of a header that a Framing has appended. One that
// breaks its word must not corrupt what lies beside.
func checkHeader(n int) int {
	if n > MaxHeader {
		panic("sockhub: AppendHeader has appended more than 64 bytes")
	}
	return n
}
