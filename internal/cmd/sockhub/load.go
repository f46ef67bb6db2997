package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sockhub/sockhub"
)

// load is what all connections of a bench share.
type load struct {
	// Immutable.
	size, depth int
	open        bool // messages leave at their time, whatever has come back
	packets     bool // messages may be lost, and overtake each other
	patience    time.Duration
	fill        []byte // of messages, behind their number
	latencies   *histogram
	progress    *progress

	start   time.Time   // set before the first message
	stopped atomic.Bool // nothing more is sent

	answered, wrong, lost, late atomic.Uint64 // messages; see result
	broken, gone                atomic.Uint64 // connections that have ended: by themselves; in all
	inFlight                    atomic.Int64  // messages
	lastAnswer                  atomic.Int64  // since start, in ns

	mu       sync.Mutex
	firstErr error // of a connection
}

// numberSize is how many bytes of a message are its number, if it has so many.
const numberSize = 8

// loadConn is one connection, and its Handler.
type loadConn struct {
	*load
	conn *sockhub.Conn // set when it is connected; not for the Handler, which may run before

	mu      sync.Mutex
	next    uint64           // number of the message that is sent next
	oldest  uint64           // of the one whose answer comes next, where the order is kept
	flights map[uint64]int64 // when it left, or should have, by number; ns since start
	ending  bool             // we end it
}

func (l *load) connect(ctx context.Context, hub *sockhub.Hub, e endpoint, o sockhub.DialOptions) (*loadConn, error) {
	c := &loadConn{load: l, flights: make(map[uint64]int64)}
	o.Handler = func(*sockhub.Conn) sockhub.Handler { return c }
	conn, err := hub.Dial(ctx, e.network, e.address, &o)
	c.conn = conn
	return c, err
}

// departsLocked notes that a message leaves, which was due at the given time,
// and writes its number.
func (c *loadConn) departsLocked(msg []byte, due time.Duration) {
	if len(msg) >= numberSize {
		binary.LittleEndian.PutUint64(msg, c.next)
	}
	c.flights[c.next] = int64(due)
	c.next++
	c.inFlight.Add(1)
}

// make returns a message that has yet to get its number.
func (l *load) make() []byte {
	msg := make([]byte, l.size)
	if l.size > numberSize {
		copy(msg[numberSize:], l.fill)
	}
	return msg
}

// burst sends the first messages of a closed loop.
func (c *loadConn) burst() error {
	c.mu.Lock() // no answer is looked at before all are sent, so that their order is that of their numbers
	defer c.mu.Unlock()
	for range c.depth {
		msg := c.make()
		c.departsLocked(msg, time.Since(c.start))
		if err := c.conn.TrySend(msg); err != nil { // there is room for all
			return err
		}
	}
	return nil
}

// send sends a message of an open loop, which is due at a time that may have
// passed. It waits for room, and that counts as latency.
func (c *loadConn) send(ctx context.Context, due time.Duration) {
	msg := c.make()
	c.mu.Lock()
	n := c.next
	c.departsLocked(msg, due)
	c.mu.Unlock()
	if err := c.conn.Send(ctx, msg); err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if _, flying := c.flights[n]; flying { // else it was counted when the connection ended
			delete(c.flights, n)
			c.inFlight.Add(-1)
			c.lost.Add(1)
		}
		c.fail(err)
	}
}

// Message is an answer.
func (c *loadConn) Message(r *sockhub.Reply, msg []byte) {
	now := time.Since(c.start)
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.oldest, error(nil)
	if len(msg) != c.size {
		err = fmt.Errorf("an answer has %d bytes, and the messages %d: does the other side echo?", len(msg), c.size)
	} else if c.size >= numberSize {
		n = binary.LittleEndian.Uint64(msg)
		if !bytes.Equal(msg[numberSize:], c.fill) || !c.packets && n != c.oldest {
			err = fmt.Errorf("an answer is not what was sent: does the other side echo?")
		}
	}
	if err != nil {
		c.wrong.Add(1)
		c.fail(err)
		c.ending = true
		r.Close()
		return
	}
	due, flying := c.flights[n]
	if !flying { // given up already, or here twice
		c.late.Add(1)
		return
	}
	delete(c.flights, n)
	c.oldest = n + 1
	c.inFlight.Add(-1)
	c.answered.Add(1)
	c.latencies.add(now - time.Duration(due))
	for last := c.lastAnswer.Load(); int64(now) > last && !c.lastAnswer.CompareAndSwap(last, int64(now)); last = c.lastAnswer.Load() {
	}
	c.progress.add(1, uint64(len(msg)))
	if !c.open && !c.stopped.Load() {
		c.departsLocked(msg, now)
		if err := r.Send(msg); err != nil {
			c.fail(err)
		}
	}
}

// Drained implements sockhub.Handler.
func (c *loadConn) Drained(*sockhub.Reply) {}

// Disconnected is the end, which is no failure if it is we who wanted it.
func (c *loadConn) Disconnected(d sockhub.Disconnection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone.Add(1)
	if !c.ending {
		c.broken.Add(1)
		c.fail(fmt.Errorf("a connection ended: %w", d.Err))
	}
	c.inFlight.Add(-int64(len(c.flights)))
	c.lost.Add(uint64(len(c.flights)))
	clear(c.flights)
}

// finish ends the connection.
func (c *loadConn) finish() {
	c.mu.Lock()
	c.ending = true
	c.mu.Unlock()
	c.conn.Finish()
}

// giveUp replaces datagrams that have not come back in time, in a closed loop;
// it would come to a stand with each of them.
func (c *loadConn) giveUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Since(c.start)
	for n, due := range c.flights {
		if now-time.Duration(due) < c.patience {
			continue
		}
		delete(c.flights, n)
		c.inFlight.Add(-1)
		c.lost.Add(1)
		if !c.open && !c.stopped.Load() {
			msg := c.make()
			c.departsLocked(msg, now)
			if err := c.conn.TrySend(msg); err != nil {
				c.fail(err)
			}
		}
	}
}

// fail keeps the first error, for the end.
func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.firstErr == nil {
		l.firstErr = err
	}
}
