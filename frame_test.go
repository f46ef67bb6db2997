package sockhub

// The decoder, and the headers on the wire; framing_test.go has whole connections.

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/sockhub/sockhub/internal/chunk"
)

// framings are those of the package.
var framings = []struct {
	name string
	f    Framing
}{
	{"default", nil},
	{"1", LengthPrefix(1, binary.LittleEndian)},
	{"2 little", LengthPrefix(2, binary.LittleEndian)},
	{"2 big", LengthPrefix(2, binary.BigEndian)},
	{"4 little", LengthPrefix(4, binary.LittleEndian)},
	{"4 big", LengthPrefix(4, binary.BigEndian)},
	{"8 little", LengthPrefix(8, binary.LittleEndian)},
	{"8 big", LengthPrefix(8, binary.BigEndian)},
	{"uvarint", Uvarint()},
}

// appendHeader is the framing's, which nil stands for too.
func appendHeader(f Framing, dst []byte, n uint64) []byte {
	if f == nil {
		return binary.LittleEndian.AppendUint64(dst, n)
	}
	return f.AppendHeader(dst, n)
}

// decoded is what a decoder made of its input.
type decoded struct {
	Msgs    [][]byte
	Streams []uint64 // sizes of the messages that were streams, and skipped
	Err     string
	Left    int // bytes of an unfinished message
}

// way is one in which a decoder gets its input.
type way struct {
	name          string
	sizes, chunks func() int  // how long the pieces are, and the chunks
	park          func() bool // it is parked after a piece
	borrow        bool
	many          func() bool // decoder.whole is asked before decoder.next
}

// memory is what decode works in, again and again: a fuzzer has no time to
// clear new memory for each input.
type memory struct {
	chunks [2][chunk.Size]byte
	turn   int
	msgs   []byte
}

var memories = sync.Pool{New: func() any { return new(memory) }}

// move gives d a chunk of n bytes, and spoils what d used of the one before.
func (m *memory) move(d *decoder, n int) {
	m.turn ^= 1
	p := m.chunks[m.turn][:]
	if n > len(p) {
		p = make([]byte, n)
	}
	before := d.chunk[:d.w]
	d.move(p[:n:n])
	clear(before)
}

// decode feeds a decoder as a reader does: into chunks of its own, next after
// each piece, parked now and then. Its messages are good until m is used again.
func decode(t testing.TB, m *memory, f Framing, limit, over uint64, input []byte, w way) (r decoded) {
	d := decoder{framing: f, max: limit, streamOver: over, borrow: w.borrow}
	defer d.drop()
	streaming := false
	bounds := func(received int) {
		// What it holds follows from what came, whatever was announced.
		if held := cap(d.big) + len(d.rest); held > 2*received+growStep {
			t.Fatalf("%d bytes are held after %d were received", held, received)
		}
	}
	move := func() { m.move(&d, max(w.chunks(), d.need())) }
	move()
	m.msgs = slices.Grow(m.msgs[:0], len(input)) // never moves
	for at := 0; ; {
		for {
			if w.many() {
				for _, msg := range d.whole(nil) {
					if cap(msg) != len(msg) {
						t.Fatalf("a message of %d bytes has a capacity of %d", len(msg), cap(msg))
					}
					m.msgs = append(m.msgs, msg...)
					r.Msgs = append(r.Msgs, m.msgs[len(m.msgs)-len(msg):])
				}
			}
			msg, ok, err := d.next()
			if err != nil {
				r.Err, r.Left = err.Error(), d.partial()
				return r
			}
			if !ok && d.stream > 0 {
				if !streaming {
					r.Streams, streaming = append(r.Streams, d.stream), true
				}
				if d.skip(); d.stream == 0 {
					streaming = false
					continue
				}
			}
			if !ok {
				break
			}
			if cap(msg) != len(msg) {
				t.Fatalf("a message of %d bytes has a capacity of %d", len(msg), cap(msg))
			}
			m.msgs = append(m.msgs, msg...)
			r.Msgs = append(r.Msgs, m.msgs[len(m.msgs)-len(msg):])
			if d.own != nil {
				d.own.Release()
				d.own = nil
			}
		}
		bounds(at)
		if at == len(input) {
			r.Left = d.partial()
			return r
		}
		if w.park() {
			d.park()
			bounds(at)
			move()
		} else if d.full() {
			move()
		}
		space := d.space()
		if len(space) == 0 {
			t.Fatal("no space")
		}
		n := copy(space[:min(len(space), max(1, w.sizes()))], input[at:])
		d.advance(n)
		at += n
		bounds(at)
	}
}

