package transport

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// firstBuffer is the read buffer of a blocking transport at first. It
	// is held while waiting, as there is nothing to wait on but a Read; so
	// it is small, and grows once growAfter reads in a row have filled it.
	firstBuffer = 4 << 10
	growAfter   = 4

	// maxLayers is how far down NewBlocking looks for what is below: who says that it
	// lies on itself has no end.
	maxLayers = 16

	// joinSize is the size of the read buffer then, and up to which slices
	// are joined for one Write: as much as a TLS record holds.
	joinSize = 16 << 10

	// closeGrace is for how long Close waits for a Read that was under way
	// in the pump goroutine. A Read that Close unblocks returns at once; for
	// one that it does not, waiting longer would be of no use.
	closeGrace = 50 * time.Millisecond
)

// longPast is a deadline that has always expired already.
var longPast = time.Unix(1, 0)

// joinBuffers holds the buffers in which TryWritev joins small slices.
var joinBuffers = sync.Pool{New: func() any { return new([joinSize]byte) }}

// deadliner is the part of net.Conn by which a blocked call can be ended
// without closing.
type deadliner interface {
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// blocking adapts an io.ReadWriteCloser, which can only wait inside a Read or
// Write, to Conn. Its methods may be called concurrently as Conn says.
//
// If it has deadlines that work, as every net.Conn should, the goroutine in
// Conn.Read does the waiting Read itself, between turns, into a buffer from
// which TryRead copies; a kick ends that Read by its deadline.
//
// Else a Read cannot be called off. Then a pump goroutine reads ahead by one
// buffer, and the goroutine in Conn.Read waits for the pump or for a kick.
// Hangup has no other means than to close, and a Write that is under way is
// not interrupted by a kick. If Read does not return on Close either (a
// terminal, some special files), the pump remains, with the buffer that it
// lent to that Read, until something arrives.
type blocking struct {
	// Immutable after construction.
	rwc     io.ReadWriteCloser
	limits  deadliner // nil where there are no deadlines that work
	layered bool      // a record layer such as TLS lies over another connection
	inner   net.Conn  // that connection, if layered, else rwc if it is a net.Conn; or nil
	hang    io.Closer // if layered, inner, or a layer of ours just above it that closes it once
	under   Conn      // inner's descriptor, for its state and to shut it down; or nil

	closeOnce sync.Once // around rwc.Close, which Hangup or Close calls
	closeErr  error
	enders    sync.WaitGroup // what Hangup has started, and Close waits for

	// mu guards what follows. A call of rwc is made under it only to set a
	// deadline, so that a kick and its deadline come and go together.
	mu      sync.Mutex
	changed sync.Cond // mu; a kick, Hangup, or anything new from the pump
	kicked  [2]bool   // by Side; set by Kick, taken by Read and Write
	hung    bool
	closed  bool
	rerr    error // sticky; due when buf is empty
	werr    error // sticky

	// buf is what was read and not yet taken. It is written by whoever reads
	// rwc, who may do so only while it is empty, and by TryRead.
	buf  []byte
	news bool // something was read since the last turn began
	took bool // TryRead was called since then
	told bool // TryRead has returned rerr

	// The pump; it begins with the first wait. room is signalled when buf was
	// emptied and when closed was set. exited is closed by the pump at its end.
	pumping bool
	inRead  bool // the pump is in rwc.Read
	room    sync.Cond
	exited  chan struct{}

	// Owned by whoever reads rwc: the goroutine in Read or the pump.
	space []byte // what buf is a part of
	full  int    // reads in a row that have filled it
}

// NewBlocking returns a transport for rwc that works by blocking Reads and
// Writes. It must be the only user of rwc. See the type's comment for what it
// cannot do without deadlines.
func NewBlocking(rwc io.ReadWriteCloser) Conn {
	c := &blocking{rwc: rwc}
	c.changed.L = &c.mu
	c.room.L = &c.mu
	if d, ok := rwc.(deadliner); ok {
		// This tells deadlines that work from mere methods (an os.File that
		// is not a pipe has those), and removes one that is left from
		// before, which would be taken for a kick.
		if d.SetReadDeadline(time.Time{}) == nil && d.SetWriteDeadline(time.Time{}) == nil {
			c.limits = d
		}
	}
	c.inner, _ = rwc.(net.Conn)
	for x, layers := any(rwc), 0; layers < maxLayers; layers++ {
		l, ok := x.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		inner := l.NetConn()
		if inner == nil {
			break
		}
		c.hang = inner
		if g, ok := x.(*gate); ok {
			c.hang = g
		}
		c.inner, c.layered, x = inner, true, inner
	}
	if _, ok := rwc.(*tls.Conn); ok {
		c.layered = true
	}
	if c.inner != nil {
		c.under = underlying(c.inner)
	}
	return c
}

// Read implements Conn.
//
// No kick is lost: kicked and the deadline are set together under mu, and
// taken back together under mu, here, before Read returns ErrKicked. The flag
// is looked at before each turn; a kick after that look ends the Read that
// follows by its deadline, or the wait by changed.
func (c *blocking) Read(turn func() (park bool)) error {
	for {
		if c.takeKick(ReadSide) {
			return ErrKicked
		}
		c.mu.Lock()
		c.news, c.took = false, false
		c.mu.Unlock()
		if !turn() {
			return nil
		}
		if c.await() {
			c.fill()
		}
	}
}

// await returns when another turn or a kick is due, except that it returns
// true at once if the caller has to fill the buffer first.
//
// A turn is due when something came since the last one began, so nothing that
// comes during a turn is lost; and also if the last one did take something but
// not all. One that took nothing of what it had before, or has seen the end,
// would not do otherwise the next time: only a kick can be news to it.
func (c *blocking) await() (fill bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.hung && !c.kicked[ReadSide] && !c.news {
		unseen := len(c.buf) > 0 || c.rerr != nil && !c.told
		if c.took && unseen {
			break
		}
		if len(c.buf) == 0 && c.rerr == nil {
			if c.limits != nil {
				return true
			}
			c.pumpLocked()
		}
		c.changed.Wait()
	}
	return false
}

// takeKick consumes a kick, if there is one, and reports that there was one or
// that the connection is hung up.
func (c *blocking) takeKick(side Side) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hung {
		return true
	}
	if !c.kicked[side] {
		return false
	}
	c.kicked[side] = false
	c.setDeadlineLocked(side, time.Time{})
	return true
}

