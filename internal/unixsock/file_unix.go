//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package unixsock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// addrLen is the room for a name in a socket address. A path needs one byte of
// it for a final zero; not every system insists, but tools do.
const addrLen = len(unix.RawSockaddrUnix{}.Path)

// open makes a socket: through bind if it has a file, which the returned file
// then stands for, else through plain.
func open[S io.Closer](ctx context.Context, network, path string, mode fs.FileMode, bind func(fs.FileMode) (S, error), plain func() (S, error)) (S, *file, error) {
	var none S
	if err := ctx.Err(); err != nil {
		return none, nil, err
	}
	if isAbstract(path) {
		if runtime.GOOS != "linux" && runtime.GOOS != "android" {
			return none, nil, fmt.Errorf("abstract names on %s: %w", runtime.GOOS, errors.ErrUnsupported)
		}
		if len(path) > addrLen {
			return none, nil, tooLong(path, addrLen)
		}
		if mode != 0 {
			return none, nil, fmt.Errorf("mode %v for an abstract name, to which everybody can connect: %w", mode, syscall.EINVAL)
		}
		s, err := plain()
		return s, nil, err
	}
	switch {
	case path == "":
		// Linux would choose an abstract name, which nobody asked for.
		return none, nil, fmt.Errorf("no path: %w", syscall.EINVAL)
	case strings.Contains(path, "\x00"):
		// The system would end the name there.
		return none, nil, fmt.Errorf("the path %q has a zero byte: %w", path, syscall.EINVAL)
	case len(path) > addrLen-1:
		return none, nil, tooLong(path, addrLen-1)
	}

	mode, err := permissions(mode)
	if err != nil {
		return none, nil, err
	}
	f, err := lock(ctx, path)
	if err != nil {
		return none, nil, err
	}
	if err := f.clear(network, path); err != nil {
		return none, nil, join(err, f.unlock())
	}
	s, err := bind(mode)
	if err != nil {
		// If it was listen that failed, a dead socket is left, which the
		// next call removes. We could not tell it from another's here.
		return none, nil, join(err, f.unlock())
	}
	if err := f.adopt(mode); err != nil {
		return none, nil, join(err, f.remove(), s.Close(), f.unlock())
	}
	return s, f, nil
}

func tooLong(path string, limit int) error {
	return fmt.Errorf("the name has %d bytes, a socket address has room for %d: %w", len(path), limit, syscall.ENAMETOOLONG)
}

// A file is a socket's name in the file system, and the lock on it.
type file struct {
	path string      // absolute, since the process may change its directory before Close
	made fs.FileInfo // of the socket that we bound; nil before that

	mu sync.Mutex // guards fd: Close may be called concurrently
	fd int        // of the lock file; -1 once unlocked
}

// lock takes the lock on path. It never waits for another holder.
func lock(ctx context.Context, path string) (*file, error) {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs // else Close does its best with what we were given
	}
	f := &file{path: path, fd: -1}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		fd, ours, err := lockOnce(f.lockPath())
		if err != nil {
			return nil, err
		}
		if ours {
			f.fd = fd
			return f, nil
		}
		// The file was removed before we had the lock on it, which means
		// that its holder closed in this very moment. The next round finds
		// another file or makes one, so that of all who race here, one
		// gets on in every round.
	}
}

func (f *file) lockPath() string { return f.path + ".lock" }

// lockOnce opens and locks the file of the given name. ours is false, and the
// file closed, if the name no longer leads to it.
func lockOnce(name string) (fd int, ours bool, err error) {
	// No link is followed, in a directory where others may place one, and a
	// fifo does not block us. Nobody but its owner may open the file: anyone
	// who can open it can lock it, and so keep servers from starting.
	const flags = unix.O_RDWR | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	err = retry(func() (err error) { fd, err = unix.Open(name, flags, 0o600); return err })
	if err != nil {
		// Systems have many words for a link, a directory or a device here.
		if info, e := os.Lstat(name); e == nil && !info.Mode().IsRegular() {
			return -1, false, fmt.Errorf("%s is %s and cannot be the lock file: %w", name, kind(info.Mode()), syscall.EEXIST)
		}
		return -1, false, &fs.PathError{Op: "open lock file", Path: name, Err: err}
	}
	ours, err = lockFile(name, fd)
	if !ours {
		_ = unix.Close(fd) // the error that matters is the one returned
		fd = -1
	}
	return fd, ours, err
}

// lockFile is lockOnce with the file open.
func lockFile(name string, fd int) (ours bool, err error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return false, &fs.PathError{Op: "stat lock file", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != 0 {
		// It would be removed in the end, and somebody's data with it.
		return false, fmt.Errorf("%s is not an empty regular file and cannot be the lock file: %w", name, syscall.EEXIST)
	}
	err = retry(func() error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return false, fmt.Errorf("a server has locked %s: %w", name, syscall.EADDRINUSE)
	case err != nil:
		return false, &fs.PathError{Op: "lock", Path: name, Err: err}
	}
	ours, err = leadsTo(name, fd)
	if err != nil {
		return false, &fs.PathError{Op: "stat lock file", Path: name, Err: err}
	}
	if ours && st.Mode&0o600 != 0o600 {
		// An unusual umask: without this, the file that a crash leaves
		// could not be opened again.
		if err := unix.Fchmod(fd, 0o600); err != nil {
			return false, &fs.PathError{Op: "chmod lock file", Path: name, Err: err}
		}
	}
	return ours, nil
}

// leadsTo reports whether a name leads to the open file fd.
func leadsTo(name string, fd int) (bool, error) {
	var byName, byFD unix.Stat_t
	if err := retry(func() error { return unix.Fstat(fd, &byFD) }); err != nil {
		return false, err
	}
	err := retry(func() error { return unix.Lstat(name, &byName) })
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil && byName.Dev == byFD.Dev && byName.Ino == byFD.Ino, err
}

// unlock removes the lock file and lets go of the lock, in this order: see the
// package's comment. Calls after the first do nothing.
func (f *file) unlock() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd < 0 {
		return nil
	}
	fd := f.fd
	f.fd = -1
	// Some cleaner of temporary files may have removed our file, and another
	// server may have made its own since.
	same, err := leadsTo(f.lockPath(), fd)
	if same {
		err = unlink(f.lockPath())
	}
	return join(err, unix.Close(fd))
}

