package sockopt

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func autobind(c syscall.RawConn) (err error) {
	cerr := c.Control(func(fd uintptr) {
		e := unix.Bind(int(fd), &unix.SockaddrUnix{})
		if e != unix.EINVAL { // bound already
			err = os.NewSyscallError("bind", e)
		}
	})
	if cerr != nil {
		return cerr
	}
	return err
}
