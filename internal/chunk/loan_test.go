package chunk

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// Whatever way several lists grow in one loan, none overwrites another.
func TestListsOfALoan(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 1))
		l := GetLoan()
		lists, want := make([][][]byte, 5), make([][][]byte, 5)
		for n := range 300 {
			i := r.IntN(len(lists))
			if r.IntN(2) == 0 && n > 0 {
				i = 0 // mostly the same again
			}
			var msgs [][]byte
			for k := range 1 + r.IntN(10) {
				msgs = append(msgs, fmt.Appendf(nil, "%d %d %d", i, n, k))
			}
			lists[i] = l.List(lists[i], msgs)
			want[i] = append(want[i], msgs...)
		}
		for i := range lists {
			if !slices.EqualFunc(lists[i], want[i], slices.Equal) {
				t.Fatalf("seed %d: list %d is %q, want %q", seed, i, lists[i], want[i])
			}
		}
		l.Release()
		if l = GetLoan(); slices.ContainsFunc(l.msgs[:cap(l.msgs)], func(m []byte) bool { return m != nil }) {
			t.Fatal("a list keeps messages that were given back")
		}
		l.Release()
	}
}

func TestALoanKeepsItsChunks(t *testing.T) {
	mine, shared, l := Get(1), Get(1), GetLoan()
	for range 3 {
		l.Keep(shared)
	}
	another := GetLoan()
	mine.Retain()
	another.Take([]*Chunk{mine})
	another.Keep(shared)
	l.Absorb(another)
	if mine.refs.Load() != 2 || shared.refs.Load() != 3 {
		t.Errorf("%d and %d references, want 2 and 3", mine.refs.Load(), shared.refs.Load())
	}
	if l.Release(); !mine.Alone() || !shared.Alone() {
		t.Error("a chunk is kept that was given back")
	}
	mine.Release()
	shared.Release()
}