// plainly decodes input as its definition says.
func plainly(f Framing, limit, over uint64, input []byte) (r decoded) {
	if f == nil {
		f = LengthPrefix(8, binary.LittleEndian)
	}
	for {
		h, n, err := f.Header(input)
		if err != nil {
			r.Err, r.Left = err.Error(), len(input)
			return r
		}
		if h > 0 && over > 0 && n > over {
			r.Streams = append(r.Streams, n)
			input = input[h+int(min(n, uint64(len(input)-h))):]
			if len(input) == 0 {
				return r
			}
			continue
		}
		if h > 0 && (n > limit || n > math.MaxInt-growStep) {
			r.Err, r.Left = tooLong(n).Error(), len(input)
			return r
		}
		if h == 0 || uint64(len(input)-h) < n {
			r.Left = len(input)
			return r
		}
		r.Msgs = append(r.Msgs, input[h:h+int(n)])
		input = input[h+int(n):]
	}
}

// noStreams is a decoder.streamOver that makes no message a stream.
const noStreams = 0

func always(n int) func() int { return func() int { return n } }
func never() bool             { return false }

// checkCuts decodes input whole and cut in several ways.
func checkCuts(t testing.TB, f Framing, limit, over uint64, input []byte, seed uint64) {
	t.Helper()
	want := plainly(f, limit, over, input)
	rnd := rand.New(rand.NewPCG(seed, 1))
	random := func() int {
		if rnd.IntN(3) == 0 {
			return rnd.IntN(9)
		}
		return rnd.IntN(5000)
	}
	flip := func() bool { return rnd.IntN(2) == 0 }
	ways := []way{
		{"whole", always(1 << 30), always(readChunk), never, false, never},
		{"whole, borrowed", always(1 << 30), always(chunk.Size), never, true, flip},
		{"whole in small chunks", always(1 << 30), always(minChunk), never, false, flip},
		{"random cuts", random, always(readChunk), flip, false, never},
		{"random cuts, borrowed", random, always(chunk.Size), flip, true, flip},
		{"whole in large chunks", always(1 << 30), always(maxSized), never, false, flip},
		{"random cuts and chunks", random, func() int { return rnd.IntN(2 * readChunk) }, func() bool { return rnd.IntN(4) == 0 }, false, flip},
	}
	if len(input) < 300 {
		ways = append(ways,
			way{"byte by byte", always(1), always(minChunk), func() bool { return true }, false, flip},
			way{"byte by byte without parking", always(1), always(readChunk), never, false, flip})
	}
	m := memories.Get().(*memory)
	defer memories.Put(m)
	for _, way := range ways {
		got := decode(t, m, f, limit, over, input, way)
		if got.Left != want.Left && want.Err == "" {
			t.Errorf("%s: %d bytes are left, want %d", way.name, got.Left, want.Left)
		}
		if !slices.Equal(got.Streams, want.Streams) {
			t.Errorf("%s: streams of %d bytes, want %d", way.name, got.Streams, want.Streams)
		}
		if got.Err != want.Err {
			t.Errorf("%s: error %q, want %q", way.name, got.Err, want.Err)
		}
		// cmp.Diff would take minutes.
		if !slices.EqualFunc(got.Msgs, want.Msgs, bytes.Equal) {
			t.Errorf("%s: %d messages, want %d, or they differ", way.name, len(got.Msgs), len(want.Msgs))
		}
	}
}

