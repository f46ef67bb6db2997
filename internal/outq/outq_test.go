package outq

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
)

// header8 is Default, which the queue does not know.
var header8 = &Framing{binary.LittleEndian.AppendUint64}

func body(r *rand.Rand) []byte {
	n := r.IntN(40)
	switch r.IntN(8) {
	case 0:
		n = 0
	case 1:
		n = Inline - 2 + r.IntN(5)
	case 2:
		n = r.IntN(largeBlock)
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// A queue under random operations is compared with plain slices of messages.
func TestQueueAgreesWithPlainSlices(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		framing := []*Framing{header8, Default, Default, nil}[seed%4]
		var (
			q, side     Queue
			w           Writing
			queued      [][]byte // in q
			taken       [][]byte // in w
			gathered    [][]byte // in side
			in          int      // bytes written of taken[0]
			sent, wrote bytes.Buffer
		)
		frame := func(b []byte) []byte {
			if framing == nil {
				return b
			}
			return append(framing.Append(nil, uint64(len(b))), b...)
		}
		for range 200 {
			switch r.IntN(8) {
			case 0, 1, 2:
				b := body(r)
				q.Append(framing, b)
				queued = append(queued, b)
			case 3:
				b := body(r)
				var parts [][]byte
				for rest := b; ; {
					k := r.IntN(len(rest) + 1)
					parts = append(parts, rest[:k])
					if rest = rest[k:]; len(rest) == 0 {
						break
					}
				}
				side.AppendParts(framing, parts, len(b))
				gathered = append(gathered, b)
			case 4:
				if r.IntN(2) == 0 {
					q.Splice(&side)
				} else {
					q.Absorb(&side)
				}
				queued, gathered = append(queued, gathered...), nil
			case 5:
				if !q.Empty() {
					if got := q.DropFirst(); got != len(queued[0]) {
						t.Fatalf("seed %d: dropped a message of %d bytes, want %d", seed, got, len(queued[0]))
					}
					queued = queued[1:]
				}
			case 6:
				w.Take(&q)
				taken, queued = append(taken, queued...), nil
			case 7:
				v := w.Vec(make([][]byte, 0, 2+r.IntN(6)), 1+r.IntN(1<<17))
				total := 0
				for _, s := range v {
					total += len(s)
				}
				n := r.IntN(total + 1)
				flat := slices.Concat(v...)
				sent.Write(flat[:n])
				msgs, size := w.Wrote(n)
				var wantMsgs int
				var wantSize int64
				for in += n; len(taken) > 0 && in >= len(frame(taken[0])); taken = taken[1:] {
					in -= len(frame(taken[0]))
					wrote.Write(frame(taken[0]))
					wantMsgs++
					wantSize += int64(len(taken[0]))
				}
				// An empty raw message has no bytes: it goes with its neighbour.
				if framing != nil && (msgs != wantMsgs || size != wantSize) {
					t.Fatalf("seed %d: wrote %d messages of %d bytes, want %d of %d", seed, msgs, size, wantMsgs, wantSize)
				}
				if framing == nil {
					taken = taken[len(taken)-w.Len():]
				}
			}
			if q.Len() != len(queued) || w.Len() != len(taken) {
				t.Fatalf("seed %d: %d queued, %d being written; want %d, %d", seed, q.Len(), w.Len(), len(queued), len(taken))
			}
			var size int64
			for _, b := range queued {
				size += int64(len(b))
			}
			if q.Bytes() != size || q.Charge() != size+int64(len(queued))*Overhead {
				t.Fatalf("seed %d: %d bytes queued, charge %d; want %d bytes", seed, q.Bytes(), q.Charge(), size)
			}
		}
		if got := slices.Collect(q.Bodies()); !slices.EqualFunc(got, queued, bytes.Equal) {
			t.Fatalf("seed %d: the bodies queued differ", seed)
		}
		rest := taken
		if cut, n, ok := w.Cut(); ok {
			if !bytes.Equal(cut, taken[0]) || framing != nil && n != max(0, in-8) {
				t.Fatalf("seed %d: cut %d bytes after %d, want %d after %d", seed, len(cut), n, len(taken[0]), in-8)
			}
			rest = taken[1:]
		} else if in != 0 {
			t.Fatalf("seed %d: %d bytes of a message written, but none is cut", seed, in)
		}
		if got := slices.Collect(w.Unwritten()); !slices.EqualFunc(got, rest, bytes.Equal) {
			t.Fatalf("seed %d: the bodies unwritten differ", seed)
		}
		if framing != nil {
			if in > 0 {
				wrote.Write(frame(taken[0])[:in])
			}
			if !bytes.Equal(sent.Bytes(), wrote.Bytes()) {
				t.Fatalf("seed %d: the bytes on the wire differ", seed)
			}
		}
	}
}

// 1,000 messages of 9 bytes are few slices of one write.
// A message that is skipped is not told of, however much of it was written.
func TestSkippedMessageIsForgotten(t *testing.T) {
	for _, size := range []int{2, Inline + 1} {
		for _, n := range []int{0, 1, 8, 9, 8 + size - 1} {
			var (
				q Queue
				w Writing
			)
			q.Append(header8, make([]byte, size))
			q.Append(header8, []byte("next"))
			w.Take(&q)
			w.Wrote(n)
			w.Skip()
			if _, _, cut := w.Cut(); cut || w.Len() != 1 || w.Bytes() != 4 || w.Charge() != 4+Overhead {
				t.Errorf("%d of %d bytes: cut %v; %d messages of %d bytes are left", n, size, cut, w.Len(), w.Bytes())
			}
			if left := slices.Collect(w.Unwritten()); len(left) != 1 || string(left[0]) != "next" {
				t.Errorf("%d of %d bytes: %q is left", n, size, left)
			}
			if wire := slices.Concat(w.Vec(make([][]byte, 0, 4), 100)...); string(wire[8:]) != "next" {
				t.Errorf("%d of %d bytes: %q is written next", n, size, wire)
			}
			if w.Skip(); !w.Empty() {
				t.Errorf("%d of %d bytes: not empty", n, size)
			}
		}
	}
}

func TestSmallMessagesShareSlices(t *testing.T) {
	var q Queue
	var w Writing
	for range 1000 {
		q.Append(header8, []byte("some data"))
	}
	w.Take(&q)
	if v := w.Vec(make([][]byte, 0, 64), 1<<20); len(v) > 2 {
		t.Errorf("%d slices, want at most 2", len(v))
	}
}

func BenchmarkAppendAndWrite(b *testing.B) {
	for _, size := range []int{9, 64, 512, 4096} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			msg, v := make([]byte, size), make([][]byte, 0, 64)
			var q Queue
			var w Writing
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				q.Append(header8, msg)
				if i%64 == 63 {
					for w.Take(&q); !w.Empty(); {
						n := 0
						for _, s := range w.Vec(v, 1<<20) {
							n += len(s)
						}
						w.Wrote(n)
					}
				}
			}
		})
	}
}

