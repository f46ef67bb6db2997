package sockhub

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"slices"

	"github.com/sockhub/sockhub/internal/chunk"
	"github.com/sockhub/sockhub/internal/outq"
)

// ErrMessageTooLarge is the reason of a connection whose peer announced a
// message above MaxMessage (nothing is allocated for it), and the result of a
// Send of such a message.
var ErrMessageTooLarge = errors.New("sockhub: message too large")

// Framing is how messages are told apart in a stream of bytes: each is
// preceded by a header from which its length follows. An implementation must
// be safe for concurrent use; its methods are called with hub locks held and
// must only compute.
//
// Messages that end with a mark, such as lines, have no such header: they take mode Raw, and
// a Handler that gives back with Reply.Unread what is not complete.
type Framing interface {
	// MaxHeader is the largest size of a header in bytes, from 1 to 64.
	MaxHeader() int

	// AppendHeader appends the header of a message of n bytes, which is of at most
	// MaxHeader bytes, to dst. It panics if n cannot be expressed. With LengthPrefix
	// and Uvarint that does not happen, as Send refuses such a message before, with
	// ErrMessageTooLarge.
	AppendHeader(dst []byte, n uint64) []byte

	// Header reads the header at the start of p. size 0 without an error
	// means that more bytes are needed, which may be said of at most
	// MaxHeader bytes. An error ends the connection, with it as the reason. It must
	// neither keep nor change p.
	Header(p []byte) (size int, n uint64, err error)
}

// LengthPrefix is the framing in which the length of a message stands before
// it in size bytes (1, 2, 4 or 8) of the given order. LengthPrefix(8,
// binary.LittleEndian) is the default of every connection and the format of
// FI-ASockIOCore. It panics for another size or a nil order.
func LengthPrefix(size int, order binary.ByteOrder) Framing {
	if order == nil {
		panic("sockhub: LengthPrefix: nil byte order")
	}
	switch size {
	case 1, 2, 4, 8:
		return lengthPrefix{size, order}
	}
	panic(fmt.Sprintf("sockhub: LengthPrefix: size %d is not 1, 2, 4 or 8", size))
}

type lengthPrefix struct {
	size  int
	order binary.ByteOrder
}

func (f lengthPrefix) MaxHeader() int { return f.size }

// maxLen is the longest message that the header can express.
func (f lengthPrefix) maxLen() uint64 { return math.MaxUint64 >> (64 - 8*f.size) }

func (f lengthPrefix) AppendHeader(dst []byte, n uint64) []byte {
	if n > f.maxLen() {
		panic("sockhub: length does not fit its prefix")
	}
	at := len(dst)
	dst = append(dst, make([]byte, f.size)...)
	switch p := dst[at:]; f.size {
	case 1:
		p[0] = byte(n)
	case 2:
		f.order.PutUint16(p, uint16(n))
	case 4:
		f.order.PutUint32(p, uint32(n))
	case 8:
		f.order.PutUint64(p, n)
	}
	return dst
}

func (f lengthPrefix) Header(p []byte) (size int, n uint64, err error) {
	if len(p) < f.size {
		return 0, 0, nil
	}
	switch f.size {
	case 1:
		n = uint64(p[0])
	case 2:
		n = uint64(f.order.Uint16(p))
	case 4:
		n = uint64(f.order.Uint32(p))
	case 8:
		n = f.order.Uint64(p)
	}
	return f.size, n, nil
}

// Uvarint is the framing in which the length of a message stands before it as
// an unsigned varint of encoding/binary (the format of Protocol Buffers'
// delimited messages), of at most 10 bytes.
func Uvarint() Framing { return uvarint{} }

type uvarint struct{}

func (uvarint) MaxHeader() int { return binary.MaxVarintLen64 }

func (uvarint) AppendHeader(dst []byte, n uint64) []byte { return binary.AppendUvarint(dst, n) }

var errVarint = errors.New("sockhub: message length is no varint of 64 bits")

