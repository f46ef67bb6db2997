package packet

import (
	"errors"
	"sync"
	"syscall"
	"time"
)

const (
	outItems = 1024    // datagrams that wait in a socket to be sent
	outBytes = 1 << 20 // likewise, or one datagram of more

	// Who sends less often than this does so alone: then waiting for others
	// saves nothing.
	alone = 30 * time.Microsecond
)

// sender is what the sessions of a socket have to send. Its methods may be
// called from any goroutine.
type sender struct {
	// Immutable after construction.
	io     batcher
	failed func(to *session, err error)
	epoch  time.Time

	mu      sync.Mutex // guards what follows; nothing is locked inside it
	turn    turn
	started bool   // a goroutine was started that has not looked yet
	box     outbox // to be sent
	spare   outbox // the memory of the one before
	waiting []*session
	last    time.Duration // since epoch, when something was sent
	running int           // goroutines
	free    sync.Cond     // mu; turn is nobodys and running 0
}

// turn is whose turn it is to send.
type turn uint8

const (
	nobodys turn = iota
	due          // that of the goroutine that was started, or of who takes it from there
	taken        // whoever has taken it sends until there is nothing more
)

func (s *sender) init(io batcher, failed func(*session, error)) {
	s.io, s.failed, s.epoch = io, failed, time.Now()
	s.free.L = &s.mu
}

// acquire takes the turn, unless somebody is sending: what is queued from now on
// waits for flush.
func (s *sender) acquire() bool {
	if !s.io.tries() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.turn == taken {
		return false
	}
	s.turn = taken
	return true
}

// write queues datagrams, as many of v as there is room for, and sees to it that
// they are sent.
func (s *sender) write(x *session, v [][]byte) (n int) {
	s.mu.Lock()
	n = s.queueLocked(x, v)
	many := len(s.box.items)
	switch {
	case many == 0, s.turn == taken:
	case s.io.tries() && (many >= writeBatch || s.turn == nobodys && time.Since(s.epoch)-s.last > alone):
		s.turn = taken
		s.mu.Unlock()
		s.flush(-1)
		return n
	default:
		s.turn = due
		if !s.started {
			s.started = true
			s.running++
			go s.run()
		}
	}
	s.mu.Unlock()
	return n
}

// queueLocked copies datagrams to the outbox.
func (s *sender) queueLocked(x *session, v [][]byte) (n int) {
	for i, off := 0, 0; i < len(v); {
		if off == len(v[i]) {
			i, off = i+1, 0
			continue
		}
		used, full := x.queue(&s.box, v[i][off:], v[i+1:])
		if full {
			s.waiting = append(s.waiting, x)
			break
		}
		n += used
		for ; used > len(v[i])-off; i, off = i+1, 0 {
			used -= len(v[i]) - off
		}
		off += used
	}
	return n
}

// run is the goroutine that sends when nobody else does. It is joined by join.
func (s *sender) run() {
	defer s.exit()
	s.mu.Lock()
	s.started = false
	mine := s.turn == due
	if mine {
		s.turn = taken
	}
	s.mu.Unlock()
	if mine {
		s.send(wait)
	}
}

// exit is the last act of a goroutine.
func (s *sender) exit() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	s.free.Broadcast()
}

// flush sends what is queued, without waiting: if the socket is full, a
// goroutine goes on. The caller has the turn, and loses it.
func (s *sender) flush(fd int) { s.send(fd) }

// wait and noFD are what a batcher is told in place of a descriptor.
const (
	noFD = -1 // there is none at hand; do not wait
	wait = -2 // wait for the socket to take it
)

// send sends until the outbox is empty.
func (s *sender) send(fd int) {
	s.mu.Lock()
	for len(s.box.items) > 0 {
		box := s.box
		s.box, s.spare = s.spare, outbox{}
		s.mu.Unlock()
		sent := s.io.send(&box, fd, s.failed)
		if sent < len(box.items) {
			box.items = box.items[sent:]
			s.mu.Lock()
			s.running++
			s.mu.Unlock()
			go func() {
				defer s.exit()
				s.io.send(&box, wait, s.failed)
				s.sent(&box)
				s.send(wait)
			}()
			return
		}
		s.sent(&box)
		s.mu.Lock()
	}
	s.turn = nobodys
	s.last = time.Since(s.epoch)
	s.free.Broadcast()
	s.mu.Unlock()
}

// sent keeps the memory of what was sent, and tells who waits for room.
func (s *sender) sent(box *outbox) {
	box.reset()
	s.mu.Lock()
	s.spare = *box
	waiting := s.waiting
	s.waiting = nil
	s.mu.Unlock()
	for _, x := range waiting {
		x.writable()
	}
}

// join waits until everything is sent, or could not be. Nothing may be queued any
// more.
func (s *sender) join() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.turn != nobodys || s.running > 0 {
		s.free.Wait()
	}
}

// unsent is told what became of a datagram that was not sent.
func (s *socket) unsent(x *session, err error) {
	for _, gone := range []error{syscall.ECONNREFUSED, syscall.ENOENT, syscall.ECONNRESET, syscall.EDESTADDRREQ, syscall.ENOTCONN} {
		if errors.Is(err, gone) {
			x.fail(err) // nobody is there any more
			return
		}
	}
	s.o.Stats.Dropped.Add(1)
}

// outbox holds datagrams that wait to be sent.
type outbox struct {
	items []item
	bytes []byte // their bodies, one after the other
}

type item struct {
	to        *session
	from, end int // in bytes
}

func (b *outbox) full(more int) bool {
	return len(b.items) >= outItems || len(b.items) > 0 && len(b.bytes)+more > outBytes
}

func (b *outbox) add(to *session, body []byte) {
	from := len(b.bytes)
	b.bytes = append(b.bytes, body...)
	b.items = append(b.items, item{to, from, len(b.bytes)})
}

func (b *outbox) reset() {
	clear(b.items)
	b.items, b.bytes = b.items[:0], b.bytes[:0]
	if cap(b.bytes) > 256<<10 {
		b.bytes = nil // after a burst
	}
}
