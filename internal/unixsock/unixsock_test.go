//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package unixsock

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tempPath is a path for a socket in a directory of its own. (The name of
// t.TempDir is too long for a socket below it.)
func tempPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// listenAt is Listen with the defaults; the listener ends with the test.
func listenAt(t *testing.T, path string) *Listener {
	t.Helper()
	l, err := Listen(t.Context(), nil, "unix", path, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// fails wants Listen to fail with an error that matches target, and with a
// *net.OpError that names the path.
func fails(t *testing.T, network, path string, target error) {
	t.Helper()
	l, err := Listen(t.Context(), nil, network, path, 0)
	if err == nil {
		l.Close()
		t.Errorf("Listen at %s: no error, want %v", path, target)
		return
	}
	if !errors.Is(err, target) {
		t.Errorf("Listen: %v, want %v", err, target)
	}
	if op, ok := err.(*net.OpError); !ok || op.Op != "listen" || op.Net != network || op.Addr.String() != path {
		t.Errorf("Listen: %#v, want a *net.OpError of this call", err)
	}
}

// dead leaves the file of a socket that nobody has open.
func dead(t *testing.T, network, path string) {
	t.Helper()
	fd, err := newSocket(network)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
}

// foreign opens a server's socket without this package, and without a lock.
func foreign(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	t.Cleanup(func() { l.Close() })
	return l
}

// reaches wants a connection to the path to arrive at l.
func reaches(t *testing.T, l net.Listener, path string) {
	t.Helper()
	network := l.Addr().Network()
	c, err := net.Dial(network, path)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	if u, ok := l.(interface{ SetDeadline(time.Time) error }); ok {
		u.SetDeadline(time.Now().Add(10 * time.Second))
	}
	s, err := l.Accept()
	if err != nil {
		t.Error(err)
		return
	}
	defer s.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Error(err)
	}
	var got [10]byte
	if n, err := s.Read(got[:]); string(got[:n]) != "hello" {
		t.Errorf("read %q, %v", got[:n], err)
	}
}

func stat(t *testing.T, path string) fs.FileInfo {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// same wants the path to lead to the file that it did lead to.
func same(t *testing.T, path string, before fs.FileInfo) {
	t.Helper()
	now, err := os.Lstat(path)
	if err != nil || !os.SameFile(before, now) {
		t.Errorf("the file at the path was removed or replaced: %v", err)
	}
}

// nothing wants nothing to be left in the directory of path, but names.
func nothing(t *testing.T, path string, but ...string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if strings.Join(names, " ") != strings.Join(but, " ") {
		t.Errorf("the directory has %q, want %q", names, but)
	}
}

func TestListenerServesAndLeavesNothing(t *testing.T) {
	for _, network := range []string{"unix", "unixpacket"} {
		t.Run(network, func(t *testing.T) {
			path := tempPath(t)
			l, err := Listen(t.Context(), new(net.ListenConfig), network, path, 0)
			if errors.Is(err, unix.EPROTONOSUPPORT) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			if a := l.Addr(); a.Network() != network || a.String() != path {
				t.Errorf("Addr is %s %s", a.Network(), a)
			}
			reaches(t, l, path)
			if err := l.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			nothing(t, path)
			if err := l.Close(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("second Close: %v, want ErrClosed", err)
			}
		})
	}
}

func TestPacketConnServesAndLeavesNothing(t *testing.T) {
	path := tempPath(t)
	dead(t, "unixgram", path)
	c, err := ListenPacket(t.Context(), nil, path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if mode := stat(t, path).Mode(); mode != fs.ModeSocket|DefaultMode {
		t.Errorf("mode %v", mode)
	}
	peer, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	if _, err := peer.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	var got [10]byte
	if n, _, err := c.ReadFrom(got[:]); string(got[:n]) != "hello" || err != nil {
		t.Errorf("got %q, %v", got[:n], err)
	}
	before := stat(t, path)
	if c, err := ListenPacket(t.Context(), nil, path, 0); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second ListenPacket: %v, %v", c, err)
	}
	fails(t, "unix", path, syscall.EADDRINUSE)
	same(t, path, before)
	if err := c.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	nothing(t, path)
}

func TestModeIsExactWhateverTheUmask(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o077, 0o777} {
		for _, mode := range []fs.FileMode{0, 0o600, 0o660, 0o666, 0o777, 0o020} {
			want := mode
			if mode == 0 {
				want = DefaultMode
			}
			path := tempPath(t)
			old := unix.Umask(umask)
			l, err := Listen(t.Context(), nil, "unix", path, mode)
			unix.Umask(old)
			if err != nil {
				t.Errorf("umask %o, mode %o: %v", umask, mode, err)
				continue
			}
			if got := stat(t, path).Mode(); got != fs.ModeSocket|want {
				t.Errorf("umask %o, mode %o: the socket has %v", umask, mode, got)
			}
			if got := stat(t, path+".lock").Mode(); got != 0o600 {
				t.Errorf("umask %o, mode %o: the lock file has %v", umask, mode, got)
			}
			if err := l.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			nothing(t, path)
		}
	}
	if _, err := Listen(t.Context(), nil, "unix", tempPath(t), fs.ModeSetuid|0o600); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("mode with setuid: %v, want EINVAL", err)
	}
}

func TestDeadSocketIsReplacedUnderTheLock(t *testing.T) {
	for _, left := range []string{"unix", "unixpacket", "unixgram"} {
		for _, crashed := range []bool{false, true} {
			path := tempPath(t)
			dead(t, left, path)
			if crashed {
				if err := os.WriteFile(path+".lock", nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			asked := 0
			lc := &net.ListenConfig{Control: func(network, address string, _ syscall.RawConn) error {
				asked++
				if network != "unix" || address != path {
					t.Errorf("Control is told %s %s", network, address)
				}
				if _, ours, err := lockOnce(path + ".lock"); ours || !errors.Is(err, syscall.EADDRINUSE) {
					t.Errorf("the lock is free before the bind: %v, %v", ours, err)
				}
				nothing(t, path, "s.lock")
				return nil
			}}
			l, err := Listen(t.Context(), lc, "unix", path, 0)
			if err != nil {
				t.Fatal(err)
			}
			if asked != 1 {
				t.Errorf("Control was called %d times", asked)
			}
			reaches(t, l, path)
			l.Close()
			nothing(t, path)
		}
	}
}

func TestDeadSocketStaysWhileAnotherHasTheLock(t *testing.T) {
	path := tempPath(t)
	dead(t, "unix", path)
	before := stat(t, path)
	f, err := lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	fails(t, "unix", path, syscall.EADDRINUSE)
	if _, err := ListenPacket(t.Context(), nil, path, 0); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("ListenPacket: %v", err)
	}
	same(t, path, before)
	if err := f.unlock(); err != nil {
		t.Error(err)
	}
	listenAt(t, path)
}

func TestLiveSocketIsLeftAlone(t *testing.T) {
	t.Run("of this package", func(t *testing.T) {
		path := tempPath(t)
		l := listenAt(t, path)
		before := stat(t, path)
		for _, network := range []string{"unix", "unixpacket"} {
			fails(t, network, path, syscall.EADDRINUSE)
		}
		same(t, path, before)
		reaches(t, l, path)
	})
	t.Run("of another", func(t *testing.T) {
		path := tempPath(t)
		l := foreign(t, path)
		before := stat(t, path)
		fails(t, "unix", path, syscall.EADDRINUSE)
		fails(t, "unixpacket", path, syscall.EADDRINUSE)
		if _, err := ListenPacket(t.Context(), nil, path, 0); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("ListenPacket: %v", err)
		}
		same(t, path, before)
		nothing(t, path, "s")
		// First comes the one probe that was of its type.
		if c, err := l.Accept(); err == nil {
			c.Close()
		}
		reaches(t, l, path)
	})
	t.Run("with a full backlog", func(t *testing.T) {
		path := tempPath(t)
		fd, err := newSocket("unix")
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
			t.Fatal(err)
		}
		full := false
		for range 1000 {
			fd, err := newSocket("unix")
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
				t.Logf("a full backlog is %v", err)
				full = !errors.Is(err, unix.ECONNREFUSED)
				break
			}
		}
		if !full {
			t.Skip("this system says of a full backlog what it says of a dead socket")
		}
		before := stat(t, path)
		fails(t, "unix", path, syscall.EADDRINUSE)
		same(t, path, before)
	})
	t.Run("that may not be connected to", func(t *testing.T) {
		if os.Geteuid() == 0 {
			t.Skip("root may connect to everything")
		}
		path := tempPath(t)
		foreign(t, path)
		if err := os.Chmod(path, 0); err != nil {
			t.Fatal(err)
		}
		before := stat(t, path)
		fails(t, "unix", path, syscall.EADDRINUSE)
		same(t, path, before)
	})
	t.Run("of datagrams for another peer", func(t *testing.T) {
		path := tempPath(t)
		other, err := ListenPacket(t.Context(), nil, tempPath(t), 0)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		c, err := net.DialUnix("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"}, other.LocalAddr().(*net.UnixAddr))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		before := stat(t, path)
		if _, err := ListenPacket(t.Context(), nil, path, 0); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("ListenPacket: %v", err)
		}
		same(t, path, before)
	})
}

