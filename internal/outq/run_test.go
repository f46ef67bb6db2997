package outq

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/sockhub/sockhub/internal/chunk"
)

// Many queues that take a run at different times, among messages of their own, have
// each what there was of it; and what becomes of one queue changes no other.
func TestRunIsTheSameForManyQueues(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 2))
		var (
			run   Run
			added [][]byte
		)
		type taker struct {
			q    Queue
			want [][]byte
		}
		takers := make([]taker, 1+r.IntN(8))
		add := func() {
			b := fmt.Appendf(nil, "%d:%d", seed, len(added))
			switch r.IntN(6) {
			case 0:
				b = nil
			case 1:
				b = append(b, make([]byte, 500)...)
			}
			run.Add(slices.Clone(b))
			added = append(added, b)
		}
		if seed%4 == 0 { // as long as a block's memory exactly
			for range 8 {
				added = append(added, make([]byte, smallBlock/8-defaultSize))
				run.Add(added[len(added)-1])
			}
		}
		for range 60 {
			k := &takers[r.IntN(len(takers))]
			switch r.IntN(5) {
			case 0:
				add()
			case 1:
				before, bytes := k.q.Len(), k.q.Bytes()
				k.q.AppendRun(&run)
				k.want = append(k.want, added...)
				if k.q.Len()-before != run.Len() || k.q.Bytes()-bytes != run.Bytes() || run.Len() != len(added) {
					t.Fatalf("a queue has grown by %d messages, %d bytes; the run has %d, %d", k.q.Len()-before, k.q.Bytes()-bytes, run.Len(), run.Bytes())
				}
			case 2:
				b := bytes.Repeat([]byte{0xff}, r.IntN(100))
				k.q.Append(Default, b)
				k.want = append(k.want, b)
			case 3:
				if !k.q.Empty() {
					if n := k.q.DropFirst(); n != len(k.want[0]) {
						t.Fatalf("dropped %d bytes of %d", n, len(k.want[0]))
					}
					k.want = k.want[1:]
				}
			case 4:
				var w Writing
				var wire []byte
				for w.Take(&k.q); !w.Empty(); {
					for _, s := range w.Vec(make([][]byte, 0, 3), 1000) {
						wire = append(wire, s...)
						w.Wrote(len(s))
					}
				}
				var want []byte
				for _, b := range k.want {
					want = append(binary.LittleEndian.AppendUint64(want, uint64(len(b))), b...)
				}
				if !bytes.Equal(wire, want) {
					t.Fatalf("seed %d: wrote %q, want %q", seed, wire, want)
				}
				k.want = nil
			}
		}
		for _, k := range takers {
			if !slices.EqualFunc(slices.Collect(k.q.Bodies()), k.want, bytes.Equal) {
				t.Fatalf("seed %d: %q is queued, want %q", seed, slices.Collect(k.q.Bodies()), k.want)
			}
		}
	}
}

// A body is not cut for a few bytes, which would be a write of their own.
func TestBodyIsNotCutForAFewBytes(t *testing.T) {
	const limit = 1 << 20
	for _, c := range []struct{ size, first int }{
		{limit - defaultSize, limit},
		{limit, limit + defaultSize},
		{limit + limit/16 - defaultSize, limit + limit/16},
		{limit + limit/16, limit},
		{3 * limit, limit},
	} {
		var w Writing
		var q Queue
		q.Append(Default, make([]byte, c.size))
		w.Take(&q)
		n := 0
		for _, s := range w.Vec(make([][]byte, 0, 8), limit) {
			n += len(s)
		}
		if n != c.first {
			t.Errorf("%d bytes: the first write has %d, want %d", c.size, n, c.first)
		}
	}
}

// What a queue refers to behind a run is let go of when it has left.
func TestBodiesBehindARunAreLetGo(t *testing.T) {
	var (
		run  Run
		q, p Queue
		w    Writing
	)
	run.Add([]byte("run"))
	q.AppendRun(&run)
	c := chunk.Get(1)
	defer c.Release()
	p.AppendBorrowed(nil, c.Mem()) // raw, so that nothing has to be copied
	q.Absorb(&p)
	w.Take(&q)
	w.Wrote(int(w.Bytes()) + defaultSize)
	if !w.Empty() || !c.Alone() {
		t.Errorf("empty %v, let go of %v", w.Empty(), c.Alone())
	}
}

// What is left of a run that was cut off is its owner's alone.
func TestWhatIsLeftOfARunIsNobodyElses(t *testing.T) {
	var (
		run Run
		ws  [2]Writing
	)
	run.Add([]byte("message"))
	for i := range ws {
		var q Queue
		q.AppendRun(&run)
		ws[i].Take(&q)
		ws[i].Own()
	}
	for b := range ws[0].Unwritten() {
		copy(b, "changed")
	}
	for b := range ws[1].Unwritten() {
		if string(b) != "message" {
			t.Errorf("%q", b)
		}
	}
}

// The block that Absorb leaves to a queue is not in the way of what comes by others.
func TestDropFirstAfterAbsorb(t *testing.T) {
	for name, appends := range map[string]func(q *Queue){
		"AppendRun": func(q *Queue) {
			var run Run
			run.Add([]byte("x"))
			q.AppendRun(&run)
		},
		"Splice": func(q *Queue) {
			var p Queue
			p.Append(Default, []byte("x"))
			q.Splice(&p)
		},
	} {
		var q, p Queue
		q.Append(Default, []byte("before"))
		p.Append(Default, []byte("moved"))
		q.Absorb(&p)
		appends(&p)
		if n := p.DropFirst(); n != 1 || !p.Empty() {
			t.Errorf("%s: a message of %d bytes, and then empty %v", name, n, p.Empty())
		}
	}
}

// A header that is cut is nothing of the body.
func TestCutInTheHeader(t *testing.T) {
	var (
		q Queue
		w Writing
	)
	q.Append(Default, []byte("body"))
	w.Take(&q)
	w.Wrote(3)
	if body, written, ok := w.Cut(); string(body) != "body" || written != 0 || !ok {
		t.Errorf("%q, %d, %v", body, written, ok)
	}
}
