// Package unixsock listens on Unix sockets in the file system so that servers
// neither steal each other's sockets nor trip over dead ones, and so that the
// mode of the file holds from the first moment at which somebody can connect.
//
// On Linux, Android, Darwin, iOS and the BSDs, Listen(path) does this:
//
//  1. lock path + ".lock", and keep the lock as long as the listener lives;
//  2. look at what is at path: a socket that refuses connections is dead and
//     removed, anything else is left alone and is an error;
//  3. bind, with the file mode in force (bind_linux.go, bind_bsd.go: how);
//  4. note which inode that made. Close unlinks this one and no other.
//
// # The lock
//
// Between looking and binding another server may do the same; without a lock,
// the slower one takes the faster one's fresh socket for dead, in the moment
// between its bind and its listen, and removes it. The lock is flock's: it ends
// with the process, however that ends. Holding it for the listener's life, not
// only while starting, costs one descriptor and gives three things: a second
// server fails at once, nobody ever waits for the lock (a stopped process could
// hold it for hours, and Close must not hang), and Close removes the socket
// under the lock without having to get it first.
//
// Close also removes the lock file, so that a clean end leaves nothing behind.
// Removing a lock file is a known race (one process waits for the lock on an
// inode that another unlinks, gets it, and a third locks a new file of the same
// name) and safe here because of two rules: only the holder of the lock removes
// the file, and who gets the lock makes sure afterwards that the name still
// leads to the inode that it locked, and starts over if not. A crash leaves an
// empty lock file, which the next server locks and in the end removes.
//
// A server that does not use this package takes no lock. It is still protected
// by step 2 once it listens, and we from it by the inode.
//
// # Elsewhere
//
// On Windows, and on systems not named above, the net package does the work:
// a dead file has to be removed by hand, and access is what the directory
// grants, so a mode is an error. Abstract names (with a leading @) exist on
// Linux and Android alone.
package unixsock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// DefaultMode is the mode of a socket file unless another is asked for: its
// owner alone may connect.
const DefaultMode fs.FileMode = 0o600

// A Listener is a *net.UnixListener that owns its file. As with any
// net.Listener, its methods may be called concurrently.
type Listener struct {
	*net.UnixListener
	owned
}

// A PacketConn is a *net.UnixConn for datagrams that owns its file. Its
// methods may be called concurrently.
type PacketConn struct {
	*net.UnixConn
	owned
}

// Listen listens on network "unix" or "unixpacket" at a path, or on Linux at an
// abstract name, which is one with a leading @ and has no file. ctx bounds the
// call. lc may be nil; its Control is called, like always, before the socket is
// bound.
//
// mode has permission bits alone, and 0 means DefaultMode. The file has exactly
// this mode when Listen returns, whatever the umask, and at no time could anybody
// connect whom it excludes. Access also takes search permission on the
// directories of the path. For an abstract name, to which everybody can connect,
// mode must be 0: who asks for permissions must not be left without.
//
// Errors are of type *net.OpError. They match syscall.EADDRINUSE if a server
// listens at the path, or if it cannot be ruled out; fs.ErrExist if what is
// there is not a socket (or a file that is not ours has the lock file's name);
// syscall.ENAMETOOLONG if path does not fit into a socket address; syscall.EINVAL
// if path or mode can never do; errors.ErrUnsupported if the system has no such
// thing.
func Listen(ctx context.Context, lc *net.ListenConfig, network, path string, mode fs.FileMode) (*Listener, error) {
	switch network {
	case "unix", "unixpacket":
	default:
		return nil, opError(network, path, net.UnknownNetworkError(network))
	}
	if lc == nil {
		lc = new(net.ListenConfig)
	}
	l, f, err := open(ctx, network, path, mode,
		func(mode fs.FileMode) (*net.UnixListener, error) { return listen(ctx, lc, network, path, mode) },
		func() (*net.UnixListener, error) {
			l, err := lc.Listen(ctx, network, path)
			if err != nil {
				return nil, err
			}
			return l.(*net.UnixListener), nil
		})
	if err != nil {
		return nil, opError(network, path, err)
	}
	return &Listener{UnixListener: l, owned: owned{file: f}}, nil
}

// ListenPacket is Listen for network "unixgram".
//
// Where a socket's mode cannot be set before it is bound (all systems here but
// Linux), a datagram socket, which needs no listen, could be sent to for a moment
// by whomever the umask lets. If the umask, at the bind, let in somebody whom
// mode excludes, the socket is closed again and the error matches
// errors.ErrUnsupported. With the usual umask, 022, it does not for modes that
// give nobody but the owner write permission.
func ListenPacket(ctx context.Context, lc *net.ListenConfig, path string, mode fs.FileMode) (*PacketConn, error) {
	const network = "unixgram"
	if lc == nil {
		lc = new(net.ListenConfig)
	}
	c, f, err := open(ctx, network, path, mode,
		func(mode fs.FileMode) (*net.UnixConn, error) { return listenPacket(ctx, lc, path, mode) },
		func() (*net.UnixConn, error) {
			c, err := lc.ListenPacket(ctx, network, path)
			if err != nil {
				return nil, err
			}
			return c.(*net.UnixConn), nil
		})
	if err != nil {
		return nil, opError(network, path, err)
	}
	return &PacketConn{UnixConn: c, owned: owned{file: f}}, nil
}

// Close stops listening, after it removed the socket file, if that is still
// the one that Listen made, and before it removes the lock file. Connections
// stay. Like net's, it fails when called again.
func (l *Listener) Close() error { return l.close(l.UnixListener.Close) }

// SetUnlinkOnClose says whether Close removes the socket file; by default it
// does. It is for handing the socket to another process.
func (l *Listener) SetUnlinkOnClose(unlink bool) { l.keep.Store(!unlink) }

// Close closes the socket, after it removed its file, if that is still the one
// that ListenPacket made, and before it removes the lock file.
func (c *PacketConn) Close() error { return c.close(c.UnixConn.Close) }

// Unlink does what Close does but for the socket itself: who is connected to it stays,
// and another may listen at the path.
func (c *PacketConn) Unlink() error { return c.close(func() error { return nil }) }

// owned is the file of a socket.
type owned struct {
	file *file // nil: none, or none that we look after
	keep atomic.Bool
	once sync.Once
}

// close ends the file and the socket. The file goes first: as long as the
// socket is open the system keeps its inode, so that its number cannot belong to
// somebody else's new file, and the comparison can be believed. The lock goes
// last, since all this is what it is for.
func (o *owned) close(socket func() error) error {
	var fileErr, lockErr error
	o.once.Do(func() {
		if o.file != nil && !o.keep.Load() {
			fileErr = o.file.remove()
		}
	})
	err := socket()
	if o.file != nil {
		lockErr = o.file.unlock()
	}
	return join(err, fileErr, lockErr)
}

// join is errors.Join, but leaves a single error as it is.
func join(errs ...error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

// permissions returns the mode that a file gets, or an error.
func permissions(mode fs.FileMode) (fs.FileMode, error) {
	if mode == 0 {
		return DefaultMode, nil
	}
	if mode != mode.Perm() {
		return 0, fmt.Errorf("mode %v has more than permissions: %w", mode, syscall.EINVAL)
	}
	return mode, nil
}

func isAbstract(path string) bool { return strings.HasPrefix(path, "@") }

// opError wraps an error once: those of the net package are wrapped already.
func opError(network, path string, err error) error {
	if _, ok := err.(*net.OpError); ok {
		return err
	}
	return &net.OpError{Op: "listen", Net: network, Addr: &net.UnixAddr{Name: path, Net: network}, Err: err}
}
