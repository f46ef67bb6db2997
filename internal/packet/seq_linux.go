package packet

import (
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sockhub/sockhub/internal/transport"
)

// await waits for a packet and returns its size, so that a connection that waits
// holds no buffer.
func (s *Seq) await() (size int, err error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Read(func(fd uintptr) (done bool) {
		for {
			size, _, failed = unix.Recvfrom(int(fd), nil, unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT)
			if failed != unix.EINTR {
				return failed != unix.EAGAIN
			}
		}
	})
	switch {
	case err != nil:
		return 0, err
	case failed != nil:
		return 0, os.NewSyscallError("recvfrom", failed)
	case size == 0:
		return 0, io.EOF
	}
	return size, nil
}

// PeerEnded is transport.PeerEnded of the socket.
func (s *Seq) PeerEnded() bool {
	raw, err := s.SyscallConn()
	return err != nil || transport.PeerEnded(raw)
}
