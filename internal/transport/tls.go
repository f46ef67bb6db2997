package transport

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// NewTLS returns the TLS connection that wrap makes over nc, of which the bytes
// in first were read before, and the transport for it. wrap is called once.
//
// direct says that TLS never writes for its own sake and then waits for an
// answer, once the handshake is over, which is so without renegotiation. If so,
// and nc has a descriptor to use, nothing waits inside of package tls but the
// handshake: see tlsConn. Else the transport is the blocking adapter.
func NewTLS(nc net.Conn, first []byte, direct bool, wrap func(net.Conn) *tls.Conn) (*tls.Conn, Conn) {
	g := &gate{Conn: nc, first: first}
	c := &tlsConn{gate: g, tls: wrap(g)}
	if direct {
		g.under = newFD(nc)
	}
	if g.under == nil {
		return c.tls, NewBlocking(overGate{c.tls, g})
	}
	return c.tls, c
}

// Handshake runs the handshake of a TLS connection, before any Read, Write or
// WriteNow of its transport. Hangup ends it. It does so too for a tls.Conn that
// NewBlocking was given, or what embeds one: were the handshake left to the first Read,
// a Kick would end it for good.
func Handshake(c Conn) error {
	switch c := c.(type) {
	case *tlsConn:
		if err := c.tls.Handshake(); err != nil {
			return err
		}
		c.gate.open = true
	case *blocking:
		if s, ok := c.rwc.(shaker); ok {
			return s.Handshake()
		}
	}
	return nil
}

// shaker is a tls.Conn, or embeds one. The method Handshake of others may do something
// each time that it is called.
type shaker interface {
	Handshake() error
	ConnectionState() tls.ConnectionState
}

// tlsConn is the transport of a TLS connection over a descriptor. Reading and
// writing do not wait inside of package tls, as they do in the blocking adapter:
// so the reader holds no buffer while it waits, and may write itself.
//
// To package tls the connection below is a gate. Its Read returns a temporary
// error where there is nothing to read, after which package tls goes on where it
// was, as it does after a deadline. Its Write never is short, which package tls
// could not bear: it keeps what the socket does not take, at most one record.
// Until that is out the record counts as not written, and its bytes must be
// given to the transport again (so WritesWhole is true).
type tlsConn struct {
	tls  *tls.Conn
	gate *gate

	hung atomic.Bool

	// Of whoever writes.
	owed int    // bytes of the next TryWritev that are in gate.kept
	end  uint64 // of their record: see gate.out

	mu         sync.Mutex // guards what follows, no call is made under it
	rerr, werr error      // sticky, for Ended and Gone
	said       bool       // our close_notify is out
	moot       bool       // and when it left, theirs had come, and all else was acknowledged
}

// gate is what package tls takes for the connection below.
type gate struct {
	net.Conn        // below, for all that is not here, and for the handshake
	under    Conn   // its transport, after that; nil in the blocking adapter
	first    []byte // of the input, which was read already
	open     bool   // the handshake is over; set before there are several goroutines
	shaken   bool   // likewise, in the blocking adapter

	closing  sync.Once // of Conn, in the blocking adapter: by Hangup, and by package tls
	closeErr error

	dry  bool  // the reader's: the last receive left nothing, as far as is known
	lost error // likewise: of the receive that failed, as a socket tells it once, and package tls may take it for passing

	// mu is held while something is sent, which does not wait: package tls
	// writes from the reader too, when the peer wants new keys.
	mu   sync.Mutex
	late error     // of a Write below that had taken everything; what follows fails with it
	kept *[]byte   // what the socket did not take, or nil; from keptBuffers
	sent int       // of kept
	took uint64    // bytes of all records; those that are kept are the last of them
	one  [1][]byte // what is sent: here it is no allocation
}

// keptBuffers holds buffers for a record with its header and its padding.
var keptBuffers = sync.Pool{New: func() any { b := make([]byte, 0, joinSize+512); return &b }}