// FuzzDecoder holds the decoder to this: however the input is cut, the same
// messages come out and the same error, and memory follows what was received.
func FuzzDecoder(f *testing.F) {
	for i, fr := range framings {
		var in []byte
		for _, n := range []int{0, 1, 100, 0} {
			in = append(appendHeader(fr.f, in, uint64(n)), bytes.Repeat([]byte{'x'}, n)...)
		}
		f.Add(byte(i), uint32(1000), uint32(noStreams), uint64(i), in)
		f.Add(byte(i), uint32(99), uint32(noStreams), uint64(i), in)
		f.Add(byte(i), uint32(99), uint32(50), uint64(i), append(in, in...))
		f.Add(byte(i), uint32(math.MaxUint32), uint32(noStreams), uint64(i), append(in, bytes.Repeat([]byte{0xff}, 11)...))
	}
	f.Add(byte(0), uint32(64<<20), uint32(noStreams), uint64(3), append(binary.LittleEndian.AppendUint64(nil, 60<<20), make([]byte, 300)...))
	f.Fuzz(func(t *testing.T, framing byte, limit, over uint32, seed uint64, input []byte) {
		input = input[:min(len(input), 4<<10)] // of longer ones too few could be tried
		checkCuts(t, framings[int(framing)%len(framings)].f, uint64(limit), uint64(over), input, seed)
	})
}

func TestCutsDoNotMatter(t *testing.T) {
	for _, fr := range framings {
		t.Run(fr.name, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(5, 5))
			for seed := range uint64(20) {
				var in []byte
				for range rnd.IntN(30) {
					n := rnd.IntN(30)
					switch rnd.IntN(6) {
					case 0:
						n = rnd.IntN(3 * readChunk)
					case 1:
						n = readChunk - 20 + rnd.IntN(40)
					case 2:
						n = readChunk/2 - 20 + rnd.IntN(40)
					}
					if !expressible(fr.f, uint64(n)) {
						n %= 256
					}
					in = appendHeader(fr.f, in, uint64(n))
					for i := range n {
						in = append(in, byte(i*7+n))
					}
				}
				checkCuts(t, fr.f, 1<<20, noStreams, in[:len(in)-rnd.IntN(1+len(in)/4)], seed)
			}
		})
	}
}

func TestCutsOfALargeMessageDoNotMatter(t *testing.T) {
	body := make([]byte, 9<<20)
	for i := range body {
		body[i] = byte(i * 31)
	}
	in := append(binary.LittleEndian.AppendUint64(nil, uint64(len(body))), body...)
	in = append(in, binary.LittleEndian.AppendUint64(nil, 0)...)
	checkCuts(t, nil, uint64(len(body)), noStreams, in, 9)
	checkCuts(t, nil, 0, uint64(len(body)-1), in, 9)
}

// What is received last lies where the message has it: it was not copied.
func TestLargeMessageIsReceivedInPlace(t *testing.T) {
	const size = 1 << 20
	d := decoder{max: size}
	d.move(make([]byte, minChunk))
	d.advance(copy(d.space(), appendHeader(nil, nil, size)))
	for {
		d.next()
		last := d.space()
		d.advance(len(last))
		if d.partial() < headerSize+size {
			continue
		}
		msg, ok, err := d.next()
		if !ok || err != nil || len(msg) != size {
			t.Fatalf("%d bytes, %v, %v", len(msg), ok, err)
		}
		if &msg[size-1] != &last[len(last)-1] {
			t.Error("the message is a copy")
		}
		return
	}
}