func (c *blocking) setDeadlineLocked(side Side, t time.Time) {
	// A failure is that of a closed connection, where every call fails too.
	switch {
	case c.limits == nil:
	case side == ReadSide:
		c.limits.SetReadDeadline(t)
	default:
		c.limits.SetWriteDeadline(t)
	}
}

// fill does one Read of rwc into the buffer, which is empty, in the goroutine
// that is in Read.
func (c *blocking) fill() {
	p := c.spaceForRead()
	n, err := ReadFrom(c.rwc, p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil && c.cutLocked(ReadSide, err) {
		err = nil
	}
	c.haveReadLocked(p, n, err)
}

// cutLocked reports that err is due to a kick or a hang-up, by a deadline that
// will be taken back. A time-out without one is a real error: TCP has those.
func (c *blocking) cutLocked(side Side, err error) bool {
	return (c.hung || c.kicked[side]) && timedOut(err)
}

// timedOut reports that err may be due to a deadline.
func timedOut(err error) bool {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout() && !errors.Is(err, syscall.ETIMEDOUT)
}

// spaceForRead is the memory for the next Read of rwc.
func (c *blocking) spaceForRead() []byte {
	switch {
	case c.space == nil:
		c.space = make([]byte, firstBuffer)
	case c.full >= growAfter && len(c.space) < joinSize:
		c.space = make([]byte, joinSize)
	}
	return c.space
}

// haveReadLocked takes note of what a Read of rwc into p has returned.
func (c *blocking) haveReadLocked(p []byte, n int, err error) {
	if n < len(p) {
		c.full = 0
	} else {
		c.full++
	}
	c.buf, c.rerr, c.news = p[:n], err, true
}

// pumpLocked starts the pump if it is not running. Close joins it.
func (c *blocking) pumpLocked() {
	if c.pumping || c.closed {
		return
	}
	c.pumping = true
	c.exited = make(chan struct{})
	go c.pump()
}

// pump reads rwc whenever the buffer is empty, until an error.
func (c *blocking) pump() {
	defer close(c.exited)
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for len(c.buf) > 0 && !c.closed {
			c.room.Wait()
		}
		if c.closed || c.rerr != nil {
			return
		}
		p := c.spaceForRead()
		n, err := c.readUnlocked(p)
		c.haveReadLocked(p, n, err)
		c.changed.Broadcast()
	}
}