func (uvarint) Header(p []byte) (size int, n uint64, err error) {
	n, size = binary.Uvarint(p)
	if size < 0 || size == 0 && len(p) >= binary.MaxVarintLen64 {
		return 0, 0, errVarint
	}
	return size, n, nil
}

// headerSize is the size of the default framing's header: the length as an
// unsigned 64-bit little-endian number.
const headerSize = 8

// maxHeader is the largest Framing.MaxHeader.
const maxHeader = outq.MaxHeader

// plainFraming is f, or nil for the default framing, which has a path without
// interface calls.
func plainFraming(f Framing) Framing {
	if f == Framing(lengthPrefix{headerSize, binary.LittleEndian}) {
		return nil
	}
	return f
}

// expressible reports whether f can announce a message of n bytes.
func expressible(f Framing, n uint64) bool {
	if f, ok := f.(lengthPrefix); ok {
		return n <= f.maxLen()
	}
	return true
}

// earnest is how many bytes of a large message have to come before it gets a
// buffer. A peer that announces it and sends nothing costs no memory.
const earnest = 256

// growStep is what the buffer of a large message may hold beyond twice what
// was received: memory follows the bytes that came, not the length announced.
const growStep = 64 << 10

// decoder cuts a stream of bytes into messages. It reads nothing itself: its
// owner receives into space and tells it by advance how much came, then takes
// the complete messages from next until there is none. When full says so, the
// owner moves it to another chunk, and before it gives the chunk away, it
// calls park. What a decoder holds between park and move is the unfinished
// message alone.
//
// Whatever way the input is cut, the same messages come out; the fuzz test
// holds it to that.
type decoder struct {
	framing Framing // nil: the default

	chunk []byte // where small messages are received; its owner's
	r, w  int    // chunk[r:w] was received and not yet cut
	want  int    // bytes from r on that the chunk must have room for

	max        uint64 // longest message accepted into memory
	streamOver uint64 // a longer one is a stream; 0: none is
	stream     uint64 // bytes of the stream that has begun which are to be read or skipped: until then next returns nothing
	last       int    // bytes of the last message, its header included: the next is likely to be as large
	lacks      int    // bytes left of the message that has begun, once its header is read
	raw        bool   // no frames: whatever came is one piece

	// borrow makes messages with a buffer of their own lie in chunks; own is
	// that of the message that next returned last, which is its owner's to
	// release, and its to set to nil.
	borrow bool
	wasBig bool  // the last message had a buffer of its own
	early  bool  // the next will have one, when as much of it as is earnest has come
	sized  bool  // the chunk is for a message like the last one
	copied bool  // the last small message was copied out of a sized chunk; raw input never is
	lent   bool  // big lies in memory that is counted with the lender
	head   uint8 // the size of big's header, which is received; at most maxHeader
	own    *chunk.Chunk

	// A message that does not fit, and is more than half a chunk, has a buffer of its own.
	big    []byte       // received of it so far; nil: none
	bigIn  *chunk.Chunk // that big lies in
	lender *Budget      // of memory for messages that have just begun; nil: there is none

	rest []byte // between park and move: what was chunk[r:w]. Else what unread has taken of a message with a buffer of its own: then move is due
	kept int    // if raw: bytes at the front that Unread gave back; no piece is cut before there are more
	size int    // of the message that big is of, the whole length
	stay *stay  // where rest lies, if it is all of what stays there; else nil, mostly
}

// stay is where much that Unread gave back stays between two turns, with room behind it.
type stay struct {
	mem []byte       // all that is kept for it, what lies before it too
	at  int          // where it begins
	in  *chunk.Chunk // that mem lies in; nil without borrow
}

// needs is how many bytes the message that comes is known to lack: of its header first,
// and when that was cut, of its body. 0: that is not known.
func (d *decoder) needs() int {
	switch {
	case d.lacks > 0:
		return d.lacks
	case d.framing == nil:
		return headerSize - d.partial()
	}
	return 0
}