func TestWhatIsNoSocketIsLeftAlone(t *testing.T) {
	for _, test := range []struct {
		name string
		make func(path string) error
	}{
		{"file with data", func(p string) error { return os.WriteFile(p, []byte("precious"), 0o600) }},
		{"empty file", func(p string) error { return os.WriteFile(p, nil, 0o600) }},
		{"directory", func(p string) error { return os.Mkdir(p, 0o700) }},
		{"fifo", func(p string) error { return unix.Mkfifo(p, 0o600) }},
		{"symlink to nothing", func(p string) error { return os.Symlink("nothing", p) }},
		{"symlink to a dead socket", func(p string) error {
			dead(t, "unix", p+"1")
			return os.Symlink(filepath.Base(p)+"1", p)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := tempPath(t)
			if err := test.make(path); err != nil {
				t.Fatal(err)
			}
			before := stat(t, path)
			fails(t, "unix", path, fs.ErrExist)
			if _, err := ListenPacket(t.Context(), nil, path, 0); !errors.Is(err, fs.ErrExist) {
				t.Errorf("ListenPacket: %v", err)
			}
			same(t, path, before)
			if _, err := os.Lstat(path + ".lock"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the lock file: %v", err)
			}

			// Nor where the lock file has to be, unless it could be one
			// that a crash has left.
			other := tempPath(t)
			if err := test.make(other + ".lock"); err != nil {
				t.Fatal(err)
			}
			if test.name == "empty file" {
				listenAt(t, other)
				return
			}
			before = stat(t, other+".lock")
			fails(t, "unix", other, fs.ErrExist)
			same(t, other+".lock", before)
		})
	}
}