// readUnlocked is rwc.Read without mu, which is held again even when it panics.
func (c *blocking) readUnlocked(p []byte) (n int, err error) {
	c.inRead = true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.inRead = false
	}()
	return ReadFrom(c.rwc, p)
}

var errCount = errors.New("transport: Read returned an impossible count")

// ReadFrom is r.Read of another's making, which may not keep to what a Read may return.
func ReadFrom(r io.Reader, p []byte) (n int, err error) {
	if n, err = r.Read(p); n < 0 || n > len(p) {
		return 0, errCount
	}
	return n, err
}

// TryRead implements Conn.
func (c *blocking) TryRead(p []byte) (n int, drained bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.took = true
	if len(c.buf) == 0 {
		c.told = c.rerr != nil
		return 0, true, c.rerr
	}
	n = copy(p, c.buf)
	c.buf = c.buf[n:]
	if len(c.buf) > 0 {
		return n, false, nil
	}
	c.room.Signal()
	// An error that waits behind the data is not to be parked on.
	return n, c.rerr == nil, nil
}

// Write implements Conn. A turn that parks has met a kick, since TryWritev
// waits until all is written; if it parks for another reason, then for a kick
// to come.
func (c *blocking) Write(turn func() (park bool)) error {
	if c.takeKick(WriteSide) {
		return ErrKicked
	}
	if !turn() {
		return nil
	}
	c.mu.Lock()
	for !c.hung && !c.kicked[WriteSide] {
		c.changed.Wait()
	}
	c.mu.Unlock()
	c.takeKick(WriteSide)
	return ErrKicked
}

// TryWritev implements Conn by blocking Writes: it is short only after a kick.
//
// Small slices are joined, since each Write may become a system call or a TLS
// record; what would fill a buffer by itself is written from where it is.
func (c *blocking) TryWritev(v [][]byte) (n int, err error) {
	for len(v) > 0 && len(v[len(v)-1]) == 0 {
		v = v[:len(v)-1]
	}
	var join *[joinSize]byte
	joined := 0
	defer func() {
		if join != nil {
			joinBuffers.Put(join)
		}
	}()
	for i, b := range v {
		for len(b) > 0 {
			if joined == 0 && (len(b) >= joinSize || i == len(v)-1) {
				m, ok, err := c.write(b)
				n += m
				if !ok {
					return n, err
				}
				break
			}
			if join == nil {
				join = joinBuffers.Get().(*[joinSize]byte)
			}
			m := copy(join[joined:], b)
			joined, b = joined+m, b[m:]
			if joined == joinSize || i == len(v)-1 { // of the last slice nothing is left then
				m, ok, err := c.write(join[:joined])
				n += m
				if !ok {
					return n, err
				}
				joined = 0
			}
		}
	}
	return n, nil
}

// write writes p. ok is true if that was all written, else there was a kick or
// there is an error.
func (c *blocking) write(p []byte) (n int, ok bool, err error) {
	c.mu.Lock()
	err = c.werr
	cut := c.hung || c.kicked[WriteSide]
	c.mu.Unlock()
	if err != nil || cut {
		return 0, false, err
	}
	n, err = c.rwc.Write(p)
	if n < 0 || n > len(p) {
		n, err = 0, errors.New("transport: Write returned an impossible count")
	}
	if n < len(p) && err == nil {
		err = io.ErrShortWrite
	}
	if err == nil {
		return n, true, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cutLocked(WriteSide, err) {
		return n, n == len(p), nil
	}
	c.werr = err
	return n, false, err
}

// WriteNow implements Conn.
func (c *blocking) WriteNow(v [][]byte) (n int, ok bool, err error) { return 0, false, nil }

// WriteInTurn implements Conn.
func (c *blocking) WriteInTurn(v [][]byte) (n int, ok bool, err error) { return 0, false, nil }

// Kick implements Conn.
func (c *blocking) Kick(side Side) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hung || c.closed {
		return
	}
	c.kicked[side] = true
	if side == ReadSide || !c.layered {
		c.setDeadlineLocked(side, longPast)
	}
	c.changed.Broadcast()
}

// WritesWhole implements Conn. A TLS record that was cut off cannot be
// finished: package tls fails every later Write, and others that hide a
// connection may do likewise.
func (c *blocking) WritesWhole() bool { return c.layered || c.limits == nil }

