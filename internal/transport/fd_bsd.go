//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package transport

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"
)

// pendingEvents is what Pending looks for, beside the errors and hang-ups that
// poll always reports. POLLIN includes the end of the input.
const pendingEvents = unix.POLLIN

// endedEvents is what Ended looks for, beside these: nothing. Most of these
// systems say POLLHUP when the peer has ended its output, or both have.
const endedEvents = 0

// enableInq fails: only Linux can tell with a receive how much is left.
func enableInq(fd int) error { return errors.ErrUnsupported }

// receive takes what there is, up to len(p) bytes, without waiting. The socket
// is non-blocking, as all of package net are. It ignores raw: these
// systems are entered through libc, and always tell the scheduler.
func receive(fd int, p []byte, raw bool) (n int, drained bool, errno unix.Errno) {
	for {
		n, err := unix.Read(fd, p)
		switch err := err.(type) {
		case nil:
			return n, false, 0
		case unix.Errno:
			if err != unix.EINTR {
				return 0, true, err
			}
		default:
			return 0, true, unix.EIO // x/sys returns nothing else
		}
	}
}

// send sends v as far as the socket takes it without waiting. It goes on until
// all is sent or a count falls short: stopping before that would park a writer
// on a socket that is not full, and whose next edge never comes.
func send(fd int, v [][]byte, raw bool) (n int, err error) {
	var off int // within v[0]
	for len(v) > 0 {
		// As many whole slices as one call takes, or else a part of one.
		k, size := 0, 0
		for k < len(v) && k < iovMax && len(v[k]) <= sendMax-size {
			size += len(v[k])
			k++
		}
		part := v[:k]
		var one [1][]byte
		if k == 0 || off > 0 {
			one[0] = v[0][off:min(len(v[0]), off+sendMax)]
			part, size = one[:], len(one[0])
			if off += size; off == len(v[0]) {
				k, off = 1, 0
			} else {
				k = 0
			}
		}
		v = v[k:]
		if size == 0 {
			continue
		}
		m, err := sendmsg(fd, part)
		n += m
		if err != nil && err != unix.EAGAIN {
			return n, err
		}
		if m < size {
			return n, nil
		}
	}
	return n, nil
}

func sendmsg(fd int, v [][]byte) (n int, err error) {
	for {
		// No flags: the socket is non-blocking, and the Go runtime turns
		// SIGPIPE of a socket into EPIPE.
		n, err = unix.SendmsgBuffers(fd, v, nil, nil, 0)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// goneLocked is Gone on the descriptor.
func (c *fdConn) goneLocked(fd int) error {
	// Asked about output alone: on some of these systems a hang-up beside
	// POLLIN means the end of input, which is known already.
	revents, err := poll(fd, unix.POLLOUT)
	if err != nil {
		return err
	}
	if err := socketError(fd); err != nil {
		return err
	}
	switch {
	case revents&unix.POLLHUP == 0:
		return nil
	case c.fin:
		// The output is at its end because we have ended it. Whether the
		// peer still reads cannot be seen.
		return nil
	case c.tcp:
		// Only a failure ends our output; a write has consumed its error.
		return unix.ECONNRESET
	}
	return io.EOF
}

// unackedLocked is Unacked on the descriptor.
func (c *fdConn) unackedLocked(fd int) (n int, ok bool) {
	if !c.tcp {
		// Unix sockets hand their output to the peer's buffer, where it
		// cannot be seen.
		return 0, false
	}
	// These systems count the bytes of the send buffer, where a FIN is none.
	n, err := sendQueue(fd)
	return n, err == nil
}

// receiveInq is never called: enableInq fails.
func receiveInq(fd int, p []byte, raw bool) (n int, drained bool, errno unix.Errno) {
	return receive(fd, p, raw)
}
