package memnet

import (
	"context"
	"fmt"
	"net"
	"sync"
	"syscall"
)

// DefaultBacklog is the number of connections that wait to be accepted if
// Options.Backlog is zero.
const DefaultBacklog = 128

// Listener is a net.Listener whose connections are made by its method Dial.
// Its methods may be called from any goroutine.
type Listener struct {
	// Immutable.
	opts Options
	addr net.Addr

	mu      sync.Mutex
	wake    sync.Cond // broadcast at every change of what follows
	backlog []*End
	errs    []error // what the next Accepts return, before any connection
	dialed  uint64
	closed  bool
}

var _ net.Listener = (*Listener)(nil)

// Listen returns a Listener for connections with the options o.
func Listen(o *Options) *Listener {
	l := new(Listener)
	if o != nil {
		l.opts = *o
	}
	if l.opts.Backlog <= 0 {
		l.opts.Backlog = DefaultBacklog
	}
	l.addr = l.opts.Local
	if l.addr == nil {
		l.addr = Addr("listener")
	}
	l.wake.L = &l.mu
	return l
}

// Accept implements net.Listener. It returns an *End.
func (l *Listener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case l.closed:
			return nil, l.opError("accept", net.ErrClosed)
		case len(l.errs) > 0:
			err := l.errs[0]
			l.errs = l.errs[1:]
			return nil, l.opError("accept", err)
		case len(l.backlog) > 0:
			e := l.backlog[0]
			l.backlog = l.backlog[1:]
			l.wake.Broadcast()
			return e, nil
		}
		l.wake.Wait()
	}
}

// AcceptError makes the following calls of Accept, one that waits included,
// return errs, one each, in a *net.OpError. Connections wait meanwhile.
func (l *Listener) AcceptError(errs ...error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errs = append(l.errs, errs...)
	l.wake.Broadcast()
}

// Close implements net.Listener. Calls of Accept and Dial that wait return, and
// the connections that nobody accepted are reset.
func (l *Listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return l.opError("close", net.ErrClosed)
	}
	l.closed = true
	l.wake.Broadcast()
	for _, e := range l.backlog {
		e.Reset()
	}
	l.backlog = nil
	return nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return l.addr }

// Dial connects to l, from Options.Remote or an address of its own. It does not
// wait for Accept unless the backlog is full. After Close it fails with
// ECONNREFUSED.
func (l *Listener) Dial(ctx context.Context) (*End, error) {
	return l.DialFrom(ctx, l.opts.Remote)
}

// DialFrom is Dial from the address local.
func (l *Listener) DialFrom(ctx context.Context, local net.Addr) (*End, error) {
	// A sync.Cond cannot wait for a context, so the context wakes it.
	defer context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.wake.Broadcast()
	})()
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case ctx.Err() != nil:
			return nil, l.opError("dial", ctx.Err())
		case l.closed:
			return nil, l.opError("dial", syscall.ECONNREFUSED)
		case len(l.backlog) < l.opts.Backlog:
			l.dialed++
			if local == nil {
				local = Addr(fmt.Sprintf("dialer-%d", l.dialed))
			}
			accepted, dialed := newPair(&l.opts, l.dialed, l.addr, local)
			l.backlog = append(l.backlog, accepted)
			l.wake.Broadcast()
			return dialed, nil
		}
		l.wake.Wait()
	}
}

func (l *Listener) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: l.addr.Network(), Addr: l.addr, Err: err}
}
