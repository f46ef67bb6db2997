// Package budget bounds the bytes that all connections together hold, in both
// directions, without ever coming to a standstill.
package budget

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
)

const (
	// Slack is what a limit must hold beyond its messages: the reads under way.
	Slack = 64 << 10

	// Own is what each connection may hold beside the limit. The connection itself costs
	// about as much, and a datagram of an Ethernet fits.
	Own = 2 << 10
)

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
//
// # Own room
//
// The token goes to one at a time, who may be slow, and what has begun may be that of
// peers who never complete it. So that they cannot stop all others, each connection has
// Own bytes beside the limit, which nobody else can fill: it may read into them whenever
// it holds nothing else, so neither more than that of a message that has begun, nor
// anything that its user has not taken. Who is in the middle of a message that does not
// fit waits as above. T is counted without what is held there of messages that have
// begun, so the rule is not touched by it. Messages that are whole do count, so that
// where the user does not take any, at most Own bytes of each connection come beyond
// what the rule lets in, and what is held is at most L and Own for each (and what messages
// are charged beyond their bytes).
type Inbound[C comparable] struct {
	resume func(c C, token bool) // called by Give, Poke, Wait and Done, with no lock of ours held, so it may call Done; their callers hold none that it takes
	over   func(used int64) bool // reports whether another limit is reached, at so many bytes held here

	limit   int64        // L; constant
	line    atomic.Int64 // S and own
	used    atomic.Int64 // T and own
	spare   atomic.Int64 // of it, what ReserveSpare has taken
	waiting atomic.Int64 // len(queue)

	mu      sync.Mutex   // guards what follows
	max     int64        // M
	own     int64        // what TakeOwn has taken
	queue   []C          // who waits, in order
	waits   map[C]waiter // its keys are queue
	little  int          // how many of them have room of their own
	token   C            // whose it is, if granted
	granted bool
}

// waiter is what one that waits has said of itself.
type waiter struct {
	lacks int64 // of a message that has begun
	own   bool  // it has room of its own, and waits because of the other limit alone
}

// NewInbound makes a budget of limit bytes for messages of at most max bytes;
// CheckInbound says which are possible. resume is called to tell one that
// waits that he may go on: to the end of his message only, if it is with the
// token. over tells of a limit that counts more than input: reading stops at
// that too; when it may have fallen, call Poke.
func NewInbound[C comparable](limit, max int64, resume func(c C, token bool), over func(used int64) bool) *Inbound[C] {
	b := &Inbound[C]{resume: resume, over: over, limit: limit, waits: make(map[C]waiter)}
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
		b.line.Store(b.limit - b.max - Slack + b.own)
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

// TakeOwn takes n bytes of somebody's own room, unless the other limit is reached. That
// he has so much left is the caller's to know.
func (b *Inbound[C]) TakeOwn(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.limit == math.MaxInt || b.over(b.used.Load()) {
		return false
	}
	b.used.Add(n)
	b.own += n
	b.line.Add(n)
	return true
}

// LeaveOwn counts n bytes that TakeOwn has taken as what everybody holds. They are those of
// a whole message, or Give gives them back next.
func (b *Inbound[C]) LeaveOwn(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.own -= n
	b.line.Add(-n)
}

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
// the message that it has begun to receive, 0 if it has not. own: it has room of its
// own, and could read but for the other limit.
func (b *Inbound[C]) Wait(c C, lacks int64, own bool) {
	b.mu.Lock()
	before, ok := b.waits[c]
	if !ok {
		b.queue = append(b.queue, c)
	}
	if before.own {
		b.little--
	}
	if own {
		b.little++
	}
	b.waits[c] = waiter{lacks, own}
	b.waiting.Store(int64(len(b.queue)))
	b.mu.Unlock()
	b.grant() // what made it wait may be over already
}

// Waiting reports whether anybody waits.
func (b *Inbound[C]) Waiting() bool { return b.waiting.Load() > 0 }

// Done says that c has used its token, or cannot use it now, or that c is gone.
func (b *Inbound[C]) Done(c C) {
	b.mu.Lock()
	if b.granted && b.token == c {
		b.granted = false
		var none C
		b.token = none
	}
	if _, ok := b.waits[c]; ok {
		b.removeLocked(c)
	}
	b.mu.Unlock()
	b.grant()
}

func (b *Inbound[C]) removeLocked(c C) {
	if b.waits[c].own {
		b.little--
	}
	delete(b.waits, c)
	i := slices.Index(b.queue, c)
	b.queue = slices.Delete(b.queue, i, i+1)
	b.waiting.Store(int64(len(b.queue)))
}

// oneRead is what one that is resumed is expected to take, or else the rest of the
// message that it has begun.
const oneRead = 16 << 10

// grant resumes whom the rule lets read.
func (b *Inbound[C]) grant() {
	var (
		resumed []C
		least   C // has got the token
		token   bool
	)
	b.mu.Lock()
	used, line := b.used.Load(), b.line.Load()
	for len(b.queue) > 0 && used < line && !b.over(used) {
		c := b.queue[0]
		used += max(oneRead, b.waits[c].lacks)
		b.removeLocked(c)
		resumed = append(resumed, c)
	}
	if len(resumed) == 0 && len(b.queue) > 0 && !b.granted {
		if least, token = b.leastLocked(used); token {
			b.token, b.granted = least, true
			b.removeLocked(least)
		}
	}
	for i := 0; b.little > 0 && i < len(b.queue) && !b.over(used); {
		if c := b.queue[i]; b.waits[c].own {
			used += Own
			b.removeLocked(c)
			resumed = append(resumed, c)
		} else {
			i++
		}
	}
	b.mu.Unlock()
	if token {
		b.resume(least, true)
	}
	for _, c := range resumed {
		b.resume(c, false)
	}
}

// leastLocked is the one that lacks least of a message, if that fits, and goes at
// most one message beyond the other limit. Where the beginnings alone have reached
// that, the last of them has exceeded it by no more than it has received.
func (b *Inbound[C]) leastLocked(used int64) (least C, ok bool) {
	var lacks int64
	for _, c := range b.queue {
		if l := b.waits[c].lacks; l > 0 && (!ok || l < lacks) {
			least, lacks, ok = c, l, true
		}
	}
	return least, ok && lacks <= b.limit+b.own-used && !b.over(used+lacks-b.max-Slack)
}
