package memnet

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// End is one end of a connection: a net.Conn with ordinary blocking calls, and
// with Transport for code that wants to wait by itself. Its methods may be
// called from any goroutine.
//
// Errors other than io.EOF are *net.OpErrors around what a socket would
// report: syscall.ECONNRESET, syscall.EPIPE, net.ErrClosed,
// os.ErrDeadlineExceeded.
type End struct {
	// Immutable.
	p             *pair
	index         int
	in, out       *flow
	local, remote net.Addr

	// Guarded by p.mu.
	rd, wr   side
	closed   bool  // by Close or Reset
	released bool  // by the transport's Close
	hung     bool  // by Hangup
	reset    bool  // a reset arrived
	sockErr  error // the socket's record of it, which the next failing call takes
	ended    error // what reads reported at the end of the input; they repeat it
}

// side is what an End needs for waiting in one direction. All of it is guarded
// by the pair's mutex, which is wake.L.
type side struct {
	wake sync.Cond // broadcast at every change that a waiter looks for

	// For the transport.
	busy   bool // a Read or Write runs; also taken by the net.Conn view's Write
	turn   bool // its turn runs
	edge   bool // something may be new since the last park, or the first turn
	kicked bool
	fooled bool // the last park was cut short for nothing

	// For the net.Conn view.
	expired bool        // the deadline has passed
	timer   *time.Timer // to the deadline; nil if there is none to come
}

var _ net.Conn = (*End)(nil)

// raiseLocked marks that something is new, and wakes whoever waits.
func (s *side) raiseLocked() {
	s.edge = true
	s.wake.Broadcast()
}

// Read implements net.Conn.
func (e *End) Read(b []byte) (int, error) {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	for {
		if err := e.usableLocked(&e.rd); err != nil {
			return 0, e.opError("read", err)
		}
		if len(b) == 0 {
			return 0, nil
		}
		n, _, err := e.recvLocked(b)
		if n > 0 || err != nil {
			return n, e.opError("read", err)
		}
		e.rd.wake.Wait()
	}
}

// Write implements net.Conn. Concurrent writes do not mix.
func (e *End) Write(b []byte) (n int, err error) {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	for e.wr.busy {
		if err := e.usableLocked(&e.wr); err != nil {
			return 0, e.opError("write", err)
		}
		e.wr.wake.Wait()
	}
	e.wr.busy = true
	defer func() {
		e.wr.busy = false
		e.wr.wake.Broadcast()
	}()
	for {
		if err := e.usableLocked(&e.wr); err != nil {
			return n, e.opError("write", err)
		}
		e.wr.edge = false
		k, err := e.sendLocked([][]byte{b[n:]})
		n += k
		if n == len(b) || err != nil {
			return n, e.opError("write", err)
		}
		for !e.wr.edge && e.usableLocked(&e.wr) == nil {
			e.wr.wake.Wait()
		}
	}
}

// usableLocked is the error of a call that must not go on, or nil.
func (e *End) usableLocked(s *side) error {
	switch {
	case e.closed:
		return net.ErrClosed
	case s.expired:
		return os.ErrDeadlineExceeded
	}
	return nil
}

// CloseWrite ends the output, as a *net.TCPConn's does: the peer reads what was
// written and then io.EOF.
func (e *End) CloseWrite() error {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	if e.closed {
		return e.opError("close", net.ErrClosed)
	}
	return e.opError("close", e.finishLocked())
}

// Close implements net.Conn. It does not wait for the peer to read. If there is
// input that was not read, the peer sees a reset instead of the end of its
// input.
func (e *End) Close() error {
	return e.close(false)
}

// Reset ends the connection as a peer does whose process or host dies, or which
// closes with SO_LINGER at 0. The other end reads what has arrived there, then
// gets ECONNRESET; what Faults still hold back is lost.
func (e *End) Reset() error {
	return e.close(true)
}

func (e *End) close(abort bool) error {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	if e.closed {
		return e.opError("close", net.ErrClosed)
	}
	e.closeLocked(abort)
	return nil
}

func (e *End) closeLocked(abort bool) {
	p := e.p
	e.closed = true
	for _, s := range []*side{&e.rd, &e.wr} {
		e.setDeadlineLocked(s, time.Time{})
		s.wake.Broadcast()
	}
	switch unread := e.in.arrived > e.in.read; {
	case e.reset:
		// There is nobody to tell.
	case abort || unread:
		e.out.gone = p.opts.Unix
		p.resetLocked(e.out)
	default:
		e.out.fin, e.out.gone = true, p.opts.Unix
		p.sendLocked(e.out)
	}
	if p.ends[0].closed && p.ends[1].closed {
		p.stopLocked()
	}
}

// LocalAddr implements net.Conn.
func (e *End) LocalAddr() net.Addr { return e.local }

// RemoteAddr implements net.Conn.
func (e *End) RemoteAddr() net.Addr { return e.remote }

// SetDeadline implements net.Conn. Deadlines are for the net.Conn view alone:
// the transport is kicked instead.
func (e *End) SetDeadline(t time.Time) error {
	return e.setDeadline(t, &e.rd, &e.wr)
}