// buffered reports that something was received and not yet cut.
func (d *decoder) buffered() bool { return d.w > d.r }

// need is the least size of the chunk for the next move. Where the last message
// was larger than chunks are mostly, it is room for another like that, which so
// comes in one read and is not copied.
func (d *decoder) need() int {
	n := max(minChunk, d.want, len(d.rest)+1, d.w-d.r+1)
	if d.last <= maxSized && (d.borrow || d.last > readChunk) {
		n = max(n, d.last)
	}
	return n
}

// maxSized is the size of the largest message that room is made for before it
// comes, because the one before had that size.
const maxSized = 64 << 10

// shares reports whether a message of n bytes, its header included, lies in a
// chunk with others: not if it takes more than half of one. What counts is the
// whole chunk and not what is left of it, which a message of a tenth may not fit.
func (d *decoder) shares(n int) bool {
	whole := max(len(d.chunk), readChunk)
	if d.borrow {
		whole = chunk.Size
	}
	return n <= whole/2
}

// minChunk is the least size of a chunk: a header, and room beyond it.
const minChunk = 1024

// move gives the decoder another chunk of at least need() bytes to work in, and moves
// unfinished input to its front.
func (d *decoder) move(chunk []byte) {
	left := d.rest
	if d.r < d.w {
		left = d.chunk[d.r:d.w]
	}
	d.chunk, d.rest = chunk, nil
	d.sized = !d.borrow && len(chunk) > readChunk
	d.r, d.w = 0, copy(chunk, left)
}

// atEnd reports that everything received was cut, and not at the chunk's front.
func (d *decoder) atEnd() bool { return d.big == nil && d.r == d.w && d.r > 0 && d.stream == 0 }

// little reports that no more than a little is to be read into the chunk, from
// where it has to be copied: what comes is of a message that will have a buffer of
// its own, or likely to be, as it was so with the last one.
func (d *decoder) little() bool {
	return d.early || d.wasBig && d.big == nil && d.r == d.w && (d.borrow || d.last > maxSized)
}

// park takes unfinished input out of the chunk, which is then its owner's again. It
// returns how many bytes of that are used by messages that next has returned: these are
// not to be overwritten while the messages are in use.
func (d *decoder) park() (used int) {
	if d.r < d.w {
		d.rest = append([]byte(nil), d.chunk[d.r:d.w]...)
	}
	used = d.r
	d.chunk, d.r, d.w = nil, 0, 0
	return used
}

// mayStay reports whether leave is to end a turn, and not park: what Unread gave back
// is so much that copying it whenever a little more comes would cost more than all else,
// and it has most of the chunk.
func (d *decoder) mayStay() bool {
	n := d.w - d.r
	most := 2*n + growStep
	if d.borrow {
		most = 4 * n // a chunk's size is a power of 2
	}
	return d.raw && d.kept > 0 && n >= maxSized && len(d.chunk) <= most
}

// leave is park that leaves the unfinished input in the chunk, which is the decoder's own
// from then on, and lies in in, if it borrows.
func (d *decoder) leave(in *chunk.Chunk) {
	d.rest, d.stay = d.chunk[d.r:d.w:d.w], &stay{d.chunk, d.r, in}
	d.chunk, d.r, d.w = nil, 0, 0
}

// goOn is move to where the unfinished input stays.
func (d *decoder) goOn() {
	d.chunk, d.r, d.w = d.stay.mem, d.stay.at, d.stay.at+len(d.rest)
	d.sized = !d.borrow && len(d.chunk) > readChunk
	d.rest, d.stay = nil, nil
}

// stays reports whether the unfinished input can be worked on where it stays.
func (d *decoder) stays() bool {
	st := d.stay
	return st != nil && len(d.rest) > 0 && &d.rest[0] == &st.mem[st.at] && len(st.mem)-st.at >= d.need()
}

