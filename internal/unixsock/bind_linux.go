package unixsock

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// On Linux, the file that bind makes has the mode of the socket's own inode
// (net/unix/af_unix.c, unix_bind_bsd), less the umask, and fchmod sets that
// mode while the socket has no name yet. So the file is never more open than
// asked for, and a umask that takes something away is made up for afterwards,
// which errs on the safe side meanwhile. The usual alternatives are worse: to
// set the umask is to set it for every file that any thread creates at that
// moment, and a chmod after bind comes too late.

func listen(ctx context.Context, lc *net.ListenConfig, network, path string, mode fs.FileMode) (*net.UnixListener, error) {
	l, err := withMode(lc, mode).Listen(ctx, network, path)
	if err != nil {
		return nil, err
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false) // net unlinks whatever has the name by then
	return u, nil
}

func listenPacket(ctx context.Context, lc *net.ListenConfig, path string, mode fs.FileMode) (*net.UnixConn, error) {
	c, err := withMode(lc, mode).ListenPacket(ctx, "unixgram", path)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// withMode returns a copy of lc whose sockets have the mode when they are
// bound. The user's Control comes first, so that it cannot undo ours.
func withMode(lc *net.ListenConfig, mode fs.FileMode) *net.ListenConfig {
	c := *lc
	c.Control = func(network, address string, rc syscall.RawConn) error {
		if lc.Control != nil {
			if err := lc.Control(network, address, rc); err != nil {
				return err
			}
		}
		var err error
		if cerr := rc.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), uint32(mode.Perm())) }); cerr != nil {
			return cerr
		}
		return os.NewSyscallError("fchmod", err)
	}
	return &c
}

// chmod sets the mode of the file at path if it is the one that info is of. By
// path alone it would follow a symbolic link, and a link placed there would
// give us anybody's file to open up. Linux before 6.6 has no system call for
// it; an O_PATH descriptor, seen through /proc, does the same on all.
func chmod(path string, info fs.FileInfo, mode fs.FileMode) error {
	f, err := os.OpenFile(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer f.Close() // nothing was written
	now, err := f.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(info, now) {
		return fmt.Errorf("the socket was replaced: %w", syscall.EEXIST)
	}
	return os.Chmod("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), mode)
}