// Two goroutines, the writer of a Slab and the owner of the queue, agree on what
// was added and in which order.
func TestSlabIsTakenWhileItIsWritten(t *testing.T) {
	const n = 20000
	var (
		mu   sync.Mutex
		q    Queue
		s    Slab
		got  []string
		done = make(chan struct{})
	)
	drain := func(take func(*Queue, *Slab) (int, int64)) {
		if s.Waiting() {
			take(&q, &s)
		}
		for b := range q.Bodies() {
			got = append(got, string(b))
		}
		for !q.Empty() {
			q.DropFirst()
		}
	}
	go func() {
		defer close(done)
		for more := true; more; runtime.Gosched() {
			mu.Lock()
			drain((*Queue).Take)
			more = len(got) < n
			mu.Unlock()
		}
	}()
	for i := range n {
		body := []byte(strconv.Itoa(i))
		for !s.Add(header8, body) && !s.AddDefault(body) {
			mu.Lock()
			drain((*Queue).TakeWhole)
			s.Reset(1 << 30)
			mu.Unlock()
		}
		s.Publish()
	}
	<-done
	for i, m := range got {
		if m != strconv.Itoa(i) {
			t.Fatalf("%d is %s", i, m)
		}
	}
}

func TestSlabHoldsOnlyWhatIsWorthIt(t *testing.T) {
	var s Slab
	if s.Add(header8, nil) || s.AddDefault(nil) {
		t.Error("taken before Reset")
	}
	s.Reset(1 << 30)
	if s.Add(header8, make([]byte, Inline)) {
		t.Error("a large message")
	}
	n := 0
	for s.Add(header8, make([]byte, 100)) {
		n++
	}
	if s.Waiting() || n != slabBytes/108 && n != slabBytes/108-1 {
		t.Error(n, s.Waiting())
	}
	s.Publish()
	new(Queue).Take(&s)
	s.Reset(1 << 30)
	for n = 0; s.Add(nil, nil); n++ {
	}
	if n != slabMsgs {
		t.Error(n)
	}
	var q Queue
	s.Publish()
	if msgs, bytes := q.Take(&s); msgs != n || bytes != 0 || q.Len() != n || s.Waiting() {
		t.Error(msgs, bytes)
	}
}