// letStay lets go of what leave has kept.
func (d *decoder) letStay() {
	if d.stay != nil && d.stay.in != nil {
		d.stay.in.Release()
	}
	d.stay = nil
}

// moveDue reports that unread has taken what is not in the chunk.
func (d *decoder) moveDue() bool { return len(d.rest) > 0 && d.chunk != nil }

// full reports that what comes next does not fit this chunk: move is due.
func (d *decoder) full() bool { return d.big == nil && d.r+d.want > len(d.chunk) }

// space is where the next bytes of the stream belong; not empty unless full.
func (d *decoder) space() []byte {
	if d.big == nil {
		return d.chunk[d.w:]
	}
	if len(d.big) == cap(d.big) {
		d.grow(d.big)
	}
	return d.big[len(d.big):cap(d.big)]
}

// room is the capacity of big that so many bytes justify.
func (d *decoder) room(received int) int {
	if received >= (d.size-growStep+1)/2 { // 2*received may be no int of 32 bits
		return d.size
	}
	return 2*received + growStep
}

// grow gives big a buffer with room for more than received, which it copies.
func (d *decoder) grow(received []byte) {
	old, n := d.bigIn, d.room(len(received))
	d.bigIn = nil
	if d.borrow && d.lender.lend(d.size) {
		d.lent = true
		if d.bigIn = chunk.Idle(d.size); d.bigIn == nil {
			d.earned()
		}
	}
	var buf []byte
	switch {
	case d.bigIn != nil:
		buf = d.bigIn.Body()[:0:d.size]
	case n < d.size && n < chunk.Size:
		buf = make([]byte, 0, n) // a chunk would be more than was earned
	case n < d.size || d.borrow:
		d.bigIn = chunk.Get(n)
		buf = d.bigIn.Body()[:0:n]
	default:
		buf = make([]byte, chunk.Lead, chunk.Lead+n)[chunk.Lead:] // the whole message, and the user's for good
	}
	d.big = append(buf, received...)
	if old != nil {
		old.Release()
	}
}

// earned ends what was lent for big.
func (d *decoder) earned() {
	if d.lent {
		d.lent = false
		d.lender.lent.Add(-int64(d.size))
	}
}

// drop lets go of an unfinished message.
func (d *decoder) drop() {
	d.earned()
	if d.bigIn != nil {
		d.bigIn.Release()
	}
	d.big, d.bigIn, d.rest = nil, nil, nil
	d.letStay()
}

// advance says that n bytes were received into space.
func (d *decoder) advance(n int) {
	if d.big != nil {
		d.big = d.big[:len(d.big)+n]
	} else {
		d.w += n
	}
}

// spent reports that everything received was cut, as next would find, for less.
func (d *decoder) spent() bool {
	if d.r < d.w || len(d.rest) > 0 || !d.ordinary() {
		return false
	}
	d.want, d.lacks = headerSize, 0
	return true
}

// next returns the next complete message, its capacity clipped to its length,
// or ok == false if there is none. After an error the stream is lost.
func (d *decoder) next() (msg []byte, ok bool, err error) {
	if d.big != nil {
		if d.lacks = d.size - len(d.big); d.lacks > 0 {
			return nil, false, nil
		}
		d.earned()
		msg, d.big = d.big, nil
		d.own, d.bigIn = d.bigIn, nil
		d.want, d.wasBig, d.last = 1, true, int(d.head)+d.size
		return msg[:len(msg):len(msg)], true, nil
	}
	p := d.chunk[d.r:d.w]
	d.lacks = 0
	if d.stream > 0 {
		return nil, false, nil
	}
	if d.raw {
		return d.piece(p)
	}
	h, n, err := d.header(p)
	if err != nil || h == 0 {
		return nil, false, err
	}
	// As unsigned 64-bit numbers, before any conversion to int.
	if d.streamOver > 0 && n > d.streamOver {
		d.r += h
		d.stream, d.want = n, 1
		return nil, false, nil
	}
	if n > d.max || n > math.MaxInt-growStep {
		return nil, false, tooLong(n)
	}
	end := h + int(n)
	if end <= len(p) {
		d.r += end
		d.wasBig, d.last = false, end
		if d.sized && end <= readChunk/2 {
			d.copied = true
			return slices.Clip(bytes.Clone(p[h:end])), true, nil // who keeps it does not keep all of the chunk
		}
		return p[h:end:end], true, nil
	}
	d.want, d.lacks = end, end-len(p)
	switch {
	case !d.full() || d.shares(end):
	case len(p) < h+earnest && end > growStep:
		d.want, d.early = h+earnest, true
	default:
		d.early, d.size, d.head = false, int(n), uint8(h)
		d.grow(p[h:])
		d.w, d.want = d.r, 1 // the chunk does not hold it any more
	}
	return nil, false, nil
}

