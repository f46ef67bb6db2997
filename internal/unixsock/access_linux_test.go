package unixsock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// publicPath is a path for a socket in a directory that everybody can search.
func publicPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "s")
}

// asAnother runs f on a thread that accesses files as another user, who is in
// the same group. The thread is not used for anything after that: its goroutine
// ends without unlocking it.
func asAnother(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody else")
	}
	const nobody = 65534
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		_, err := unix.SetfsuidRetUid(nobody)
		if now, _ := unix.SetfsuidRetUid(nobody); err == nil && now != nobody {
			err = fmt.Errorf("still uid %d", now)
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Skip("cannot become somebody else: ", err)
	}
}

func TestModeSaysWhoMayConnect(t *testing.T) {
	for _, test := range []struct {
		mode fs.FileMode
		want error
	}{
		{0, unix.EACCES},
		{0o602, unix.EACCES}, // who is in the group is not one of the others
		{0o640, unix.EACCES}, // reading is not connecting
		{0o620, nil},
	} {
		path := publicPath(t)
		l, err := Listen(t.Context(), nil, "unix", path, test.mode)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := ListenPacket(t.Context(), nil, path+"d", test.mode)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		var stream, datagram error
		asAnother(t, func() {
			stream = probe("unix", path)
			datagram = probe("unixgram", path+"d")
		})
		if stream != test.want || datagram != test.want {
			t.Errorf("mode %v: the group gets %v and %v, want %v", test.mode, stream, datagram, test.want)
		}
	}
}

// A system that does not make the file as it was told lets others in for a
// moment. That cannot be taken back, so it must not pass for a success.
func TestSocketThatWasTooOpenIsGivenUp(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	path := publicPath(t)
	bindWider := func(fs.FileMode) (*net.UnixListener, error) {
		return listen(context.Background(), new(net.ListenConfig), "unix", path, 0o620)
	}
	_, _, err := open(t.Context(), "unix", path, 0o600, bindWider, nil)
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("open: %v, want ErrUnsupported", err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); len(left) != 0 || err != nil {
		t.Errorf("left in the directory: %v, %v", left, err)
	}
}

func TestModeOfAnAbstractNameIsAnError(t *testing.T) {
	name := fmt.Sprintf("@sockhub-unixsock-mode-%d", os.Getpid())
	_, err := Listen(t.Context(), nil, "unix", name, 0o600)
	if !errors.Is(err, syscall.EINVAL) {
		t.Errorf("Listen: %v, want EINVAL", err)
	}
	if _, err := ListenPacket(t.Context(), nil, name, 0o600); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("ListenPacket: %v, want EINVAL", err)
	}
}

func TestFailedBindIsOneError(t *testing.T) {
	path := publicPath(t)
	lc := &net.ListenConfig{Control: func(string, string, syscall.RawConn) error {
		// Whoever takes no lock can come between the look and the bind.
		return os.WriteFile(path, nil, 0o600)
	}}
	_, err := Listen(t.Context(), lc, "unix", path, 0)
	if _, ok := err.(*net.OpError); !ok || !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("Listen: %#v, want a *net.OpError around EADDRINUSE", err)
	}
}