// TakeWhole gives the slab's memory away, if that is worth it, and the slab writes
// no more in it.
// What was taken before is not taken again with the rest, though the queue is empty by then.
func TestRestOfASlabIsTakenOnce(t *testing.T) {
	var (
		s Slab
		q Queue
		w Writing
	)
	s.Reset(1 << 30)
	add := func(n int) {
		for range n {
			if !s.AddDefault(make([]byte, 90)) {
				t.Fatal("no room")
			}
		}
		s.Publish()
	}
	add(10)
	q.Take(&s)
	w.Take(&q)
	add(100)
	if n, _ := q.TakeWhole(&s); n != 100 || q.Len() != 100 {
		t.Errorf("%d were taken, and %d are there", n, q.Len())
	}
}

func TestSlabIsTakenWhole(t *testing.T) {
	bodies := func(q *Queue) (all []string) {
		for b := range q.Bodies() {
			all = append(all, string(b))
		}
		return all
	}
	for _, n := range []int{1, 30, 100, 500} {
		var (
			s    Slab
			q    Queue
			want []string
		)
		fill := func(round string) {
			s.Reset(1 << 30)
			for i := range n {
				m := fmt.Sprintf("%s %-90d", round, i)
				if !s.AddDefault([]byte(m)) {
					t.Fatalf("no room for message %d", i)
				}
				want = append(want, m)
			}
		}
		fill("first")
		s.Publish()
		memory := &s.buf[0]
		if msgs, bytes := q.TakeWhole(&s); msgs != n || bytes != q.Bytes() || q.Len() != n || s.Waiting() {
			t.Errorf("%d messages of %d bytes, the queue has %d of %d", msgs, bytes, q.Len(), q.Bytes())
		}
		if given := &q.head.buf[0] == memory; given != (n*106 > smallBlock) {
			t.Errorf("of %d messages the memory was given: %v", n, given)
		} else if given && s.AddDefault(nil) {
			t.Error("added to memory that is the queue's")
		}
		fill("second")
		s.Publish()
		q.TakeWhole(&s) // is behind the first
		if got := bodies(&q); !slices.Equal(got, want) {
			t.Errorf("%d messages: %q, want %q", n, got, want)
		}
		if q.head.wire != int64(8*len(q.head.msgs))+q.head.bytes {
			t.Error("the block's bytes do not add up")
		}

		q, want = Queue{}, nil
		fill("third")
		s.Publish()
		s.AddDefault([]byte("not published"))
		if q.TakeWhole(&s); !slices.Equal(bodies(&q), want) {
			t.Error("what was not published was taken")
		}
	}
}

// A Framing may return other memory than it was given. That is no block's that
// others get.
func TestFramingWithMemoryOfItsOwn(t *testing.T) {
	odd := &Framing{func(dst []byte, n uint64) []byte {
		return binary.LittleEndian.AppendUint64(slices.Clip(slices.Clone(dst)), n)
	}}
	for range 10 {
		var (
			q Queue
			w Writing
			s Slab
		)
		for range 3 * largeBlock / Inline {
			q.Append(odd, make([]byte, Inline))
		}
		w.Take(&q)
		for _, p := range w.Vec(make([][]byte, 0, 1000), 1<<30) {
			w.Wrote(len(p))
		}
		if !w.Empty() {
			t.Fatal("not all was written")
		}
		for s.Reset(1 << 30); s.AddDefault(make([]byte, 100)); {
		}
		if s.bytes < slabBytes-108 {
			t.Fatalf("room for %d bytes", s.bytes)
		}
	}
}
