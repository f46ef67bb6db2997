// Package transport is the ground on which a connection's reader and writer
// stand: one small interface, implemented by socket descriptors (the fast
// path), by TLS over these, by the sessions of a datagram socket (in package
// packet), by memory (for deterministic tests, in package memnet), and by an
// adapter for anything else that reads, writes and closes.
// The reader, writer and hub of package sockhub run unchanged on all of them, so
// that a test on memory exercises the code that serves real sockets.
package transport

import (
	"errors"
	"io"
	"os"
	"time"
)

// ErrKicked is what Conn.Read and Conn.Write return after a Kick or a Hangup.
var ErrKicked = errors.New("transport: kicked")

// Side names one direction of a Conn.
type Side int

const (
	ReadSide Side = iota
	WriteSide
)

// Conn is one end of a connected stream of bytes.
//
// One goroutine at a time may be in Read, one in Write; the other methods may
// be called from any goroutine at any time before Close, except where they
// say otherwise. Kick and Hangup, with which others call a connection's own
// goroutines, may come too late: during and after Close they do nothing.
type Conn interface {
	// Read runs turn at once, and again whenever turn has returned true
	// ("park") and something new may be there: input, its end, an error.
	// Whatever arrives while turn runs makes the following park return at
	// once: no edge is lost. Read returns nil when turn has returned false,
	// and ErrKicked after a Kick(ReadSide), without running turn again.
	// Any other error is a failure to wait, and final.
	Read(turn func() (park bool)) error

	// TryRead receives into p, which is not empty, without waiting. It may
	// be called inside Read's turn only.
	//
	// drained reports that another TryRead would find nothing, so that turn
	// should park. drained with n == 0 is certain. With n > 0 it is a good
	// guess that saves a system call, and can be wrong in one case, a reset
	// behind the data: the caller must see to it that a park that follows
	// and lasts is checked with Pending.
	//
	// At the end of the input n is 0 and err is io.EOF, at every further
	// call too. err is never io.EOF or nil after a reset that the system
	// reports on receiving.
	TryRead(p []byte) (n int, drained bool, err error)

	// Write is Read's counterpart for output.
	Write(turn func() (park bool)) error

	// TryWritev sends the bytes of v in order, as many as fit without
	// waiting, inside Write's turn only. n less than the sum of v's lengths
	// with a nil error means that the transport is full: turn should park.
	// It does not keep or change v. n may be more than 0 beside an error.
	TryWritev(v [][]byte) (n int, err error)

	// WriteNow is one TryWritev from outside Write, by whoever alone writes
	// at the moment; never beside a running Write. ok is false, and nothing
	// was written, where the transport cannot write without waiting.
	WriteNow(v [][]byte) (n int, ok bool, err error)

	// WriteInTurn is WriteNow for the goroutine that is in Read, whether in
	// its turn, where it may cost less, or not.
	WriteInTurn(v [][]byte) (n int, ok bool, err error)

	// Kick makes a running Read or Write (side) return ErrKicked, when its
	// turn has returned, or else the next one. Kicks before that coalesce.
	// A Read that returns ErrKicked has consumed the kick before: a Kick
	// that begins after the return is for the next Read. After Close it does
	// nothing.
	Kick(side Side)

	// WritesWhole reports that what a TryWritev was given cannot be taken
	// back, though it is not counted as written: that call waits until it is,
	// and a Kick does not call it off; or a later one must be given the same
	// bytes again, before any others. Hangup ends it. So TryWritev is given
	// little at a time.
	WritesWhole() bool

	// CloseWrite ends the output (a FIN); input goes on. It is called when
	// everything was written, by whoever alone writes.
	// errors.ErrUnsupported where the transport cannot end one direction.
	CloseWrite() error

	// Hangup ends both directions at once and makes the running and every
	// later Read and Write return ErrKicked. It does not wait and releases
	// nothing. It may be called more than once; after Close it does nothing.
	Hangup()

	// Close releases the descriptor. It is called once, when no Read, Write
	// or WriteNow is running nor will run; none of the others but Kick and
	// Hangup may be called after it began. (net.Conn.Close waits for callbacks
	// that are running, so calling it earlier could wait for a user's handler.)
	Close() error

	// Pending reports, without waiting or consuming anything, that a parked
	// reader has missed something: input, its end, a reset, an error.
	Pending() bool

	// Ended reports, without waiting or consuming anything, that the peer
	// has ended its output or is gone, also while there is input before that
	// end. It may miss the end where the system cannot tell beforehand.
	Ended() bool

	// Gone reports, after TryRead has returned io.EOF, whether the peer is
	// gone altogether rather than done with sending: nil while it may still
	// read; io.EOF where it closed both directions in an orderly way
	// (visible on Unix sockets); else the error, such as ECONNRESET, also if
	// an earlier failed write consumed the socket's own record of it. One that a
	// write has returned is in a *WriteError.
	Gone() error

	// Unacked is the number of bytes written that the peer's kernel (on
	// local transports: the peer) has not taken, a FIN of ours not counted.
	// ok is false where the system cannot tell. If n is not 0 then, it is a measure of
	// these bytes all the same, which falls only when some are taken.
	Unacked() (n int, ok bool)
}

// WriteError is what Conn.Gone says where a write has failed: so who tells of it can tell
// which call that was.
type WriteError struct{ Err error }

func (e *WriteError) Error() string { return e.Err.Error() }
func (e *WriteError) Unwrap() error { return e.Err }

// Prober is what a Conn may implement too. The keep-alive of a system finds a peer whose
// network is gone as long as nothing is under way to it. What is, is sent again and again
// instead, for a quarter of an hour and more; but it can be seen that nobody answers.
type Prober interface {
	// Patience is for how long keep-alive lets the peer's system be silent. 0: it is off,
	// or Unanswered cannot tell.
	Patience() time.Duration

	// Unanswered reports whether something is under way to the peer, or is to be as soon
	// as that has room; how often the system has sent in vain since the peer's answered
	// last; and how long ago that was.
	Unanswered() (waits bool, tries int, heard time.Duration)
}

// Patience is Prober.Patience, and 0 for a Conn that is none.
func Patience(c Conn) time.Duration {
	if p, ok := c.(Prober); ok {
		return p.Patience()
	}
	return 0
}

// FileSender is what a Conn may implement too: it sends from a file without
// reading it.
type FileSender interface {
	// TrySendFile is TryWritev of the next n bytes of a regular file, which
	// are read past. Its error is io.EOF where the file has ended before,
	// ErrNoFile if this file, or any, cannot be sent in this way.
	TrySendFile(file *os.File, n int) (sent int, err error)
}

// ErrNoFile is an error of FileSender.
var ErrNoFile = errors.New("transport: this file has to be read")

// New chooses the transport for rwc: the one that rwc brings, if it has a
// method Transport that returns a Conn; its descriptor, if it is a TCP or Unix
// stream socket of package net and the system's descriptors can be used; else
// the blocking adapter.
//
// rwc cannot be a Conn itself, because Conn's Read and Write take a turn where
// io.Reader's and io.Writer's take bytes. So a stream that brings a transport
// of its own, as those of packages memnet and packet do, is a net.Conn for
// everybody else and hands the transport out on request.
func New(rwc io.ReadWriteCloser) Conn {
	if t, ok := rwc.(interface{ Transport() Conn }); ok {
		return t.Transport()
	}
	if c := newFD(rwc); c != nil {
		return c
	}
	return NewBlocking(rwc)
}