// tooLong is the error of a length that is not taken. Some tell that the peer does not
// speak of lengths: "GET / HT" is one of 6,073,139,484,287,059,271 bytes.
func tooLong(n uint64) error {
	hint := ""
	if n > 1<<40 {
		hint = "; is it another protocol, Framing or Mode?"
	}
	return fmt.Errorf("%w: %d bytes announced%s", ErrMessageTooLarge, n, hint)
}

// piece is next for raw bytes: all of p, once there is more than Unread gave back.
func (d *decoder) piece(p []byte) (msg []byte, ok bool, err error) {
	if len(p) > d.kept {
		d.r, d.want, d.kept, d.wasBig, d.copied = d.w, 1, 0, false, false
		return slices.Clip(p), true, nil
	}
	if uint64(len(p)) >= d.max {
		return nil, false, fmt.Errorf("%w: %d bytes unread", ErrMessageTooLarge, len(p))
	}
	d.lacks = int(min(d.max-uint64(len(p)), math.MaxInt)) // of what may come, as of a message
	d.want = len(p) + 1
	if len(d.chunk)-d.w < len(p)/8 {
		d.want = 2 * len(p) // doubling, however little comes each time
	}
	return nil, false, nil
}

// whole appends to msgs those messages that next would return one by one, from the
// chunk alone and in the default framing, as far as they go. In flight, a message costs
// a third of what it costs by next.
func (d *decoder) whole(msgs [][]byte) [][]byte {
	if !d.ordinary() {
		return msgs
	}
	last, longest := 0, d.longest()
	for p := d.chunk[d.r:d.w]; ; {
		end, ok := front(p, longest)
		if !ok {
			break
		}
		msgs = append(msgs, p[headerSize:end:end])
		d.r += end
		p, last = p[end:], end
	}
	if last > 0 {
		d.passed(last)
	}
	return msgs
}

// ordinary reports whether messages may be taken by front: from the chunk alone, and in
// the default framing.
func (d *decoder) ordinary() bool {
	return d.framing == nil && !d.raw && d.big == nil && d.stream == 0 && !d.sized
}

// longest is the length of the longest message that is no error and no stream.
func (d *decoder) longest() uint64 {
	if d.streamOver > 0 {
		return min(d.max, d.streamOver)
	}
	return d.max
}

// front is where the first message of p ends, if it is there as a whole and not longer
// than longest.
func front(p []byte, longest uint64) (end int, ok bool) {
	if len(p) < headerSize {
		return 0, false
	}
	n := binary.LittleEndian.Uint64(p)
	if n > uint64(len(p)-headerSize) || n > longest {
		return 0, false
	}
	return headerSize + int(n), true
}

// passed notes the last message that was taken by front.
func (d *decoder) passed(end int) { d.wasBig, d.last, d.want, d.lacks = false, end, 1, 0 }

// setRaw switches between frames and raw bytes where the input stands. A message
// that has a buffer of its own is completed first.
func (d *decoder) setRaw(raw bool) {
	d.raw, d.kept, d.want, d.last, d.early = raw, 0, 1, 0, false
}