// SetReadDeadline implements net.Conn.
func (e *End) SetReadDeadline(t time.Time) error {
	return e.setDeadline(t, &e.rd)
}

// SetWriteDeadline implements net.Conn.
func (e *End) SetWriteDeadline(t time.Time) error {
	return e.setDeadline(t, &e.wr)
}

func (e *End) setDeadline(t time.Time, sides ...*side) error {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	if e.closed {
		return e.opError("set", net.ErrClosed)
	}
	for _, s := range sides {
		e.setDeadlineLocked(s, t)
	}
	return nil
}

func (e *End) setDeadlineLocked(s *side, t time.Time) {
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	wait := time.Until(t)
	s.expired = !t.IsZero() && wait <= 0
	if s.expired {
		s.wake.Broadcast()
	}
	if t.IsZero() || s.expired {
		return
	}
	// Stop cannot take back a call that has begun, so a timer must see that
	// it is still the one that counts. The function starts before AfterFunc
	// returns at the earliest, and then waits for the mutex.
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		e.p.mu.Lock()
		defer e.p.mu.Unlock()
		if s.timer == timer {
			s.timer, s.expired = nil, true
			s.wake.Broadcast()
		}
	})
	s.timer = timer
}

// recvLocked is what a receive does that does not wait. drained is as in
// transport.Conn's TryRead. b is not empty.
func (e *End) recvLocked(b []byte) (n int, drained bool, err error) {
	f, faults := e.in, &e.p.opts.Faults
	if n = int(min(int64(len(b)), f.arrived-f.read)); n > 0 {
		n = e.p.shortenLocked(n, faults.ShortRead)
		f.takeLocked(b, n)
		e.p.freeLocked(f)
		// The kernel counts a FIN as one more byte to come (tcp_inq_hint),
		// but a reset as nothing.
		drained = f.read == f.arrived && !f.finArrived && !e.p.opts.Unix
		return n, drained && !e.p.chanceLocked(faults.Blind), nil
	}
	if e.ended == nil {
		switch {
		case f.finArrived && !(e.p.opts.Unix && e.sockErr != nil):
			e.ended = io.EOF
		case e.sockErr != nil:
			e.ended, e.sockErr = e.sockErr, nil
		case e.reset || e.hung || f.goneArrived:
			e.ended = io.EOF
		}
	}
	return 0, true, e.ended
}

// sendLocked is what a send does that does not wait. If it returns less than
// the length of v and no error, the write side gets an edge when to try again.
func (e *End) sendLocked(v [][]byte) (n int, err error) {
	p, f, faults := e.p, e.out, &e.p.opts.Faults
	switch {
	case p.opts.Unix && (f.fin || e.in.goneArrived):
		// unix_stream_sendmsg looks at the shutdown first and leaves the
		// socket's error for the reader.
		return 0, syscall.EPIPE
	case e.sockErr != nil:
		err, e.sockErr = e.sockErr, nil
		return 0, err
	case f.fin || e.reset:
		return 0, syscall.EPIPE
	}
	total := 0
	for _, b := range v {
		total += len(b)
	}
	if total == 0 {
		return 0, nil
	}
	n = min(total, f.roomLocked())
	again := false // something else than room limits the write
	if m := p.shortenLocked(n, faults.ShortWrite); m < n {
		n, again = m, true
	}
	if at := faults.FailWriteAt[e.index]; at > 0 && f.written+int64(n) >= at {
		n = int(at - f.written)
		if again = n < total; again && (n == 0 || p.chanceLocked(0.5)) {
			err = faults.WriteError
		}
	}
	broken := false
	if at := faults.ResetAt[e.index]; at > 0 && f.written+int64(n) >= at {
		// No more room will do: the reset, which may take its time to
		// come back, is what wakes the writer.
		n, broken, again = int(at-f.written), true, false
	}
	f.putLocked(v, n)
	switch {
	case n == total || err != nil:
	case again:
		e.wr.raiseLocked()
	default:
		f.full = true
	}
	switch {
	case broken:
		p.breakLocked(f)
	case n > 0:
		p.sendLocked(f)
	}
	return n, err
}

// finishLocked ends the output.
func (e *End) finishLocked() error {
	switch {
	case e.reset:
		return syscall.ENOTCONN
	case e.out.fin:
		return nil
	}
	e.out.fin = true
	e.p.sendLocked(e.out)
	return nil
}

// resetArrivedLocked ends the connection for e. In the state CLOSE_WAIT, after
// the peer's FIN, the error is EPIPE (tcp_reset).
func (e *End) resetArrivedLocked() {
	e.reset = true
	e.sockErr = syscall.ECONNRESET
	if e.in.finArrived && !e.p.opts.Unix {
		e.sockErr = syscall.EPIPE
	}
}

// opError gives err the form in which package net reports it. nil and io.EOF
// stay what they are.
func (e *End) opError(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return &net.OpError{Op: op, Net: e.local.Network(), Source: e.local, Addr: e.remote, Err: err}
}
