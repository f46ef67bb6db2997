package packet

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// batcher receives and sends the datagrams of a socket, in whatever way is the
// fastest there. The receiver alone calls receive, drain, resolve and pause.
type batcher interface {
	// receive waits for datagrams and hands them to s in rounds, until it
	// fails or is interrupted.
	receive(s *socket) error

	// drain hands over what has come already, on a connected socket that has failed: a
	// system tells of an error before it gives that.
	drain(s *socket)

	// resolve completes a source.
	resolve(from *source)

	// send sends what is in box, in order. It tells failed what could not be
	// sent, which counts as sent. It returns how many items it is done with:
	// fewer than all if the socket is full, which is waited for if fd is wait.
	send(box *outbox, fd int, failed func(to *session, err error)) (done int)

	// tries reports that send need not wait.
	tries() bool

	// direct reports that the socket is full for one peer and not for another.
	direct() bool

	// hurry says that what is not sent by then is not to be sent.
	hurry(by time.Time)

	// interrupt makes the running receive, and every later one, return.
	interrupt()

	// pause waits for a moment after a failed receive, unless interrupted.
	pause()

	// close closes the socket, if nothing of the above has. It may be called again.
	close() error
}

func newBatcher(pc net.PacketConn, max int) batcher {
	if b := newFastBatcher(pc, max); b != nil {
		return b
	}
	return newPlain(pc, max)
}

const (
	// flushTime is how long a socket that is closed tries to send what is
	// queued.
	flushTime = 100 * time.Millisecond

	// drainTime is how long drain waits where it has to; drainErrors is how many errors in
	// a row it passes over, each of a datagram that was sent meanwhile.
	drainTime   = 10 * time.Millisecond
	drainErrors = 16

	// stuckTime is how long a write may take where the socket might be full
	// for one peer alone.
	stuckTime = time.Second
)

func soon() time.Time { return time.Now().Add(flushTime) }

// longPast is a deadline that has always expired already.
var longPast = time.Unix(1, 0)

// noDeadline is none.
var noDeadline time.Time

// plain receives and sends one datagram at a time, on any net.PacketConn.
type plain struct {
	pc    net.PacketConn
	udp   *net.UDPConn               // pc, if it is one
	wired bool                       // pc is connected
	last  atomic.Pointer[time.Time]  // when to send no more; nil: not yet
	late  atomic.Pointer[time.Timer] // ends a WriteTo then, where pc has no deadlines
	buf   []byte
	from  source
	pauses

	closing  sync.Once // around pc.Close: not everybody's can be called again
	closeErr error
}

// pauses is how long a receiver waits after failures in a row.
type pauses struct {
	next time.Duration
	once sync.Once
	over chan struct{} // closed by interrupt
}

func newPlain(pc net.PacketConn, max int) *plain {
	p := &plain{pc: pc, buf: make([]byte, bufferSize(pc, max)), pauses: newPauses()}
	p.udp, _ = pc.(*net.UDPConn)
	if c, ok := pc.(net.Conn); ok {
		p.wired = c.RemoteAddr() != nil
	}
	pc.SetDeadline(noDeadline)
	return p
}

// bufferSize has room for one byte more than the longest datagram, so that one
// that is longer is seen to be.
func bufferSize(pc net.PacketConn, max int) int {
	size := MaxUnix
	if _, ok := pc.LocalAddr().(*net.UDPAddr); ok {
		size = 1 << 16
	}
	return min(max, size) + 1
}

// receive implements batcher.
func (p *plain) receive(s *socket) error {
	var (
		n   int
		err error
	)
	p.from = source{key: p.from.key[:0]}
	if p.udp != nil {
		n, p.from.ap, err = p.udp.ReadFromUDPAddrPort(p.buf)
		p.from.key, _ = p.from.ap.AppendBinary(p.from.key)
	} else {
		n, p.from.addr, err = p.pc.ReadFrom(p.buf)
		if p.from.addr != nil {
			p.from.key = append(p.from.key, p.from.addr.String()...)
		}
	}
	if err == nil && (n < 0 || n > len(p.buf)) {
		err = errCount
	}
	if err != nil {
		return err
	}
	p.next = 0
	r := s.begin()
	r.datagram(&p.from, p.buf[:n], n < len(p.buf))
	r.end(noFD)
	return nil
}

// drain implements batcher.
func (p *plain) drain(s *socket) {
	for errs := 0; errs < drainErrors && !s.over.Load(); errs++ {
		if p.pc.SetReadDeadline(time.Now().Add(drainTime)) != nil {
			return // it would wait
		}
		switch err := p.receive(s); {
		case err == nil:
			errs = -1
		case errors.Is(err, os.ErrDeadlineExceeded):
			return
		}
	}
}

// resolve implements batcher.
func (p *plain) resolve(from *source) {
	switch a := from.addr.(type) {
	case nil:
		if from.ap.IsValid() {
			from.addr = net.UDPAddrFromAddrPort(from.ap)
		}
	case *net.UDPAddr:
		from.ap = a.AddrPort()
	}
}

// send implements batcher.
func (p *plain) send(box *outbox, _ int, failed func(*session, error)) (done int) {
	for _, it := range box.items {
		body := box.bytes[it.from:it.end]
		if p.udp == nil && !p.wired {
			by := time.Now().Add(stuckTime)
			if last := p.last.Load(); last != nil && last.Before(by) {
				by = *last
			}
			p.pc.SetWriteDeadline(by)
		}
		var err error
		n := len(body)
		switch {
		case p.wired:
			n, err = p.pc.(net.Conn).Write(body)
		case it.to.addr == nil:
			err = errNoAddress
		default:
			n, err = p.pc.WriteTo(body, it.to.addr)
		}
		if err == nil && n < len(body) {
			err = io.ErrShortWrite
		}
		if err != nil {
			failed(it.to, err)
		}
	}
	return len(box.items)
}

// tries implements batcher.
func (p *plain) tries() bool { return false }

// direct implements batcher.
func (p *plain) direct() bool { return false }

// hurry implements batcher.
func (p *plain) hurry(by time.Time) {
	p.last.Store(&by)
	if p.pc.SetWriteDeadline(by) != nil { // nothing but Close would end a WriteTo
		p.late.Store(time.AfterFunc(time.Until(by), func() { p.close() }))
	}
}

// interrupt implements batcher.
func (p *plain) interrupt() {
	if t := p.late.Load(); t != nil {
		t.Stop() // nobody is in WriteTo any more
	}
	p.once.Do(func() { close(p.over) })
	if p.pc.SetReadDeadline(longPast) != nil {
		p.close() // nothing else would end a ReadFrom
	}
}

// close implements batcher.
func (p *plain) close() error {
	p.closing.Do(func() { p.closeErr = p.pc.Close() })
	return p.closeErr
}

func newPauses() pauses { return pauses{over: make(chan struct{})} }

// pause implements batcher.
func (p *pauses) pause() {
	const first, most = 5 * time.Millisecond, time.Second
	p.next = min(max(2*p.next, first), most)
	select {
	case <-time.After(p.next):
	case <-p.over:
	}
}

var errCount = errors.New("packet: ReadFrom returned an impossible count")

// errNoAddress is why an unbound sender on a Unix socket cannot be answered.
var errNoAddress error = syscall.EDESTADDRREQ