// unread takes back the end of the raw piece that next returned last.
func (d *decoder) unread(rest []byte) {
	if len(rest) == 0 {
		return
	}
	switch at := d.r - len(rest); {
	case d.chunk == nil:
		d.rest = slices.Concat(rest, d.rest) // it came before, and was withdrawn from Events
	case at >= 0 && &d.chunk[at] == &rest[0]:
		d.r = at
	case at >= 0 && d.sized && d.copied && !d.wasBig: // a message that next has copied, before setRaw
		d.r = at
		copy(d.chunk[at:], rest)
	case d.wasBig && d.r == d.w: // one that had a buffer of its own, likewise
		d.rest = slices.Concat(rest, d.rest)
	default:
		panic(unreadOther)
	}
	if d.raw {
		d.kept = len(rest)
	}
}

const unreadOther = "sockhub: Unread of what is not the end of the message"

// takeBack takes the first n bytes away that are kept between park and move,
// which unread has put there.
func (d *decoder) takeBack(n int) {
	if d.rest = d.rest[n:]; len(d.rest) == 0 {
		d.rest = nil
	}
	d.kept = 0
}

// take moves received bytes of the stream into p. It works between park and
// move too.
func (d *decoder) take(p []byte) (n int) {
	n = copy(p[:min(uint64(len(p)), d.stream)], d.rest)
	if d.rest = d.rest[n:]; len(d.rest) == 0 {
		d.rest = nil
	}
	d.stream -= uint64(n)
	return n
}

// skip drops received bytes of the stream.
func (d *decoder) skip() {
	n := min(uint64(d.w-d.r), d.stream)
	d.r += int(n)
	d.stream -= n
}

// header reads the header at the start of p; h == 0: it is not complete.
func (d *decoder) header(p []byte) (h int, n uint64, err error) {
	if d.framing == nil {
		if len(p) < headerSize {
			d.want = headerSize
			return 0, 0, nil
		}
		return headerSize, binary.LittleEndian.Uint64(p), nil
	}
	longest := d.framing.MaxHeader()
	switch f := d.framing.(type) {
	case lengthPrefix:
		h, n, err = f.Header(p)
	case uvarint:
		h, n, err = f.Header(p)
	default:
		h, n, err = usersHeader(f, p)
	}
	switch {
	case err != nil:
		return 0, 0, err
	case h < 0, h > min(len(p), longest), h == 0 && len(p) >= longest:
		return 0, 0, fmt.Errorf("sockhub: %T found no header in %d bytes", d.framing, len(p))
	case h == 0:
		d.want = longest
	}
	return h, n, nil
}

// usersHeader asks a Framing of the user's. What a peer sends may make it panic,
// which ends this peer's connection alone.
func usersHeader(f Framing, p []byte) (h int, n uint64, err error) {
	returned := false
	defer func() {
		if !returned {
			err = &PanicError{Value: recover(), Stack: debug.Stack()}
		}
	}()
	h, n, err = f.Header(p)
	returned = true
	return h, n, err
}

// unseen is how many whole messages were received, and not cut.
func (d *decoder) unseen() (n uint64) {
	p := d.rest
	if d.chunk != nil {
		p = d.chunk[d.r:d.w]
	}
	switch {
	case d.stream > 0:
		return 0
	case d.big != nil && len(d.big) == d.size:
		n++
	}
	for {
		h, size, err := d.header(p)
		if err != nil || h == 0 || size > uint64(len(p)-h) {
			return n
		}
		n++
		p = p[h+int(size):]
	}
}

// partial is the number of bytes received of an unfinished message, its header
// included.
func (d *decoder) partial() int {
	n := len(d.rest) + d.w - d.r
	if d.big != nil {
		n += int(d.head) + len(d.big)
	}
	return n
}

// within reports whether a message has begun and not ended.
func (d *decoder) within() bool { return d.stream > 0 || d.partial() > 0 }