// keptMax is what a gate keeps at most: a record of ours, which may be two in old
// versions of TLS, and answers to a peer that wants new keys. One that goes on
// wanting some and reads nothing would make it grow for ever.
const keptMax = 4 * joinSize

var errKept = errors.New("transport: the peer asks for new keys and takes no answer")

// wouldBlock is an error after which package tls can be called again.
type wouldBlock struct{}

func (wouldBlock) Error() string   { return "transport: nothing to read" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

// passing is a time-out, which a kick brings about, as package tls has to see it to go on
// after it: it looks for no error inside of another's, and many others are not temporary.
type passing struct{ error }

func (passing) Timeout() bool   { return true }
func (passing) Temporary() bool { return true }
func (p passing) Unwrap() error { return p.error }

// NetConn returns the connection below, as tls.Conn.NetConn does.
func (g *gate) NetConn() net.Conn { return g.Conn }

// Read implements net.Conn.
func (g *gate) Read(p []byte) (n int, err error) {
	if len(g.first) > 0 {
		n = copy(p, g.first)
		g.first = g.first[n:]
		return n, nil
	}
	switch {
	case !g.open:
		n, err = ReadFrom(g.Conn, p)
		if g.shaken && timedOut(err) {
			err = passing{err}
		}
		return n, err
	case g.lost != nil:
		return 0, g.lost
	case g.dry || len(p) == 0:
		return 0, wouldBlock{}
	}
	n, drained, err := g.under.TryRead(p)
	if n == 0 && err == nil {
		return 0, wouldBlock{}
	}
	g.dry, g.lost = drained, err
	return n, err
}

// Write implements net.Conn.
func (g *gate) Write(p []byte) (n int, err error) {
	if !g.open {
		return g.pass(p)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.kept == nil {
		n, err = g.sendLocked(p)
	}
	if err != nil {
		return n, err
	}
	if g.leftLocked()+len(p)-n > keptMax {
		return n, errKept
	}
	if g.took += uint64(len(p)); n == len(p) {
		return n, nil
	}
	if g.kept == nil {
		g.kept = keptBuffers.Get().(*[]byte)
	}
	*g.kept = append(*g.kept, p[n:]...)
	return len(p), nil
}

// pass is Write in the handshake, and in the blocking adapter. Where there is an error
// package tls takes nothing of a record as written, so that of one that is out comes late.
func (g *gate) pass(p []byte) (n int, err error) {
	if err := g.failed(); err != nil {
		return 0, err
	}
	n, err = g.Conn.Write(p)
	switch {
	case n < len(p) && err == nil:
		err = io.ErrShortWrite // package tls looks at nothing else
	case n == len(p) && err != nil && g.shaken:
		g.mu.Lock()
		defer g.mu.Unlock()
		g.late, err = err, nil
	}
	return n, err
}

// failed is the error that came late, or nil.
func (g *gate) failed() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.late
}

// overGate is the TLS connection in the blocking adapter.
type overGate struct {
	*tls.Conn
	gate *gate
}

// Handshake hides that of tls.Conn.
func (o overGate) Handshake() error {
	err := o.Conn.Handshake()
	o.gate.shaken = err == nil
	return err
}

// Write implements net.Conn. With the error that came late, all was written nevertheless.
func (o overGate) Write(p []byte) (n int, err error) {
	if n, err = o.Conn.Write(p); err == nil {
		err = o.gate.failed()
	}
	return n, err
}

func (g *gate) sendLocked(p []byte) (n int, err error) {
	g.one[0] = p
	n, _, err = g.under.WriteNow(g.one[:])
	g.one[0] = nil
	return n, err
}

// flush sends what is kept, and reports whether nothing is left.
func (g *gate) flush() (all bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.kept == nil {
		return true, nil
	}
	n, err := g.sendLocked((*g.kept)[g.sent:])
	g.sent += n
	if err != nil || g.sent < len(*g.kept) {
		return false, err
	}
	*g.kept = (*g.kept)[:0]
	if cap(*g.kept) <= 2*joinSize {
		keptBuffers.Put(g.kept)
	}
	g.kept, g.sent = nil, 0
	return true, nil
}

// left is how many bytes are kept.
func (g *gate) left() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.leftLocked()
}

