package outq

import (
	"encoding/binary"
	"slices"
)

// Run is a run of small messages with the default framing that is the same for
// many queues: its bytes are in memory once for those that had nothing queued. What a
// queue has of it is what there was when it was appended, and is only read from then
// on: what is added to the run later lies behind that. Calls on one Run, AppendRun
// among them, are to be serialized.
type Run struct {
	buf   []byte
	msgs  []message
	bytes int64 // of bodies
}

// Len is the number of messages, Bytes that of their bodies' bytes.
func (r *Run) Len() int     { return len(r.msgs) }
func (r *Run) Bytes() int64 { return r.bytes }

// Charge is what the messages count against a limit.
func (r *Run) Charge() int64 { return r.bytes + int64(len(r.msgs))*Overhead }

// Add adds a copy of a message.
func (r *Run) Add(body []byte) {
	if r.buf == nil {
		r.buf, r.msgs = make([]byte, 0, Inline), make([]message, 0, Inline/Overhead)
	}
	r.buf = append(binary.LittleEndian.AppendUint64(r.buf, uint64(len(body))), body...)
	r.msgs = append(r.msgs, newMessage(len(body), defaultSize, false))
	r.bytes += int64(len(body))
}

// AppendRun queues what there is of r.
func (q *Queue) AppendRun(r *Run) {
	switch {
	case r.Len() == 0:
		return
	case q.msgs == 0:
		q.Free()
	case len(r.buf) <= runCopied:
		q.copyRun(r)
		return
	}
	b := sharedBlocks.Get().(*block)
	b.buf, b.msgs, b.shared = slices.Clip(r.buf), slices.Clip(r.msgs), true
	b.wire, b.bytes = int64(len(r.buf)), r.bytes
	q.link(b, b)
	q.msgs += len(r.msgs)
	q.bytes += r.bytes
}

// runCopied is up to how many bytes a run is copied behind what waits already. A
// reference keeps the whole of the run's memory, and what comes behind it takes a
// block of its own, for both of which few small messages are not charged enough.
const runCopied = 4 << 10

// copyRun is AppendRun for a run of at most runCopied bytes.
func (q *Queue) copyRun(r *Run) {
	b := q.tail
	if len(b.buf)+len(r.buf) > cap(b.buf) || len(b.refs) >= maxRefs {
		b = q.push(len(r.buf))
	}
	q.addWhole(b, r.buf, r.msgs, r.bytes)
}
