package memnet

import (
	"errors"
	"io"
	"net"
	"syscall"

	"github.com/sockhub/sockhub/internal/transport"
)

// conn is an End as a transport.Conn. It is a type of its own because the two
// interfaces give Read and Write different meanings; there is no more to it, so
// that both views share one state.
//
// It panics where a caller breaks the rules of transport.Conn: two Reads or
// Writes at once, TryRead or TryWritev outside of a turn, WriteNow beside a
// Write, Close under a running call, any call but Kick, Hangup and those for
// addresses after Close. On a descriptor such a fault passes for a lost wake-up or a rare error;
// a test should find it at its cause.
type conn End

var _ transport.Conn = (*conn)(nil)

// Transport returns e as a transport.Conn, the same at every call. Closing it
// closes e. It panics where its caller breaks the rules of transport.Conn.
func (e *End) Transport() transport.Conn { return (*conn)(e) }

// Read implements transport.Conn.
func (c *conn) Read(turn func() (park bool)) error {
	return (*End)(c).run("Read", &c.rd, turn)
}

// Write implements transport.Conn.
func (c *conn) Write(turn func() (park bool)) error {
	return (*End)(c).run("Write", &c.wr, turn)
}

// run runs turns until one does not park.
//
// No wake-up is lost: an edge is forgotten only before a turn that begins
// after, and that turn sees what the edge stood for, since both the edge and
// what it stands for are set under the mutex.
func (e *End) run(name string, s *side, turn func() (park bool)) error {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	e.checkLocked(name)
	if s.busy {
		panic("memnet: " + name + " while another one runs")
	}
	s.busy = true
	defer func() {
		s.busy = false
		s.wake.Broadcast() // for a Write of the net.Conn view
	}()
	for {
		switch {
		case e.closed:
			return e.opError("wait", net.ErrClosed)
		case e.hung:
			return transport.ErrKicked
		case s.kicked:
			s.kicked = false
			return transport.ErrKicked
		}
		s.edge = false
		if !e.turnLocked(s, turn) {
			return nil
		}
		e.parkLocked(s)
	}
}

// turnLocked runs turn without the mutex. It holds it again when it returns,
// also by a panic or Goexit of turn.
func (e *End) turnLocked(s *side, turn func() (park bool)) bool {
	s.turn = true
	e.p.mu.Unlock()
	defer func() {
		e.p.mu.Lock()
		s.turn = false
	}()
	return turn()
}

// parkLocked waits until another turn may find something, or none must run.
func (e *End) parkLocked(s *side) {
	// Of two parks in a row at most one is cut short, so that a probability
	// of 1 is no busy loop, in which a bubble's clock would stand still.
	s.fooled = !s.fooled && e.p.chanceLocked(e.p.opts.Faults.Spurious)
	if s.fooled {
		return
	}
	for !s.edge && !s.kicked && !e.hung && !e.closed {
		s.wake.Wait()
	}
}

// TryRead implements transport.Conn.
func (c *conn) TryRead(p []byte) (n int, drained bool, err error) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.checkLocked("TryRead")
	switch {
	case !c.rd.turn:
		panic("memnet: TryRead outside of Read's turn")
	case len(p) == 0:
		panic("memnet: TryRead into nothing")
	case c.closed:
		return 0, true, net.ErrClosed
	}
	return (*End)(c).recvLocked(p)
}

// TryWritev implements transport.Conn.
func (c *conn) TryWritev(v [][]byte) (n int, err error) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.checkLocked("TryWritev")
	switch {
	case !c.wr.turn:
		panic("memnet: TryWritev outside of Write's turn")
	case c.closed:
		return 0, net.ErrClosed
	}
	return (*End)(c).sendLocked(v)
}

// WriteInTurn implements transport.Conn.
func (c *conn) WriteInTurn(v [][]byte) (n int, ok bool, err error) { return c.WriteNow(v) }

// WriteNow implements transport.Conn.
func (c *conn) WriteNow(v [][]byte) (n int, ok bool, err error) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.checkLocked("WriteNow")
	switch {
	case c.wr.busy:
		panic("memnet: WriteNow beside a Write")
	case c.p.opts.NoWriteNow:
		return 0, false, nil
	case c.closed:
		return 0, true, net.ErrClosed
	}
	n, err = (*End)(c).sendLocked(v)
	return n, true, err
}

// WritesWhole implements transport.Conn.
func (c *conn) WritesWhole() bool { return false }

// Kick implements transport.Conn.
func (c *conn) Kick(which transport.Side) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if c.released {
		return
	}
	s := &c.rd
	if which == transport.WriteSide {
		s = &c.wr
	}
	s.kicked = true
	s.wake.Broadcast()
}

// CloseWrite implements transport.Conn.
func (c *conn) CloseWrite() error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.checkLocked("CloseWrite")
	switch {
	case c.closed:
		return net.ErrClosed
	case c.p.opts.NoCloseWrite:
		return errors.ErrUnsupported
	}
	return (*End)(c).finishLocked()
}

// Hangup implements transport.Conn. What has arrived can still be read, by a
// turn that runs; then it finds io.EOF. The peer sees what was written, and
// io.EOF.
func (c *conn) Hangup() {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if c.released || c.hung || c.closed {
		return
	}
	c.hung = true
	c.rd.raiseLocked()
	c.wr.raiseLocked()
	if !c.reset {
		c.out.fin, c.out.gone = true, c.p.opts.Unix
		c.p.sendLocked(c.out)
	}
}

// Close implements transport.Conn.
func (c *conn) Close() error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.checkLocked("Close")
	if c.rd.busy || c.wr.busy {
		panic("memnet: Close while a Read or Write runs")
	}
	c.released = true
	if c.closed {
		return (*End)(c).opError("close", net.ErrClosed)
	}
	(*End)(c).closeLocked(false)
	return nil
}

// Pending implements transport.Conn. As poll does, it goes on to report the end
// of the input after TryRead has.
func (c *conn) Pending() bool {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.checkLocked("Pending")
	f := c.in
	return f.arrived > f.read || f.finArrived || f.goneArrived || c.reset || c.hung || c.closed
}

// Ended implements transport.Conn.
func (c *conn) Ended() bool {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.checkLocked("Ended")
	return c.in.finArrived || c.in.goneArrived || c.reset
}

// Gone implements transport.Conn. Where both ends have sent a FIN there is
// nothing left that the peer could be there for: io.EOF, as with a descriptor.
func (c *conn) Gone() error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.checkLocked("Gone")
	switch {
	case c.reset:
		return syscall.ECONNRESET
	case c.in.goneArrived, c.p.overLocked():
		return io.EOF
	case c.in.finArrived && c.out.finArrived && c.out.read == c.out.written:
		return io.EOF // a Unix socket's hang-up, all output having been read
	}
	return nil
}

// Unacked implements transport.Conn.
func (c *conn) Unacked() (n int, ok bool) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.checkLocked("Unacked")
	switch f := c.out; {
	case c.p.opts.NoUnacked:
		return 0, false
	case c.p.opts.AckOnArrival:
		return int(f.written - f.arrived), true
	default:
		return int(f.written - f.freed), true
	}
}

func (c *conn) checkLocked(call string) { (*End)(c).checkLocked(call) }

// checkLocked panics if the transport was closed. An End that was closed as a
// net.Conn, behind the transport's back, is no fault of the transport's user.
func (e *End) checkLocked(call string) {
	if e.released {
		panic("memnet: " + call + " after Close")
	}
}