// end is the end of what was taken so far, in the count that out goes by.
func (g *gate) end() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.took
}

// out reports whether all before end has left. What is kept behind it are answers to a
// peer that wants new keys.
func (g *gate) out(end uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.took-uint64(g.leftLocked()) >= end
}

func (g *gate) leftLocked() int {
	if g.kept == nil {
		return 0
	}
	return len(*g.kept) - g.sent
}

// SetDeadline, SetReadDeadline and SetWriteDeadline do nothing after the
// handshake: deadlines belong to the transport below, and nothing waits.
func (g *gate) SetDeadline(t time.Time) error {
	if g.open {
		return nil
	}
	return g.Conn.SetDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (g *gate) SetReadDeadline(t time.Time) error {
	if g.open {
		return nil
	}
	return g.Conn.SetReadDeadline(t)
}

// SetWriteDeadline implements net.Conn.
func (g *gate) SetWriteDeadline(t time.Time) error {
	if g.open {
		return nil
	}
	return g.Conn.SetWriteDeadline(t)
}

// Read implements Conn. An edge is that of the socket: a turn that parks has had
// everything before, or waits for a kick.
func (c *tlsConn) Read(turn func() (park bool)) error { return c.gate.under.Read(turn) }

// TryRead implements Conn. It goes on until p is full or there is no more,
// since package tls does not tell what it still has.
func (c *tlsConn) TryRead(p []byte) (n int, drained bool, err error) {
	c.gate.dry = false
	for n < len(p) {
		m, err := c.tls.Read(p[n:])
		n += m
		switch {
		case err == wouldBlock{}:
			if n == 0 && c.gate.dry {
				c.gate.dry = false // only a part of a record came: nothing is certain
				continue
			}
			return n, true, nil
		case err != nil && n > 0:
			return n, false, nil // package tls says it again
		case err != nil:
			c.over(func() { c.rerr = err })
			return 0, true, err
		}
	}
	return n, false, nil
}

// Write implements Conn.
func (c *tlsConn) Write(turn func() (park bool)) error { return c.gate.under.Write(turn) }

// TryWritev implements Conn.
func (c *tlsConn) TryWritev(v [][]byte) (n int, err error) {
	all, err := c.gate.flush()
	if all || c.gate.out(c.end) {
		n, c.owed = c.owed, 0
	}
	if err != nil {
		return n, c.failed(err)
	}
	if !all {
		return n, nil
	}
	r := records{v: v}
	defer r.end()
	r.skip(n)
	for p := r.next(); len(p) > 0; p = r.next() {
		if _, err := c.tls.Write(p); err != nil {
			return n, c.failed(err)
		}
		c.end = c.gate.end() // or of an answer that has come between them, and is little
		if c.gate.out(c.end) {
			n += len(p)
		} else {
			c.owed = len(p)
		}
		if c.gate.left() > 0 {
			return n, nil
		}
	}
	return n, nil
}

func (c *tlsConn) failed(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.werr = err
	return err
}

// records cuts slices into what becomes a record each: as much as that holds.
// What does not lie in one slice is joined.
type records struct {
	v    [][]byte
	off  int // in v[0]
	join *[joinSize]byte
}

func (r *records) skip(n int) {
	for len(r.v) > 0 && n >= len(r.v[0])-r.off {
		n -= len(r.v[0]) - r.off
		r.v, r.off = r.v[1:], 0
	}
	r.off += n
}

// next is the next record's bytes until the next call, or nothing at the end.
func (r *records) next() []byte {
	r.skip(0) // what is empty
	if len(r.v) == 0 {
		return nil
	}
	if b := r.v[0][r.off:]; len(b) >= joinSize || len(r.v) == 1 {
		b = b[:min(len(b), joinSize)]
		r.skip(len(b))
		return b
	}
	if r.join == nil {
		r.join = joinBuffers.Get().(*[joinSize]byte)
	}
	n := 0
	for len(r.v) > 0 && n < joinSize {
		m := copy(r.join[n:], r.v[0][r.off:])
		r.skip(m)
		n += m
	}
	return r.join[:n]
}

func (r *records) end() {
	if r.join != nil {
		joinBuffers.Put(r.join)
	}
}

// WriteNow implements Conn.
func (c *tlsConn) WriteNow(v [][]byte) (n int, ok bool, err error) {
	n, err = c.TryWritev(v)
	return n, true, err
}

// WriteInTurn implements Conn.
func (c *tlsConn) WriteInTurn(v [][]byte) (n int, ok bool, err error) { return c.WriteNow(v) }

// Kick implements Conn.
func (c *tlsConn) Kick(side Side) { c.gate.under.Kick(side) }

// WritesWhole implements Conn.
func (c *tlsConn) WritesWhole() bool { return true }

// closeNap is how long CloseWrite waits before it looks again.
const closeNap = 10 * time.Millisecond

// CloseWrite implements Conn: it sends a close_notify. All was written before,
// so there nearly always is room for one; else it looks again and again, until
// Hangup.
func (c *tlsConn) CloseWrite() error {
	unacked, known := c.Unacked()
	c.mu.Lock()
	c.moot = c.rerr == io.EOF && known && unacked == 0
	c.mu.Unlock()
	if err := c.tls.CloseWrite(); err != nil {
		return err
	}
	for {
		switch all, err := c.gate.flush(); {
		case err != nil:
			return err
		case all:
			c.over(func() { c.said = true })
			return nil
		}
		if c.hung.Load() {
			return ErrKicked
		}
		time.Sleep(closeNap)
	}
}

// over notes the end of one direction. When that of the other one has come too, nothing
// follows a close_notify of either side any more, and the socket's output ends as well: so
// its state tells that the peer has closed, as it does without TLS (see Gone). Not before,
// as a proxy on the way may take a FIN for the end of both directions. An error says that
// the peer is gone, as Gone will.
func (c *tlsConn) over(note func()) {
	c.mu.Lock()
	note()
	both := c.said && c.rerr == io.EOF
	c.mu.Unlock()
	if both {
		c.gate.under.CloseWrite()
	}
}

// Hangup implements Conn. There is no goodbye.
func (c *tlsConn) Hangup() {
	c.hung.Store(true)
	c.gate.under.Hangup()
}

// Close implements Conn. It says goodbye if that was not done, where there is
// room for it.
func (c *tlsConn) Close() error { return c.tls.Close() }

// Close implements net.Conn.
func (g *gate) Close() error {
	if g.under != nil {
		return g.under.Close()
	}
	g.closing.Do(func() { g.closeErr = g.Conn.Close() })
	return g.closeErr
}

// Pending implements Conn.
func (c *tlsConn) Pending() bool { return c.gate.under.Pending() }

// Ended implements Conn.
func (c *tlsConn) Ended() bool {
	c.mu.Lock()
	ended := c.rerr != nil
	c.mu.Unlock()
	return ended || c.gate.under.Ended()
}

// Gone implements Conn.
func (c *tlsConn) Gone() error {
	c.mu.Lock()
	rerr, werr, moot := c.rerr, c.werr, c.moot
	c.mu.Unlock()
	switch {
	case werr != nil:
		return &WriteError{werr}
	case rerr != nil && rerr != io.EOF:
		return rerr
	}
	err := c.gate.under.Gone()
	if err != nil && moot {
		return io.EOF // a reset by our close_notify alone: without TLS none comes of a FIN
	}
	return err
}

// Unacked implements Conn, in bytes on the wire, with what is kept.
func (c *tlsConn) Unacked() (n int, ok bool) {
	n, ok = c.gate.under.Unacked()
	return n + c.gate.left(), ok
}

// Patience implements Prober.
func (c *tlsConn) Patience() time.Duration { return Patience(c.gate.under) }

// Unanswered implements Prober.
func (c *tlsConn) Unanswered() (waits bool, tries int, heard time.Duration) {
	return c.gate.under.(Prober).Unanswered()
}