// Waits reports that a reader of c waits in a Read of another's making, and does so with
// its buffer. A Kick interrupts that by a deadline, which some cannot bear: those on
// WebSockets, mostly, are ended by it for good.
func Waits(c Conn) bool {
	_, ok := c.(*blocking)
	return ok
}

// KeepsTrying reports that what writes to c is a Write of another's making, which goes on
// by itself as soon as there is room, and may not survive that it is cut short.
func KeepsTrying(c Conn) bool {
	b, ok := c.(*blocking)
	return ok && b.under == nil
}

// CloseWrite implements Conn. On TLS it is a close_notify, and may wait for
// room for it; Hangup ends that.
func (c *blocking) CloseWrite() error {
	if c.under != nil && !c.layered {
		return c.under.CloseWrite() // which then knows of the FIN
	}
	if w, ok := c.rwc.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Hangup implements Conn. A connection below a record layer is ended directly:
// the layer's own Close would first say goodbye, and wait to be able to.
// Deadlines alone would not do, since the layer sets some itself.
func (c *blocking) Hangup() {
	c.mu.Lock()
	if c.hung || c.closed {
		c.mu.Unlock()
		return
	}
	c.hung = true
	c.setDeadlineLocked(ReadSide, longPast)
	c.setDeadlineLocked(WriteSide, longPast)
	c.changed.Broadcast()
	c.enders.Add(1) // before Close, which sets closed, can wait for it
	c.mu.Unlock()
	defer c.enders.Done()

	h, ok := c.inner.(interface {
		CloseRead() error
		CloseWrite() error
	})
	switch {
	case c.under != nil:
		c.under.Hangup()
	case ok && (c.layered || c.limits != nil):
		// A socket where descriptors cannot be used, or a stream of another's making, which
		// may say goodbye here: Hangup does not wait.
		c.enders.Go(func() {
			h.CloseRead()
			h.CloseWrite()
		})
	case c.hang != nil:
		c.enders.Go(func() { c.hang.Close() })
	default:
		// There is no other way to let the peer know, nor, without
		// deadlines, to end what is under way.
		c.enders.Go(func() { c.closeRWC() })
	}
}

func (c *blocking) closeRWC() error {
	c.closeOnce.Do(func() { c.closeErr = c.rwc.Close() })
	return c.closeErr
}

// Close implements Conn. It joins the pump, unless that is in a Read which
// does not return for the closing: see blocking.
func (c *blocking) Close() error {
	// closed comes first: rwc need not bear a deadline, nor a second Close by
	// way of what is below it, once it was closed.
	c.mu.Lock()
	c.closed = true
	c.room.Signal()
	pumping, inRead := c.pumping, c.inRead
	c.mu.Unlock()
	err := c.closeRWC()
	c.enders.Wait()
	switch {
	case !pumping:
	case !inRead:
		// It sees closed before it reads again.
		<-c.exited
	default:
		grace := time.NewTimer(closeGrace)
		defer grace.Stop()
		select {
		case <-c.exited:
		case <-grace.C:
		}
	}
	return err
}

// Pending implements Conn: the adapter is never in doubt, since it parks in
// the Read itself.
func (c *blocking) Pending() bool { return false }

// Ended implements Conn. What was read ahead may have shown the end; else what is below
// is asked, if it can tell (as packet.Seq can).
func (c *blocking) Ended() bool {
	c.mu.Lock()
	ended := c.rerr != nil
	c.mu.Unlock()
	if ended || c.under != nil {
		return ended || c.under.Ended()
	}
	seq, ok := c.rwc.(interface{ PeerEnded() bool })
	return ok && seq.PeerEnded()
}

// Gone implements Conn.
func (c *blocking) Gone() error {
	c.mu.Lock()
	rerr, werr := c.rerr, c.werr
	c.mu.Unlock()
	switch {
	case werr != nil:
		return &WriteError{werr}
	case rerr != nil && rerr != io.EOF:
		return rerr
	case c.under != nil:
		return c.under.Gone()
	}
	return nil
}

// Unacked implements Conn. For TLS it is in bytes on the wire.
func (c *blocking) Unacked() (n int, ok bool) {
	if c.under == nil {
		return 0, false
	}
	return c.under.Unacked()
}

// Patience implements Prober.
func (c *blocking) Patience() time.Duration { return Patience(c.under) }

// Unanswered implements Prober.
func (c *blocking) Unanswered() (waits bool, tries int, heard time.Duration) {
	return c.under.(Prober).Unanswered()
}
