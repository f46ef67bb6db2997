package peercred

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOfUnixPeerIsThisProcess(t *testing.T) {
	switch runtime.GOOS {
	case "linux", "android", "darwin", "ios", "freebsd":
	default:
		t.Skip("no peer credentials on", runtime.GOOS)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer dialed.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()

	want := &Cred{PID: os.Getpid(), UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	if runtime.GOOS == "freebsd" {
		want.PID = 0
	}
	for name, c := range map[string]net.Conn{"accepted": accepted, "dialed": dialed} {
		got, err := Of(c)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: credentials (-want +got):\n%s", name, diff)
		}
	}

	accepted.Close()
	if _, err := Of(accepted); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Of a closed connection: %v, want net.ErrClosed", err)
	}
}

func TestOfOtherConnsIsUnsupported(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, err := Of(a); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Of a net.Pipe: %v, want errors.ErrUnsupported", err)
	}
}

func TestOfUnconnectedSocketFails(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no unixgram")
	}
	c, err := net.ListenPacket("unixgram", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Skip(err)
	}
	defer c.Close()
	if got, err := Of(c.(*net.UnixConn)); err == nil {
		t.Errorf("Of a socket without a peer: %+v, want an error", got)
	}
}
