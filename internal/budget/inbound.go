// Package budget bounds the bytes that all connections together hold, in both
// directions, without ever coming to a standstill.
package budget

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
)

// Slack is what a limit must hold beyond its messages: the reads under way.
const Slack = 64 << 10

// Inbound bounds what was received: whole messages that their user has not
// taken, and the beginnings of others.
//
// # The rule
//
// Let L be the limit, M the largest message, T what is held now, and
// S = L − M − Slack. Whoever wants to read reserves room before, and gets it if
// T < S. Otherwise he waits, but one of those who wait in the middle of a
// message, the one with the least left, gets the token, if T and what is left
// are at most L: he may read to that message's end.
//
// Nothing else would do. A fair share for each comes to a standstill as soon as
// everybody's share is full of half a message. Here, when the user takes all
// whole messages and T is still at least S, it is all beginnings; the least that
// any of them lacks is at most M; so somebody always gets the token, completes
// his message, and the user takes that.
type Inbound[C comparable] struct {
	resume func(c C, token bool) // called by Give, Poke, Wait and Done, with no lock of ours held; their callers hold none that it takes
	over   func(used int64) bool // reports whether another limit is reached, at so many bytes held here

	limit   int64        // L; constant
	line    atomic.Int64 // S
	used    atomic.Int64 // T
	spare   atomic.Int64 // of it, what ReserveSpare has taken
	waiting atomic.Int64 // len(queue)

	mu      sync.Mutex  // guards what follows
	max     int64       // M
	queue   []C         // who waits, in order
	lacks   map[C]int64 // of a message that has begun; its keys are queue
	token   C           // whose it is, if granted
	granted bool
}

// NewInbound makes a budget of limit bytes for messages of at most max bytes;
// CheckInbound says which are possible. resume is called to tell one that
// waits that he may go on: to the end of his message only, if it is with the
// token. over tells of a limit that counts more than input: reading stops at
// that too; when it may have fallen, call Poke.
func NewInbound[C comparable](limit, max int64, resume func(c C, token bool), over func(used int64) bool) *Inbound[C] {
	b := &Inbound[C]{resume: resume, over: over, limit: limit, lacks: make(map[C]int64)}
	b.Raise(max)
	return b
}

// CheckInbound reports whether messages of max bytes can do with limit bytes:
// half of it at least is for whole messages.
func CheckInbound(limit, max int64) bool {
	return limit == math.MaxInt || max <= limit/2-Slack
}

// Raise makes size that of the largest message, if it is larger.
func (b *Inbound[C]) Raise(size int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.max = max(b.max, size); b.limit == math.MaxInt {
		b.line.Store(math.MaxInt)
	} else {
		b.line.Store(b.limit - b.max - Slack)
	}
}

// Used is what is held now.
func (b *Inbound[C]) Used() int64 { return b.used.Load() }

// Reserve takes n bytes, if the rule lets anybody read.
func (b *Inbound[C]) Reserve(n int64) bool {
	for {
		used := b.used.Load()
		if used >= b.line.Load() || b.over(used) {
			return false
		}
		if b.used.CompareAndSwap(used, used+n) {
			return true
		}
	}
}

// ReserveSpare is Reserve for what has not been read by a connection yet, and
// can do without: it takes half at most of what there is for those, who could
// not take it over otherwise. But where nothing is held in this way, it takes more, as
// long as somebody may read then: half may be less than one message.
func (b *Inbound[C]) ReserveSpare(n int) bool {
	first := b.spare.Add(int64(n)) == int64(n)
	for {
		used, line := b.used.Load(), b.line.Load()
		held := used + int64(n)
		if b.over(used) || held > line/2 && (!first || held >= line) {
			b.spare.Add(-int64(n))
			return false
		}
		if b.used.CompareAndSwap(used, held) {
			return true
		}
	}
}

// GiveSpare gives back n bytes that ReserveSpare has taken.
func (b *Inbound[C]) GiveSpare(n int) {
	b.spare.Add(-int64(n))
	b.Give(int64(n))
}

// Force takes n bytes in any case: what the token's owner reads, and what
// messages are charged beyond their bytes.
func (b *Inbound[C]) Force(n int64) { b.used.Add(n) }

// Give gives n bytes back, and resumes who may read then. That may be somebody
// though n is 0: who was resumed before may have read less than was expected.
func (b *Inbound[C]) Give(n int64) {
	if n != 0 {
		b.used.Add(-n)
	}
	b.Poke()
}

// Poke resumes who may read, if anybody waits.
func (b *Inbound[C]) Poke() {
	if b.waiting.Load() > 0 {
		b.grant()
	}
}

// Wait says that c was refused and waits to be resumed. lacks is what is left of
// the message that it has begun to receive, 0 if it has not.
func (b *Inbound[C]) Wait(c C, lacks int64) {
	b.mu.Lock()
	if _, ok := b.lacks[c]; !ok {
		b.queue = append(b.queue, c)
	}
	b.lacks[c] = lacks
	b.waiting.Store(int64(len(b.queue)))
	b.mu.Unlock()
	b.grant() // what made it wait may be over already
}

// Waiting reports whether anybody waits.
func (b *Inbound[C]) Waiting() bool { return b.waiting.Load() > 0 }

// Done says that c has used its token, or that c is gone.
func (b *Inbound[C]) Done(c C) {
	b.mu.Lock()
	if b.granted && b.token == c {
		b.granted = false
		var none C
		b.token = none
	}
	if _, ok := b.lacks[c]; ok {
		b.removeLocked(c)
	}
	b.mu.Unlock()
	b.grant()
}

func (b *Inbound[C]) removeLocked(c C) {
	delete(b.lacks, c)
	if i := slices.Index(b.queue, c); i >= 0 {
		b.queue = slices.Delete(b.queue, i, i+1)
	}
	b.waiting.Store(int64(len(b.queue)))
}

// oneRead is what one that is resumed is expected to take, or else the rest of the
// message that it has begun.
const oneRead = 16 << 10

// grant resumes whom the rule lets read.
func (b *Inbound[C]) grant() {
	var resumed []C
	token := false
	b.mu.Lock()
	used, line := b.used.Load(), b.line.Load()
	for len(b.queue) > 0 && used < line && !b.over(used) {
		c := b.queue[0]
		used += max(oneRead, b.lacks[c])
		b.removeLocked(c)
		resumed = append(resumed, c)
	}
	if len(resumed) == 0 && len(b.queue) > 0 && !b.granted {
		if c, ok := b.leastLocked(used); ok {
			b.token, b.granted = c, true
			b.removeLocked(c)
			resumed, token = append(resumed, c), true
		}
	}
	b.mu.Unlock()
	for _, c := range resumed {
		b.resume(c, token)
	}
}

// leastLocked is the one that lacks least of a message, if that fits, and goes at
// most one message beyond the other limit. Where the beginnings alone have reached
// that, the last of them has exceeded it by no more than it has received.
func (b *Inbound[C]) leastLocked(used int64) (least C, ok bool) {
	var lacks int64
	for _, c := range b.queue {
		if l := b.lacks[c]; l > 0 && (!ok || l < lacks) {
			least, lacks, ok = c, l, true
		}
	}
	return least, ok && lacks <= b.limit-used && !b.over(used+lacks-b.max-Slack)
}
