package registry

import (
	"math/rand/v2"
	"sync"
	"testing"
)

type thing struct{ number uint64 }

func (t *thing) Number() uint64 { return t.number }

func newThing(n uint64) *thing { return &thing{n} }

func TestNumbersAreNeverGivenAgain(t *testing.T) {
	var table Table[thing, *thing]
	given, live := map[uint64]bool{0: true}, map[uint64]*thing{}
	r := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		if r.IntN(2) == 0 || len(live) == 0 {
			e := table.Add(newThing)
			if given[e.number] {
				t.Fatalf("%#x was given twice", e.number)
			}
			given[e.number], live[e.number] = true, e
			continue
		}
		for n := range live {
			if !table.Remove(n) || table.Remove(n) {
				t.Fatalf("%#x was not removed exactly once", n)
			}
			delete(live, n)
			break
		}
	}
	for n := range given {
		if got := table.Get(n); got != live[n] {
			t.Fatalf("Get(%#x) = %v, want %v", n, got, live[n])
		}
	}
	if table.Len() != len(live) {
		t.Errorf("Len() = %d, want %d", table.Len(), len(live))
	}
	for e := range table.All {
		delete(live, e.number)
	}
	if len(live) != 0 {
		t.Errorf("All left out %d entries", len(live))
	}
}

func TestNoNumberIsFoundByAccident(t *testing.T) {
	var table Table[thing, *thing]
	for _, n := range []uint64{0, 1, 1 << 32, ^uint64(0)} {
		if table.Get(n) != nil || table.Remove(n) {
			t.Errorf("an empty table has an entry %#x", n)
		}
	}
	e := table.Add(newThing)
	for _, n := range []uint64{0, e.number &^ (1<<32 - 1), uint64(uint32(e.number)), e.number + 1<<32, ^uint64(0)} {
		if table.Get(n) != nil {
			t.Errorf("Get(%#x) found the entry %#x", n, e.number)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	var table Table[thing, *thing]
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 2_000 {
				e := table.Add(newThing)
				if table.Get(e.number) != e {
					t.Error("an entry is not found under its number")
				}
				table.Remove(e.number)
				if table.Get(e.number) != nil {
					t.Error("an entry is found after Remove")
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkGet(b *testing.B) {
	var table Table[thing, *thing]
	e := table.Add(newThing)
	for b.Loop() {
		table.Get(e.number)
	}
}