func TestCloseUnlinksWhatListenMadeAlone(t *testing.T) {
	t.Run("replaced by another's", func(t *testing.T) {
		path := tempPath(t)
		l := listenAt(t, path)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		new := foreign(t, path)
		before := stat(t, path)
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		same(t, path, before)
		nothing(t, path, "s")
		reaches(t, new, path)
	})
	t.Run("renamed", func(t *testing.T) {
		path := tempPath(t)
		l := listenAt(t, path)
		if err := os.Rename(path, path+"1"); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		nothing(t, path, "s1")
	})
	t.Run("lock file replaced", func(t *testing.T) {
		path := tempPath(t)
		l := listenAt(t, path)
		if err := errors.Join(os.Remove(path), os.Remove(path+".lock")); err != nil {
			t.Fatal(err)
		}
		// A cleaner of temporary files took both away: another can start.
		second := listenAt(t, path)
		before := stat(t, path+".lock")
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		same(t, path+".lock", before)
		reaches(t, second, path)
		second.Close()
		nothing(t, path)
	})
	t.Run("directory changed", func(t *testing.T) {
		path := tempPath(t)
		t.Chdir(filepath.Dir(path))
		l := listenAt(t, "s")
		before := stat(t, path)
		fails(t, "unix", "s", syscall.EADDRINUSE)
		same(t, path, before)
		t.Chdir("/")
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		nothing(t, path)
	})
	t.Run("kept", func(t *testing.T) {
		path := tempPath(t)
		l := listenAt(t, path)
		l.SetUnlinkOnClose(false)
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		nothing(t, path, "s")
		listenAt(t, path)
	})
	t.Run("after a failure", func(t *testing.T) {
		// What comes in the place of the socket between bind and Lstat is not
		// ours, and not net's either.
		path := tempPath(t)
		_, _, err := open(t.Context(), "unix", path, 0, func(mode fs.FileMode) (*net.UnixListener, error) {
			l, err := listen(t.Context(), new(net.ListenConfig), "unix", path, mode)
			if err == nil {
				err = errors.Join(os.Remove(path), os.WriteFile(path, []byte("precious"), 0o600))
			}
			return l, err
		}, nil)
		if !errors.Is(err, fs.ErrExist) {
			t.Errorf("open: %v", err)
		}
		nothing(t, path, "s")
	})
}