func TestHeadersOnTheWire(t *testing.T) {
	tests := []struct {
		framing string
		n       uint64
		want    []byte
	}{
		{"default", 0, []byte{0, 0, 0, 0, 0, 0, 0, 0}},
		{"default", 0x0102030405060708, []byte{8, 7, 6, 5, 4, 3, 2, 1}},
		{"8 little", 1, []byte{1, 0, 0, 0, 0, 0, 0, 0}},
		{"8 big", 0x0102030405060708, []byte{1, 2, 3, 4, 5, 6, 7, 8}},
		{"8 big", math.MaxUint64, bytes.Repeat([]byte{255}, 8)},
		{"4 little", 0x01020304, []byte{4, 3, 2, 1}},
		{"4 big", math.MaxUint32, []byte{255, 255, 255, 255}},
		{"2 little", 0x0102, []byte{2, 1}},
		{"2 big", 0x0102, []byte{1, 2}},
		{"1", 255, []byte{255}},
		{"uvarint", 0, []byte{0}},
		{"uvarint", 127, []byte{127}},
		{"uvarint", 128, []byte{128, 1}},
		{"uvarint", 300, []byte{0xac, 2}},
		{"uvarint", math.MaxUint64, []byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 1}},
	}
	for _, tt := range tests {
		f := framingNamed(tt.framing)
		if got := appendHeader(f, []byte("x"), tt.n); !bytes.Equal(got, append([]byte("x"), tt.want...)) {
			t.Errorf("%s: header of %d is % x, want % x", tt.framing, tt.n, got[1:], tt.want)
		}
		if f == nil {
			continue
		}
		if h, n, err := f.Header(append(bytes.Clone(tt.want), 9, 9)); h != len(tt.want) || n != tt.n || err != nil {
			t.Errorf("%s: Header(% x) = %d, %d, %v", tt.framing, tt.want, h, n, err)
		}
		for i := range tt.want {
			if h, _, err := f.Header(tt.want[:i]); h != 0 || err != nil {
				t.Errorf("%s: Header(% x) = %d, %v, want to be asked again", tt.framing, tt.want[:i], h, err)
			}
		}
		if len(tt.want) > f.MaxHeader() {
			t.Errorf("%s: MaxHeader is %d", tt.framing, f.MaxHeader())
		}
	}
}

func framingNamed(name string) Framing {
	for _, fr := range framings {
		if fr.name == name {
			return fr.f
		}
	}
	panic(name)
}

func TestLengthsThatDoNotFit(t *testing.T) {
	for _, tt := range []struct {
		framing string
		n       uint64
	}{{"1", 256}, {"2 big", 1 << 16}, {"4 little", 1 << 32}} {
		f := framingNamed(tt.framing)
		if expressible(f, tt.n) || !expressible(f, tt.n-1) {
			t.Errorf("%s: expressible is wrong around %d", tt.framing, tt.n)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: AppendHeader(%d) does not panic", tt.framing, tt.n)
				}
			}()
			f.AppendHeader(nil, tt.n)
		}()
	}
	for _, size := range []int{-1, 0, 3, 5, 16} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("LengthPrefix(%d) does not panic", size)
				}
			}()
			LengthPrefix(size, binary.LittleEndian)
		}()
	}
}

func TestTooLongIsRefusedBeforeAnythingIsAllocated(t *testing.T) {
	none := uint64(math.MaxUint64) // no limit
	tests := []struct {
		framing string
		limit   uint64
		n       uint64
		refused bool
	}{
		{"default", 100, 100, false},
		{"default", 100, 101, true},
		{"default", 0, 1, true},
		{"default", 0, 0, false},
		{"default", none, 1 << 63, true},
		{"default", none, math.MaxUint64, true},
		{"default", none, math.MaxInt64, true}, // on any system: header and growth come on top
		{"default", math.MaxInt, math.MaxInt, true},
		{"default", none, 1<<32 - 1, math.MaxInt == math.MaxInt32},
		{"default", none, 1 << 31, math.MaxInt == math.MaxInt32},
		{"8 big", none, 1 << 63, true},
		{"8 big", 1 << 20, 1<<20 + 1, true},
		{"4 big", 1 << 20, math.MaxUint32, true},
		{"2 little", 1 << 10, 1<<10 + 1, true},
		{"1", 254, 255, true},
		{"uvarint", none, 1 << 63, true},
		{"uvarint", 1000, 1001, true},
	}
	for _, tt := range tests {
		f := framingNamed(tt.framing)
		in := append(appendHeader(f, nil, tt.n), "begin"...)
		d := decoder{framing: f, max: tt.limit, streamOver: noStreams}
		d.move(make([]byte, readChunk))
		d.advance(copy(d.space(), in))
		_, _, err := d.next()
		if errors.Is(err, ErrMessageTooLarge) != tt.refused {
			t.Errorf("%s: %d bytes of at most %d: %v, want refused: %v", tt.framing, tt.n, tt.limit, err, tt.refused)
		}
		if cap(d.big) > 2*len(in)+growStep {
			t.Errorf("%s: %d bytes allocated for %d received", tt.framing, cap(d.big), len(in))
		}
	}
}

