package unixsock

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const hasAbstract = true

func TestAbstractNamesHaveNoFiles(t *testing.T) {
	path := tempPath(t)
	name := fmt.Sprintf("@sockhub-unixsock-%d", os.Getpid())
	for _, network := range []string{"unix", "unixpacket"} {
		l, err := Listen(t.Context(), nil, network, name, 0)
		if err != nil {
			t.Fatal(err)
		}
		reaches(t, l, name)
		if _, err := Listen(t.Context(), nil, network, name, 0); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("second Listen: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	c, err := ListenPacket(t.Context(), nil, name, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	nothing(t, path)
	for _, p := range []string{name, name + ".lock"} {
		if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", p, err)
		}
	}
	// A path may begin with @ all the same.
	t.Chdir(path[:len(path)-2])
	listenAt(t, "./@s")
	if _, err := os.Lstat("@s"); err != nil {
		t.Error(err)
	}
}

// A file that is too open for a moment shows to somebody who looks all the time.
func TestModeIsInForceFromTheFirstMoment(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	for _, packet := range []bool{false, true} {
		path := tempPath(t)
		var done atomic.Bool
		var seen int
		var wg sync.WaitGroup
		wg.Go(func() {
			for !done.Load() {
				var st unix.Stat_t
				if unix.Lstat(path, &st) != nil {
					continue
				}
				seen++
				if open := st.Mode & 0o777 &^ 0o640; open != 0 {
					t.Errorf("mode %o, want 640 at most", st.Mode)
					return
				}
			}
		})
		for range 1000 {
			var l interface{ Close() error }
			var err error
			if packet {
				l, err = ListenPacket(t.Context(), nil, path, 0o640)
			} else {
				l, err = Listen(t.Context(), nil, "unix", path, 0o640)
			}
			if err != nil {
				t.Error(err)
				break
			}
			runtime.Gosched()
			l.Close()
		}
		done.Store(true)
		wg.Wait()
		if seen == 0 {
			t.Error("the file was never seen")
		}
	}
}

// The mode comes after the user's Control, which cannot loosen it.
func TestControlCannotChangeTheMode(t *testing.T) {
	path := tempPath(t)
	lc := &net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		return rc.Control(func(fd uintptr) { unix.Fchmod(int(fd), 0o777) })
	}}
	l, err := Listen(t.Context(), lc, "unix", path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if mode := stat(t, path).Mode().Perm(); mode != DefaultMode {
		t.Errorf("mode %v", mode)
	}
}

// A process that has a descriptor for the lock, and none to ask with whether the
// socket is dead, is to be told so, and not that a server may be alive.
func TestNoDescriptorToProbeWith(t *testing.T) {
	for _, network := range []string{"unix", "unixgram"} {
		path := tempPath(t)
		dead(t, network, path)
		before := stat(t, path)
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Dup(0) // the number that the lock will have
		if err != nil {
			t.Skip(err)
		}
		unix.Close(next)
		lower := limit
		lower.Cur = uint64(next) + 1
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lower); err != nil {
			t.Skip(err)
		}
		if network == "unix" {
			_, err = Listen(t.Context(), nil, network, path, 0)
		} else {
			_, err = ListenPacket(t.Context(), nil, path, 0)
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		if !errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("%s: %v, want EMFILE", network, err)
		}
		same(t, path, before)
		nothing(t, path, "s")
	}
}
