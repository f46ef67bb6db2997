package outq

import (
	"bytes"
	"slices"
	"testing"

	"github.com/sockhub/sockhub/internal/chunk"
)

// The parts of a message lie in memory of others, which may go on behind them.
func TestPartsAreNotJoinedInPlace(t *testing.T) {
	for n := 2; n <= 4; n++ {
		var (
			parts, whole [][]byte
			want         []byte
		)
		for i := range n {
			p := bytes.Repeat([]byte{byte('a' + i)}, 3*Inline)
			whole, parts = append(whole, p), append(parts, p[:Inline])
			want = append(want, p[:Inline]...)
		}
		var q Queue
		q.AppendParts(Default, parts, len(want))
		var w Writing
		w.Take(&q)
		w.Wrote(defaultSize + 2*Inline - 1)
		if got, written, _ := w.Cut(); !bytes.Equal(got, want) || written != 2*Inline-1 {
			t.Errorf("%d parts: another body, or not %d bytes of it", n, written)
		}
		if rest := slices.Concat(w.Vec(make([][]byte, 0, 10), 1<<20)...); !bytes.Equal(rest, want[2*Inline-1:]) {
			t.Errorf("%d parts: the rest is another", n)
		}
		w.Wrote(1) // to the end of a part
		v := w.Vec(make([][]byte, 0, 10), 1<<20)
		if rest := slices.Concat(v...); !bytes.Equal(rest, want[2*Inline:]) || len(v) != n-2 {
			t.Errorf("%d parts: the rest is another, or in %d slices", n, len(v))
		}
		for i, p := range whole {
			if !bytes.Equal(p, bytes.Repeat([]byte{byte('a' + i)}, 3*Inline)) {
				t.Errorf("%d parts: what lies behind part %d was overwritten", n, i)
			}
		}
	}
}

// A chunk is kept for a large body in it, until that has left in whatever way, and not for
// what is a small part of it.
func TestChunksAreKeptUntilTheirBodiesHaveLeft(t *testing.T) {
	const large, small = 100 << 10, 20 << 10
	appends := map[string]func(*Queue, []byte){
		"whole": func(q *Queue, b []byte) { q.AppendBorrowed(Default, b) },
		"parts": func(q *Queue, b []byte) { q.AppendPartsBorrowed(Default, [][]byte{b, nil}, len(b)) },
	}
	leaves := map[string]func(*Queue){
		"written": func(q *Queue) {
			var w Writing
			w.Take(q)
			w.Wrote(int(w.Bytes()) + w.Len()*defaultSize)
		},
		"written alone": func(q *Queue) {
			q.Append(Default, []byte("behind"))
			var w Writing
			w.Take(q)
			w.Wrote(int(w.Bytes()) - len("behind") + defaultSize)
		},
		"dropped": func(q *Queue) { q.Append(Default, []byte("behind")); q.DropFirst() },
		"made ours": func(q *Queue) {
			var w Writing
			w.Take(q)
			w.Own()
			for b := range w.Unwritten() {
				if !bytes.Equal(b, make([]byte, large)) {
					t.Error("made ours: another body")
				}
			}
		},
		"absorbed, and written": func(q *Queue) {
			var to Queue
			to.Append(Default, []byte("before"))
			to.Absorb(q)
			q.Free()
			var w Writing
			w.Take(&to)
			w.Wrote(int(w.Bytes()) + w.Len()*defaultSize)
		},
	}
	for how, add := range appends {
		for end, leave := range leaves {
			c := chunk.Get(chunk.Size)
			clear(c.Mem())
			var q Queue
			add(&q, c.Mem()[:small])
			if !c.Alone() {
				t.Errorf("%s: kept for %d bytes", how, small)
			}
			q = Queue{}
			add(&q, c.Mem()[:large])
			if c.Alone() {
				t.Errorf("%s: not kept for %d bytes", how, large)
			}
			leave(&q)
			if !c.Alone() {
				t.Errorf("%s, %s: kept, though the body has left", how, end)
			}
			c.Release()
		}
	}
}