func TestConcurrentClose(t *testing.T) {
	for range 50 {
		path := tempPath(t)
		l := listenAt(t, path)
		var wg sync.WaitGroup
		errs := make([]error, 4)
		for i := range errs {
			wg.Go(func() { errs[i] = l.Close() })
		}
		wg.Wait()
		closed := 0
		for _, err := range errs {
			if err == nil {
				closed++
			} else if !errors.Is(err, net.ErrClosed) {
				t.Errorf("Close: %v", err)
			}
		}
		if closed != 1 {
			t.Errorf("%d of them have closed it", closed)
		}
		nothing(t, path)
	}
}

func TestNamesThatAreNoPaths(t *testing.T) {
	dir := filepath.Dir(tempPath(t))
	longest := dir + "/" + strings.Repeat("x", addrLen-1-len(dir)-1)
	l := listenAt(t, longest)
	reaches(t, l, longest)
	for _, test := range []struct {
		path string
		want error
	}{
		{longest + "x", syscall.ENAMETOOLONG},
		{dir + "/" + strings.Repeat("x", 300), syscall.ENAMETOOLONG},
		{"@" + strings.Repeat("x", addrLen), syscall.ENAMETOOLONG},
		{"", syscall.EINVAL},
		{dir + "/a\x00b", syscall.EINVAL},
		{dir + "/none/s", fs.ErrNotExist},
	} {
		if strings.HasPrefix(test.path, "@") && !hasAbstract {
			test.want = errors.ErrUnsupported
		}
		fails(t, "unix", test.path, test.want)
		if _, err := ListenPacket(t.Context(), nil, test.path, 0); !errors.Is(err, test.want) {
			t.Errorf("ListenPacket: %v, want %v", err, test.want)
		}
	}
	for _, network := range []string{"tcp", "unixgram", ""} {
		if _, err := Listen(t.Context(), nil, network, dir+"/t", 0); !errors.Is(err, net.UnknownNetworkError(network)) {
			t.Errorf("Listen on network %q: %v", network, err)
		}
	}
	l.Close()
	nothing(t, longest)
}

func TestFailureLeavesNothing(t *testing.T) {
	path := tempPath(t)
	dead(t, "unix", path)
	before := stat(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Listen(ctx, nil, "unix", path, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("Listen: %v", err)
	}
	same(t, path, before)
	lc := &net.ListenConfig{Control: func(string, string, syscall.RawConn) error { return io.ErrNoProgress }}
	if _, err := Listen(t.Context(), lc, "unix", path, 0); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("Listen: %v", err)
	}
	if _, err := ListenPacket(t.Context(), lc, path, 0); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("ListenPacket: %v", err)
	}
	nothing(t, path)
}
