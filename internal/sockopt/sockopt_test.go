package sockopt

import (
	"errors"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sockhub/sockhub/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// listen opens a listener that shares its port, or skips the test where that is
// not possible.
func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	lc := net.ListenConfig{Control: ReusePort}
	l, err := lc.Listen(t.Context(), network, address)
	switch runtime.GOOS {
	case "android", "darwin", "freebsd", "ios", "linux", "netbsd", "openbsd":
	default:
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Fatalf("Listen: %v, want ErrUnsupported", err)
		}
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestReusePortIsShared(t *testing.T) {
	a := listen(t, "tcp4", "127.0.0.1:0")
	b := listen(t, "tcp4", a.Addr().String())
	if a.Addr().String() != b.Addr().String() {
		t.Errorf("they listen on %v and %v", a.Addr(), b.Addr())
	}
	l, err := net.Listen("tcp4", a.Addr().String())
	if err == nil {
		l.Close()
	}
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("Listen without the option: %v, want EADDRINUSE", err)
	}
	// One that goes away leaves the port to the other.
	a.Close()
	c, err := net.Dial("tcp4", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := b.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

func TestReusePortOfAClosedSocketFails(t *testing.T) {
	l := listen(t, "tcp4", "127.0.0.1:0")
	rc, err := l.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := ReusePort("tcp4", "", rc); err == nil {
		t.Error("no error")
	}
}

func TestThenCallsBothInOrder(t *testing.T) {
	var calls []string
	note := func(name string, err error) Control {
		return func(network, address string, _ syscall.RawConn) error {
			calls = append(calls, name+" "+network+" "+address)
			return err
		}
	}
	for _, test := range []struct {
		control Control
		want    []string
		err     error
	}{
		{Then(nil, note("b", nil)), []string{"b n a"}, nil},
		{Then(note("a", nil), note("b", nil)), []string{"a n a", "b n a"}, nil},
		{Then(note("a", os.ErrInvalid), note("b", nil)), []string{"a n a"}, os.ErrInvalid},
		{Then(note("a", nil), note("b", os.ErrExist)), []string{"a n a", "b n a"}, os.ErrExist},
	} {
		calls = nil
		if err := test.control("n", "a", nil); err != test.err {
			t.Errorf("error %v, want %v", err, test.err)
		}
		if diff := cmp.Diff(test.want, calls); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
	}
}
