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
	// saves nothing. Who sends more often has a goroutine started that will
	// send, and may have gathered many when it runs.
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
	pen     pen
	started bool   // a goroutine was started that has not looked yet
	box     outbox // to be sent
	spare   outbox // the memory of the one before
	waiting []*session
	stalled bool          // who has the pen waits for the socket
	swapped sync.Cond     // mu; the outbox was taken to be sent, or stalled
	last    time.Duration // since epoch, when something was sent
	running int           // goroutines
	free    sync.Cond     // mu; pen is nobodys and running 0
}

// pen is who has the pen, as of a connection's output: he sends, and nobody else.
type pen uint8

const (
	nobodys pen = iota
	due         // the goroutine that was started is to take it, unless somebody else does before
	taken       // whoever has taken it sends until there is nothing more
)

func (s *sender) init(io batcher, failed func(*session, error)) {
	s.io, s.failed, s.epoch = io, failed, time.Now()
	s.free.L, s.swapped.L = &s.mu, &s.mu
}

// acquire takes the pen, unless somebody is sending: what is queued from now on
// waits for flush.
func (s *sender) acquire() bool {
	if !s.io.tries() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pen == taken {
		return false
	}
	s.pen = taken
	return true
}

// write queues datagrams, as many of v as there is room for, and sees to it that
// they are sent. Where that is but a moment away, it waits for room: it takes no
// longer than sending does.
func (s *sender) write(x *session, v [][]byte) (n int) {
	at := place{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		m, full := s.queueLocked(x, v, &at)
		n += m
		many := len(s.box.items)
		switch {
		case many == 0:
		case s.pen == taken:
			if full && s.io.tries() && !s.stalled {
				s.swapped.Wait()
				continue
			}
		case s.io.tries() && (many >= writeBatch || s.pen == nobodys && time.Since(s.epoch)-s.last > alone):
			s.pen = taken
			s.sendLocked(noFD)
			if full && !s.stalled {
				continue
			}
		default:
			s.startLocked()
		}
		if full {
			s.waiting = append(s.waiting, x)
		}
		return n
	}
}

// place is how far v has been queued.
type place struct{ slice, off int }

// queueLocked copies datagrams to the outbox, and reports how many bytes of v
// that were.
func (s *sender) queueLocked(x *session, v [][]byte, at *place) (n int, full bool) {
	for at.slice < len(v) {
		if at.off == len(v[at.slice]) {
			at.slice, at.off = at.slice+1, 0
			continue
		}
		used, full := x.queue(&s.box, v[at.slice][at.off:], v[at.slice+1:])
		if full {
			return n, true
		}
		n += used
		at.advance(v, used)
	}
	return n, false
}

// advance moves at n bytes on.
func (at *place) advance(v [][]byte, n int) {
	for ; n > len(v[at.slice])-at.off; at.slice, at.off = at.slice+1, 0 {
		n -= len(v[at.slice]) - at.off
	}
	at.off += n
}

// startLocked leaves the pen to a goroutine.
func (s *sender) startLocked() {
	s.pen = due
	if !s.started {
		s.started = true
		s.running++
		go s.run()
	}
}

// run is the goroutine that sends when nobody else does. It is joined by join.
func (s *sender) run() {
	s.mu.Lock()
	defer s.exitLocked()
	if s.started = false; s.pen == due {
		s.pen = taken
		s.sendLocked(wait)
	}
}

// exitLocked is the last act of a goroutine.
func (s *sender) exitLocked() {
	s.running--
	s.free.Broadcast()
	s.mu.Unlock()
}

// flush sends what is queued, without waiting: if the socket is full, a
// goroutine goes on. The caller has the pen, and loses it.
func (s *sender) flush(fd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sendLocked(fd)
}

// noFD and wait are what a batcher is told in place of a descriptor.
const (
	noFD = -1 // there is none at hand; do not wait
	wait = -2 // wait for the socket to take it
)

// sendLocked sends until the outbox is empty. It gives mu up while it sends. Who
// may not wait is not kept by what others go on to queue.
func (s *sender) sendLocked(fd int) {
	for round := 0; len(s.box.items) > 0; round++ {
		if round == 2 && fd != wait {
			s.startLocked()
			return
		}
		box := s.box
		s.box, s.spare = s.spare, outbox{}
		s.swapped.Broadcast()
		s.mu.Unlock()
		sent := s.io.send(&box, fd, s.failed)
		s.mu.Lock()
		if sent < len(box.items) {
			box.items = box.items[sent:]
			s.stalled = true
			s.swapped.Broadcast()
			s.running++
			go s.finish(box)
			return
		}
		s.sentLocked(&box)
	}
	s.pen = nobodys
	s.last = time.Since(s.epoch)
	s.free.Broadcast()
}

// finish goes on when the socket is full.
func (s *sender) finish(box outbox) {
	s.io.send(&box, wait, s.failed)
	s.mu.Lock()
	defer s.exitLocked()
	s.stalled = false
	s.sentLocked(&box)
	s.sendLocked(wait)
}

// sentLocked keeps the memory of what was sent, and tells who waits for room.
func (s *sender) sentLocked(box *outbox) {
	box.reset()
	s.spare = *box
	waiting := s.waiting
	s.waiting = nil
	if waiting == nil {
		return
	}
	s.mu.Unlock()
	for _, x := range waiting {
		x.writable()
	}
	s.mu.Lock()
}

// join waits until everything is sent, or could not be. Nothing may be queued any
// more.
func (s *sender) join() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.pen != nobodys || s.running > 0 {
		s.free.Wait()
	}
}

// unsent is told what became of a datagram that was not sent.
func (s *socket) unsent(x *session, err error) {
	s.o.Stats.Dropped.Add(1)
	for _, gone := range []error{
		syscall.ECONNREFUSED, syscall.ENOENT, syscall.ECONNRESET, syscall.EDESTADDRREQ, syscall.ENOTCONN,
		syscall.EPROTOTYPE, syscall.ENOTDIR, // something else has come in the place of the path
	} {
		switch {
		case !errors.Is(err, gone):
			continue
		case s.only != nil:
			s.left(err)
		default:
			x.fail(err) // nobody is there any more
		}
		return
	}
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
