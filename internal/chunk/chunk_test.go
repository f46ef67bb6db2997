package chunk

import (
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"
)

func TestChunkIsFoundByAnyPartOfIt(t *testing.T) {
	a, b := Get(1), Get(5<<20)
	defer a.Release()
	defer b.Release()
	for _, c := range []*Chunk{a, b} {
		m := c.Mem()
		for _, p := range [][]byte{m, m[:1], m[len(m)-1:], m[1000:2000]} {
			if Of(p) != c {
				t.Error("not found")
			}
		}
	}
	if Of(make([]byte, 1<<20)) != nil || Of(nil) != nil {
		t.Error("found what is no chunk")
	}
	if len(a.Mem()) != Size || len(b.Mem()) != 8<<20 {
		t.Error(len(a.Mem()), len(b.Mem()))
	}
}

// A chunk may lie right behind another, and where a collected one of another size lay that is
// not taken out of the table yet.
func TestChunkIsFoundAmongOthers(t *testing.T) {
	mem := make([]byte, 3000)
	at := func(from, to int) *Chunk {
		c := &Chunk{mem: mem[from:to]}
		register(c)
		return c
	}
	a, b := at(0, 1000), at(1000, 3000)
	if Of(mem[999:]) != a || Of(mem[1000:]) != b || Of(mem[2999:]) != b {
		t.Error("another is found at their border")
	}
	c := at(500, 1500)
	for i := 500; i < 1500; i++ {
		if Of(mem[i:]) != c {
			t.Fatalf("another is found %d bytes into the one that came last", i-500)
		}
	}
	runtime.KeepAlive(a)
	runtime.KeepAlive(b)
}

func TestMemoryIsPoisonedAtTheLastRelease(t *testing.T) {
	n := 0
	Poison = func([]byte) { n++ }
	defer func() { Poison = nil }()
	c := Get(1)
	c.Retain()
	if c.Alone() {
		t.Error("alone with two references")
	}
	c.Release()
	if n != 0 || !c.Alone() {
		t.Error("released too early")
	}
	c.Release()
	if n != 1 {
		t.Error("not released")
	}
	defer func() {
		if recover() == nil {
			t.Error("released twice")
		}
	}()
	c.Release()
}

// A chunk that was never released is not used again, but collected, and nothing
// is found at its address then.
func TestTableKeepsNothingAlive(t *testing.T) {
	for range 100 {
		p := Get(1 << 20).Mem()
		p[0] = 1
	}
	for range 20 {
		runtime.GC()
	}
	// The cleanups run some time after.
	for range 1000 {
		if n := len(*table.Load()); n < 50 {
			return
		}
		runtime.Gosched()
		runtime.GC()
	}
	t.Errorf("%d entries", len(*table.Load()))
}

func TestLargeMemoryLiesReadyForAsLongAsItIsUsed(t *testing.T) {
	const size = 3 << 19
	var cs []*Chunk
	for range 10 {
		cs = append(cs, Get(size))
	}
	for _, c := range cs {
		c.Release()
	}
	for range 5 {
		runtime.GC()
	}
	for range cs {
		if c := Idle(size); c == nil || !slices.Contains(cs, c) {
			t.Fatal("it is gone after a collection")
		}
	}
	if Idle(size) != nil {
		t.Error("one more than there are")
	}
	for _, c := range cs {
		c.Release()
	}

	s := &shelves[class(size)]
	s.sweep() // all ten were taken since the last time
	if len(s.free) != len(cs) {
		t.Error("swept what was used:", len(s.free))
	}
	two := []*Chunk{Idle(size), Idle(size)}
	for _, c := range two {
		c.Release()
	}
	Idle(size).Release()
	s.sweep()
	if len(s.free) != len(two) {
		t.Errorf("%d are left, of which %d were used at a time", len(s.free), len(two))
	}
}

func TestMemoryThatNobodyUsesIsGivenBack(t *testing.T) {
	const size = 3 << 20
	Get(size).Release()
	s := &shelves[class(size)]
	for end := time.Now().Add(time.Minute); time.Now().Before(end); runtime.Gosched() {
		runtime.GC()
		s.mu.Lock()
		n := len(s.free)
		s.mu.Unlock()
		if n == 0 {
			return
		}
	}
	t.Error("it is still there")
}

func BenchmarkOf(b *testing.B) {
	var cs []*Chunk
	for range 100 {
		cs = append(cs, Get(1))
	}
	i := 0
	for b.Loop() {
		if Of(cs[i%100].Mem()[100:]) == nil {
			b.Fatal("not found")
		}
		i++
	}
}

func TestBodiesBeginBehindTheirHeader(t *testing.T) {
	const page = 4096
	at := func(p []byte) int { return int(uintptr(unsafe.Pointer(unsafe.SliceData(p))) % page) }
	for _, n := range []int{Size, Size + 1, 1 << 20, 3 << 20} {
		c := Get(n)
		if mem, body := c.Mem(), c.Body(); at(mem) != 0 || at(body) != Lead || len(mem) < n || len(body) < n {
			t.Errorf("%d of %d bytes begin %d into a page, a body of %d %d", len(mem), n, at(mem), len(body), at(body))
		}
		c.Release()
	}
}
