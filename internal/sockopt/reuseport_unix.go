//go:build darwin || freebsd || linux || netbsd || openbsd

package sockopt

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func reusePort(c syscall.RawConn) (err error) {
	cerr := c.Control(func(fd uintptr) {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, reusePortOption, 1))
	})
	if cerr != nil {
		return cerr
	}
	return err
}
