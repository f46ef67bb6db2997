package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
)

// Seq is a connection of network unixpacket as a stream of frames, as sessions
// are. One goroutine may read and another write.
//
// The system cannot tell an empty packet from the end: nobody can send one.
type Seq struct {
	*net.UnixConn
	max     int
	tooLong error // what Read returns for a packet longer than max

	reset error  // that the peer closed before it had read all; told behind what it has sent
	in    []byte // the frame that is being read
	buf   []byte // in lies in it
	part  []byte // the beginning of a frame that Write was given no more of yet
}

// NewSeq makes a Seq of a connection, which it owns from now on. tooLong is the
// error of a packet longer than max bytes, which ends the connection.
func NewSeq(c *net.UnixConn, max int, tooLong error) *Seq {
	c.SetWriteBuffer(max) // or as much of it as the system allows
	return &Seq{UnixConn: c, max: max, tooLong: tooLong}
}

// Read implements io.Reader.
func (s *Seq) Read(p []byte) (n int, err error) {
	if len(s.in) == 0 {
		if err := s.next(); err != nil {
			return 0, err
		}
	}
	n = copy(p, s.in)
	if s.in = s.in[n:]; len(s.in) == 0 && cap(s.buf) > 16<<10 {
		s.buf = nil // while it waits
	}
	return n, nil
}

// next receives one packet. Linux tells of a reset once, and before it gives the
// packets that came first.
func (s *Seq) next() error {
	for {
		err := s.receive()
		switch {
		case s.reset == nil && errors.Is(err, syscall.ECONNRESET):
			s.reset = err
		case s.reset != nil && err == io.EOF:
			return s.reset
		default:
			return err
		}
	}
}

func (s *Seq) receive() error {
	size, err := s.await()
	if err != nil {
		return err
	}
	if size > s.max {
		return fmt.Errorf("%w: a packet of %d bytes", s.tooLong, size)
	}
	if cap(s.buf) < HeaderSize+size+1 {
		s.buf = make([]byte, HeaderSize+size+1)
	}
	s.buf = s.buf[:HeaderSize+size+1]
	n, err := s.UnixConn.Read(s.buf[HeaderSize:])
	if err != nil {
		return err
	}
	if n > s.max {
		return fmt.Errorf("%w: a packet of more than %d bytes", s.tooLong, s.max)
	}
	binary.LittleEndian.PutUint32(s.buf, uint32(n))
	s.in = s.buf[:HeaderSize+n]
	return nil
}

var errEmpty = errors.New("an empty message on unixpacket, which has none")

// Write implements io.Writer. p need not consist of whole frames.
func (s *Seq) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		m, err := s.write(p)
		n, p = n+m, p[m:]
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// write sends the packet that p begins with, or part and p are, or adds all of p
// to part.
func (s *Seq) write(p []byte) (n int, err error) {
	var frame []byte
	if len(s.part) > 0 {
		want := HeaderSize - len(s.part)
		if want <= 0 {
			want += frameSize(s.part)
		}
		if len(s.part) < HeaderSize || len(p) < want {
			n = min(want, len(p))
			s.part = append(s.part, p[:n]...)
			if len(s.part) != HeaderSize || frameSize(s.part) > 0 {
				return n, nil
			}
			return n, errEmpty
		}
		frame = append(s.part, p[:want]...)
		n = want
	} else {
		if len(p) < HeaderSize || len(p) < HeaderSize+frameSize(p) {
			s.part = append(s.part, p...)
			return len(p), nil
		}
		n = HeaderSize + frameSize(p)
		frame = p[:n]
	}
	if len(frame) == HeaderSize {
		return 0, errEmpty
	}
	m, err := s.UnixConn.Write(frame[HeaderSize:])
	if err != nil {
		return 0, err
	}
	if m < len(frame)-HeaderSize {
		return 0, io.ErrShortWrite
	}
	s.part = nil
	return n, nil
}