// clear makes sure that there is nothing at the path, by removing a dead
// socket. addr is the path as it was given, which fits into an address.
func (f *file) clear(network, addr string) error {
	before, err := os.Lstat(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if before.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("there is %s at the path, not a socket: %w", kind(before.Mode()), syscall.EEXIST)
	}
	var ours *os.SyscallError
	switch err := probe(network, addr); {
	case err == nil:
		return fmt.Errorf("a server is listening: %w", syscall.EADDRINUSE)
	case errors.As(err, &ours):
		return err // there was nothing to connect with, which tells nothing of the path
	case errors.Is(err, unix.ECONNREFUSED):
		// Nobody has the socket of this file open. (Or, on systems other
		// than Linux, its backlog is full; only the lock can tell there.)
	case errors.Is(err, unix.ENOENT):
		return nil // its server closed meanwhile
	default:
		// A full backlog, a socket of another type, one that we may not
		// connect to: all of these can be alive.
		return fmt.Errorf("there is a socket that may be in use (connecting gives %q): %w", err, syscall.EADDRINUSE)
	}
	// What has come in its place meanwhile, from a server that takes no lock,
	// was not probed.
	now, err := os.Lstat(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !os.SameFile(before, now) {
		return fmt.Errorf("a server has just replaced a dead socket: %w", syscall.EADDRINUSE)
	}
	return unlink(f.path)
}

func kind(mode fs.FileMode) string {
	switch {
	case mode.IsRegular():
		return "a regular file"
	case mode.IsDir():
		return "a directory"
	case mode&fs.ModeSymlink != 0:
		return "a symbolic link" // wherever it leads: who made it may lead it elsewhere
	case mode&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	default:
		return "a device"
	}
}

// probe connects to addr and closes the connection. It does not block: a Unix
// socket's connect succeeds or fails at once. Its error is an Errno, or that of
// newSocket.
func probe(network, addr string) error {
	fd, err := newSocket(network)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }() // it was made for the connect's result alone
	return retry(func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: addr}) })
}

// newSocket returns a non-blocking socket that children do not inherit. Not
// every system has flags to ask for that at once; ForkLock keeps os/exec from
// forking in between. Its error is, or wraps, an *os.SyscallError.
func newSocket(network string) (int, error) {
	typ := unix.SOCK_STREAM
	switch network {
	case "unixpacket":
		typ = unix.SOCK_SEQPACKET
	case "unixgram":
		typ = unix.SOCK_DGRAM
	}
	syscall.ForkLock.RLock()
	fd, err := unix.Socket(unix.AF_UNIX, typ, 0)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return -1, join(os.NewSyscallError("setnonblock", err), unix.Close(fd))
	}
	return fd, nil
}

// adopt notes which file was bound and makes sure of its mode. What the umask
// took away is given back here. What bind gave beyond mode cannot be taken back:
// somebody may be connected by it.
func (f *file) adopt(mode fs.FileMode) error {
	info, err := os.Lstat(f.path)
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s has come in the place of the socket: %w", kind(info.Mode()), syscall.EEXIST)
	}
	f.made = info
	got := info.Mode().Perm()
	if got == mode {
		return nil
	}
	// To connect or to send takes write permission, and nothing else does.
	if excess := got &^ mode & 0o222; excess != 0 {
		return fmt.Errorf("the socket was open to others (%v) before mode %v could be set; a stricter umask helps, or a private directory with a mode that lets everybody write: %w", got, mode, errors.ErrUnsupported)
	}
	if err := chmod(f.path, info, mode); err != nil {
		return err
	}
	if info, err = os.Lstat(f.path); err != nil {
		return err
	}
	if got := info.Mode().Perm(); got != mode {
		return fmt.Errorf("the file system gives the socket mode %v instead of %v: %w", got, mode, errors.ErrUnsupported)
	}
	return nil
}

// remove unlinks the socket, if it is ours, while it is open and locked.
func (f *file) remove() error {
	if f.made == nil {
		return nil
	}
	now, err := os.Lstat(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !os.SameFile(f.made, now) {
		return nil
	}
	return unlink(f.path)
}

// unlink is not os.Remove, which removes empty directories as well.
func unlink(path string) error {
	err := retry(func() error { return unix.Unlink(path) })
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &fs.PathError{Op: "unlink", Path: path, Err: err}
}

// retry repeats a system call that a signal interrupted: the runtime sends
// signals for preemption, and network file systems let them through.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
