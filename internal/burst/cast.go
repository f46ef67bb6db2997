package burst

import (
	"math"
	"sync"

	"github.com/sockhub/sockhub/internal/outq"
)

// Cast is a run of small messages that are broadcast to the same receivers, one broadcast
// after the other. The first one visits every receiver, and each that would only queue the
// message takes a seat instead (Join). Those that follow in the burst add to the run, and
// visit nobody who has one. Whoever touches a receiver next takes it out of the cast, and
// puts what the run has come to into its queue, as a reference to the one copy that there
// is (Leave).
//
// Why that is right: nobody has touched a receiver since it joined, or it would have left.
// So it still is as it was then: it takes messages, none of them has to wait or to come
// after something else, and there is room for the limit of the cast. A message is accepted
// for all who are in the cast at the moment when it is added, under mu; what is sent to one
// of them before that, or after, has had it leave, and has its place in the queue before
// or behind it.
type Cast[C any] struct {
	of      *Casts[C]
	limit   int64  // of run.Charge
	longest uint64 // message that all who joined may be sent; constant once others may add

	mu   sync.Mutex // guards what follows; nothing is locked inside it
	run  outq.Run
	gone []bool // of each receiver, by its seat: has left, or did not join
	left int    // how many of these
}

// Limit is what the messages of the cast may be charged, for which who joins has room.
func (k *Cast[C]) Limit() int64 { return k.limit }

// Join is for the next receiver, which may be sent messages of up to longest bytes, and
// returns its seat. It is called before Publish.
func (k *Cast[C]) Join(longest uint64) (seat int) {
	k.longest = min(k.longest, longest)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gone = append(k.gone, false)
	return len(k.gone) - 1
}

// Pass is for the next receiver, if that does not join.
func (k *Cast[C]) Pass() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gone = append(k.gone, true)
	k.left++
}

// fewLocked reports whether fewer are in the cast than are not.
func (k *Cast[C]) fewLocked() bool { return k.left > len(k.gone)/2 }

// Add accepts a message for all who are in the cast, and returns how many they are and the
// seats of the others; or it cannot.
func (k *Cast[C]) Add(msg []byte) (n int, others []int, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if uint64(len(msg)) > k.longest || k.run.Charge()+int64(len(msg))+outq.Overhead > k.limit || k.fewLocked() {
		return 0, nil, false
	}
	k.run.Add(msg)
	for i := 0; len(others) < k.left; i++ {
		if k.gone[i] {
			others = append(others, i)
		}
	}
	return len(k.gone) - k.left, others, true
}

// Leave takes the receiver in a seat out of the cast, and puts what it has of it into q.
func (k *Cast[C]) Leave(seat int, q *outq.Queue) (msgs int, bytes int64) {
	k.mu.Lock()
	msgs, bytes = k.run.Len(), k.run.Bytes()
	q.AppendRun(&k.run)
	k.gone[seat] = true
	k.left++
	few := k.left == len(k.gone)/2+1 // from now on, see fewLocked
	k.mu.Unlock()
	if few {
		k.Drop()
	}
	return msgs, bytes
}

// Drop ends the cast: nothing more can be added, or for few.
func (k *Cast[C]) Drop() {
	s := k.of
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == k {
		s.dropLocked()
	}
}

// Casts is the last cast, and whether the next broadcast should begin one: there are several
// in an epoch, and the last casts were of use. Its zero value is none. Its methods may be
// called from any goroutine.
type Casts[C any] struct {
	mu      sync.Mutex // inside it only a Cast's is locked
	last    *Cast[C]   // to which messages may be added, or nil
	to      []C        // by their seats there, in the order in which they were yielded; never changed
	pace    Pace       // broadcasts
	skip    int        // so many that might begin a cast are to begin none
	useless int        // so many were skipped last, because of casts with one message
}

// longest is the size up to which messages are kept in casts: larger ones are queued as
// references anyway.
const longest = 2 << 10

// Begin begins a cast with its first message.
func (s *Casts[C]) Begin(first []byte, limit int64) *Cast[C] {
	k := &Cast[C]{of: s, limit: limit, longest: math.MaxUint64}
	k.run.Add(first)
	return k
}

// Find returns what a broadcast of a message of this size may add to, and to whom that
// goes, or nil; and whether it may begin a cast if that does not do. It waits for nobody:
// where several broadcast at the same time, some do without.
func (s *Casts[C]) Find(epoch uint64, size int) (k *Cast[C], to []C, begin bool) {
	if size > longest || !s.mu.TryLock() {
		return nil, nil, false
	}
	defer s.mu.Unlock()
	begin = s.pace.Next(epoch)
	if begin && s.skip > 0 {
		s.skip--
		begin = false
	}
	return s.last, s.to, begin
}

// Publish lets others add to a cast, if enough have joined it.
func (s *Casts[C]) Publish(k *Cast[C], to []C) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropLocked()
	s.last, s.to = k, to
	k.mu.Lock()
	few := k.fewLocked()
	k.mu.Unlock()
	if few {
		s.dropLocked()
	}
}

func (s *Casts[C]) dropLocked() {
	const most = 62 // even, as all of them: a burst of two finds its first one in the end
	k := s.last
	if k == nil {
		return
	}
	s.last, s.to = nil, nil
	k.mu.Lock()
	used := k.run.Len() > 1
	k.mu.Unlock()
	if used {
		s.skip, s.useless = 0, 0
	} else {
		s.useless = min(2*s.useless+2, most)
		s.skip = s.useless
	}
}
