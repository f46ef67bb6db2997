package chunk

import "sync"

// Loan is what one receiver is lent until it gives all of it back at once: chunks, and
// lists of the messages that lie in them. It is not safe for concurrent use.
type Loan struct {
	chunks []*Chunk // with a reference each
	msgs   [][]byte // the lists, one behind the other
}

var loans = sync.Pool{New: func() any { return new(Loan) }}

// GetLoan returns one of nothing.
func GetLoan() *Loan { return loans.Get().(*Loan) }

// Keep holds the chunk that messages lie in.
func (l *Loan) Keep(c *Chunk) {
	if n := len(l.chunks); n > 0 && l.chunks[n-1] == c {
		return // readers take turns with the same one
	}
	c.Retain()
	l.chunks = append(l.chunks, c)
}

// Take is Keep of chunks with a reference that is the loan's from now on.
func (l *Loan) Take(chunks []*Chunk) { l.chunks = append(l.chunks, chunks...) }

// List returns a list of what is in before, which is nothing or was returned by List
// before, and then in msgs. before is not used any more.
func (l *Loan) List(before, msgs [][]byte) [][]byte {
	at, n := len(l.msgs), len(before)
	if n > 0 {
		if n > at || &l.msgs[at-n] != &before[0] {
			return append(before, msgs...) // others came behind it: a list of its own
		}
		at -= n
	}
	if need := len(l.msgs) + len(msgs); need > cap(l.msgs) && at > 0 {
		// Further lists lie in other memory, twice as much. These stay where they are.
		l.msgs, at = append(make([][]byte, 0, 2*max(need, 32)), before...), 0
	}
	l.msgs = append(l.msgs, msgs...)
	return l.msgs[at:len(l.msgs):len(l.msgs)]
}

// Absorb takes the chunks of another loan over. Its lists, which were copied, and itself
// are used again.
func (l *Loan) Absorb(from *Loan) {
	l.Take(from.chunks)
	clear(from.chunks) // l's now
	from.chunks = from.chunks[:0]
	from.Release()
}

// Release gives everything back, and the loan itself.
func (l *Loan) Release() {
	for _, c := range l.chunks {
		c.Release()
	}
	clear(l.chunks)
	clear(l.msgs)
	l.chunks, l.msgs = l.chunks[:0], l.msgs[:0]
	loans.Put(l)
}
