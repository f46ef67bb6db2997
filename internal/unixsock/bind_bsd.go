//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// These systems make the file with mode 0777 less the umask. But a stream
// socket that is bound and does not listen yet refuses every connection, and
// the mode is looked at when somebody connects: so between bind and listen
// there is all the time needed to set it. net has no place to do that between
// the two, which is why the calls are made here. Other ways have a cost: the
// umask belongs to the whole process, and a socket bound elsewhere and then
// renamed tells its peers the old name.

func listen(_ context.Context, lc *net.ListenConfig, network, path string, mode fs.FileMode) (*net.UnixListener, error) {
	fd, err := newSocket(network)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close() // FileListener has its own descriptor
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	if lc.Control != nil {
		if err := lc.Control(network, path, rc); err != nil {
			return nil, err
		}
	}
	cerr := rc.Control(func(fd uintptr) {
		if err = os.NewSyscallError("bind", unix.Bind(int(fd), &unix.SockaddrUnix{Name: path})); err != nil {
			return
		}
		if err = chmod(path, nil, mode); err != nil {
			return
		}
		err = os.NewSyscallError("listen", unix.Listen(int(fd), unix.SOMAXCONN))
	})
	if err := join(cerr, err); err != nil {
		return nil, err
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// listenPacket cannot keep senders away between bind and chmod. adopt, which
// comes next, looks whom the umask let in meanwhile, and gives up if that was
// somebody whom mode excludes.
func listenPacket(ctx context.Context, lc *net.ListenConfig, path string, mode fs.FileMode) (*net.UnixConn, error) {
	c, err := lc.ListenPacket(ctx, "unixgram", path)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// chmod sets the mode of what is at path, itself and not what a symbolic link
// there leads to. Which file that is, adopt finds out.
func chmod(path string, _ fs.FileInfo, mode fs.FileMode) error {
	err := unix.Fchmodat(unix.AT_FDCWD, path, uint32(mode.Perm()), unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, syscall.EINTR) {
		return chmod(path, nil, mode)
	}
	if err != nil {
		return &fs.PathError{Op: "chmod", Path: path, Err: err}
	}
	return nil
}