// A peer can announce a large message on each of many connections, and then send
// nothing, or little.
func TestAnnouncedMessageCostsNothingBeforeItComes(t *testing.T) {
	for _, borrow := range []bool{false, true} {
		d := decoder{max: 64 << 20, streamOver: noStreams, borrow: borrow}
		d.move(make([]byte, readChunk))
		d.advance(copy(d.space(), appendHeader(nil, nil, 60<<20)))
		body := 0
		for ; body < earnest; body++ {
			if _, ok, err := d.next(); ok || err != nil || d.big != nil || d.full() || !d.little() {
				t.Fatalf("after %d bytes of the body: %v, %v, %d bytes allocated", body, ok, err, cap(d.big))
			}
			if body%2 == 0 { // as a reader does between turns
				d.park()
				d.move(make([]byte, d.need()))
			}
			d.advance(copy(d.space(), "x"))
		}
		if _, ok, err := d.next(); ok || err != nil || len(d.big) != earnest || d.little() {
			t.Errorf("after %d bytes of the body: %v, %v, %d bytes in a buffer", body, ok, err, len(d.big))
		}
	}
}

// Half of what an int may be is received of nearly all.
func TestRoomForAHugeMessage(t *testing.T) {
	for size := range 3 {
		size = math.MaxInt - growStep - size
		for received := math.MaxInt/2 - growStep; received <= math.MaxInt/2+1; received += growStep / 4 {
			want := size
			if twice := 2*uint64(received) + growStep; twice < uint64(size) {
				want = int(twice)
			}
			d := decoder{size: size}
			if n := d.room(received); n != want {
				t.Errorf("%d of %d bytes received: room for %d, want %d", received, size, n, want)
			}
		}
	}
}

func TestNoVarintIsAnError(t *testing.T) {
	for _, in := range [][]byte{bytes.Repeat([]byte{0x80}, 10), append(bytes.Repeat([]byte{0xff}, 9), 2), bytes.Repeat([]byte{0xff}, 20)} {
		if _, _, err := Uvarint().Header(in); err == nil {
			t.Errorf("Header(% x) finds a length", in)
		}
		checkCuts(t, Uvarint(), 1<<20, noStreams, append([]byte{3, 'a', 'b', 'c'}, in...), 1)
	}
}

// odd is a framing of a user's that breaks its contract in several ways.
type odd struct{ size, longest int }

func (o odd) MaxHeader() int                           { return o.longest }
func (o odd) AppendHeader(dst []byte, n uint64) []byte { return dst }
func (o odd) Header(p []byte) (int, uint64, error)     { return o.size, 1, nil }

func TestFramingThatBreaksItsContractEndsTheStream(t *testing.T) {
	for _, f := range []odd{{-1, 4}, {5, 4}, {3, 2}, {1 << 30, 4}, {0, 4}, {math.MinInt, 1}} {
		d := decoder{framing: f, max: 1000, streamOver: noStreams}
		d.move(make([]byte, minChunk))
		d.advance(copy(d.space(), "four"))
		if _, ok, err := d.next(); ok || err == nil {
			t.Errorf("%+v: %v, %v; want an error", f, ok, err)
		}
	}
}

// What it costs to take a message out of what was received.
func BenchmarkDecode(b *testing.B) {
	for _, f := range framings {
		if f.name != "default" && f.name != "4 big" && f.name != "uvarint" {
			continue
		}
		for _, size := range []int{9, 64, 512} {
			b.Run(fmt.Sprintf("%s/%dB", f.name, size), func(b *testing.B) {
				one := append(appendHeader(f.f, nil, uint64(size)), make([]byte, size)...)
				in := bytes.Repeat(one, chunk.Size/len(one))
				d := decoder{framing: plainFraming(f.f), max: 1 << 20, borrow: true}
				mem := make([]byte, chunk.Size)
				b.ReportAllocs()
				left := 0
				for b.Loop() {
					if left == 0 {
						d.move(mem)
						d.advance(copy(d.space(), in))
						left = len(in) / len(one)
					}
					if msg, ok, err := d.next(); len(msg) != size || !ok || err != nil {
						b.Fatal(len(msg), ok, err)
					}
					left--
				}
			})
		}
	}
}
