// Package chunk lends memory that is used again: whoever reads takes a chunk,
// whoever keeps a part of it keeps the chunk, and when the last one lets go, it
// is taken again.
package chunk

import (
	"math/bits"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"
	"weak"
)

// Size is the size of a chunk that is read into: as much as a busy connection
// has waiting. (With 64 KiB, 16 messages of 4 KiB in flight cost a third more;
// 256 KiB fall out of the cache.)
const Size = 128 << 10

const (
	minBits = 17 // Size
	maxBits = 30 // larger ones are made for the occasion
)

// Lead is how far into a page the body of a large message begins: by the length of
// the default header. It comes from behind its header, and where it goes out again,
// the kernel copies it behind one, 8 bytes further into a page than a body that began
// with one; and AMD's processors with fast short copies (FSRM) take a target that is
// 1 to 31 bytes further into its page than the source for an overlap, and copy at an
// eighteenth of the speed. With Lead both are equally far. (Echo of 1 MiB on one
// connection: 460 µs of the server's CPU instead of 1,030.)
const Lead = 8

// Chunk is memory with a count of those who use it.
type Chunk struct {
	mem  []byte
	refs atomic.Int32
}

// pool holds the chunks of the least size that nobody uses.
var pool sync.Pool

// Poison is called, if set, with memory that nobody may use any more. Tests set
// it to overwrite the memory, before anything else uses this package.
var Poison func(mem []byte)

// Get returns a chunk of n bytes at least, with one reference.
func Get(n int) *Chunk {
	if c := Idle(n); c != nil {
		return c
	}
	if b := class(n); b <= maxBits {
		n = 1 << b
	}
	c := &Chunk{mem: make([]byte, n+Lead)}
	c.refs.Store(1)
	register(c)
	return c
}

// Idle is Get if there is such a chunk that nobody uses, else nil: nothing is
// allocated.
func Idle(n int) *Chunk {
	b := class(n)
	if b > maxBits {
		return nil
	}
	var c *Chunk
	if b == minBits {
		c, _ = pool.Get().(*Chunk)
	} else {
		c = shelves[b].take()
	}
	if c != nil {
		c.refs.Store(1)
	}
	return c
}

func class(n int) int { return max(minBits, bits.Len(uint(n-1))) }

// Mem is the chunk's memory, for whatever comes.
func (c *Chunk) Mem() []byte { return c.mem[:len(c.mem)-Lead] }

// Body is the chunk's memory, for the body of one message.
func (c *Chunk) Body() []byte { return c.mem[Lead:] }

// Alone reports whether the caller's reference is the only one.
func (c *Chunk) Alone() bool { return c.refs.Load() == 1 }

// Retain adds a reference.
func (c *Chunk) Retain() { c.refs.Add(1) }

// Release gives a reference back. After the last one the memory is another's.
func (c *Chunk) Release() {
	switch n := c.refs.Add(-1); {
	case n > 0:
		return
	case n < 0:
		panic("chunk: released more often than retained")
	}
	if Poison != nil {
		Poison(c.mem)
	}
	switch b := class(len(c.mem) - Lead); {
	case b > maxBits: // made for the occasion
	case b == minBits:
		pool.Put(c)
	default:
		shelves[b].put(c)
	}
}

// table is where all chunks lie, in order of their addresses. It is replaced
// when it changes. It does not keep a chunk alive: an entry goes when its chunk
// is collected, and until then finds nothing.
var (
	table   atomic.Pointer[[]entry]
	tableMu sync.Mutex // serializes its writers
)

type entry struct {
	from, to uintptr
	chunk    weak.Pointer[Chunk]
}

func register(c *Chunk) {
	from := uintptr(unsafe.Pointer(unsafe.SliceData(c.mem)))
	e := entry{from, from + uintptr(len(c.mem)), weak.Make(c)}
	tableMu.Lock()
	defer tableMu.Unlock()
	change(func(t []entry) []entry {
		// What lay at the same address was collected.
		t = slices.DeleteFunc(t, func(x entry) bool { return x.from < e.to && e.from < x.to })
		i, _ := slices.BinarySearchFunc(t, from, byAddress)
		return slices.Insert(t, i, e)
	})
	runtime.AddCleanup(c, unregister, e)
}

func unregister(e entry) {
	tableMu.Lock()
	defer tableMu.Unlock()
	change(func(t []entry) []entry {
		return slices.DeleteFunc(t, func(x entry) bool { return x == e })
	})
}

func change(f func([]entry) []entry) {
	var t []entry
	if p := table.Load(); p != nil {
		t = slices.Clone(*p)
	}
	t = f(t)
	table.Store(&t)
}

func byAddress(e entry, address uintptr) int {
	switch {
	case address < e.from:
		return 1
	case address >= e.to:
		return -1
	}
	return 0
}

// Of returns the chunk that p lies in, or nil. p must be in use by somebody who
// holds a reference, so that the chunk is not another's meanwhile.
func Of(p []byte) *Chunk {
	t := table.Load()
	if t == nil || len(p) == 0 {
		return nil
	}
	i, ok := slices.BinarySearchFunc(*t, uintptr(unsafe.Pointer(unsafe.SliceData(p))), byAddress)
	if !ok {
		return nil
	}
	return (*t)[i].chunk.Value()
}
