package transport

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestIdleConnIsSmall(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("counted for 64 bits")
	}
	const callback = 16 // what c.runRead as a value allocates
	if size := unsafe.Sizeof(fdConn{}) + callback; size > 112 {
		t.Errorf("a connection takes %d bytes, want at most 112", size)
	}
}

func TestNothingLeftNeedsWholeMessageOfZero(t *testing.T) {
	type message struct {
		level, typ int32
		data       []byte
	}
	zero := []byte{0, 0, 0, 0}
	one := make([]byte, 4)
	*(*int32)(unsafe.Pointer(&one[0])) = 1
	for _, test := range []struct {
		name     string
		messages []message
		bare     bool // without the padding behind the last
		cut      int  // bytes of it, too
		told     bool // and its length says so, as the kernel has it
		want     bool
	}{
		{name: "absent"},
		{name: "zero", messages: []message{{unix.SOL_TCP, unix.TCP_CM_INQ, zero}}, want: true},
		{name: "one", messages: []message{{unix.SOL_TCP, unix.TCP_CM_INQ, one}}},
		{name: "other type", messages: []message{{unix.SOL_TCP, unix.TCP_CM_INQ + 1, zero}}},
		{name: "other level", messages: []message{{unix.SOL_SOCKET, unix.TCP_CM_INQ, zero}}},
		{name: "behind another", messages: []message{
			{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, make([]byte, 16)},
			{unix.SOL_TCP, unix.TCP_CM_INQ, zero}}, want: true},
		{name: "behind an odd one", messages: []message{
			{unix.SOL_SOCKET, unix.SO_MARK, make([]byte, 3)},
			{unix.SOL_TCP, unix.TCP_CM_INQ, one}}},
		{name: "without padding", messages: []message{{unix.SOL_TCP, unix.TCP_CM_INQ, zero}}, bare: true, want: true},
		{name: "cut", messages: []message{{unix.SOL_TCP, unix.TCP_CM_INQ, zero}}, bare: true, cut: 1, told: true},
		{name: "cut before the number", messages: []message{{unix.SOL_TCP, unix.TCP_CM_INQ, zero}}, bare: true, cut: 4, told: true},
		{name: "cut before its data", messages: []message{{unix.SOL_TCP, unix.TCP_CM_INQ, zero}}, bare: true, cut: 5, told: true},
		{name: "longer than there is", messages: []message{{unix.SOL_TCP, unix.TCP_CM_INQ, zero}}, bare: true, cut: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			var space inqSpace
			n := 0
			for _, m := range test.messages {
				h := (*unix.Cmsghdr)(unsafe.Add(unsafe.Pointer(&space), n))
				h.Level, h.Type = m.level, m.typ
				h.SetLen(unix.CmsgLen(len(m.data)))
				copy(unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(h), unix.CmsgLen(0))), len(m.data)), m.data)
				n += unix.CmsgSpace(len(m.data))
			}
			if test.bare {
				n -= unix.CmsgSpace(4) - unix.CmsgLen(4) + test.cut
			}
			if test.told {
				(*unix.Cmsghdr)(unsafe.Pointer(&space)).SetLen(n)
			}
			if got := nothingLeft(&space, n); got != test.want {
				t.Errorf("nothingLeft = %v, want %v", got, test.want)
			}
		})
	}
}

// A number that is kept may be another's descriptor by the time that it is used.
func TestDescriptorIsForgotten(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	nc, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := New(nc).(*fdConn)
	defer c.Close()
	c.Read(func() bool { return false })
	c.Write(func() bool { return false })
	for _, wait := range []func(func() bool) error{c.Read, c.Write} {
		func() {
			defer func() { recover() }()
			wait(func() bool { panic("as a user's callback may") })
		}()
	}
	if r, w := c.rfd, c.wfd.Load(); r != -1 || w != -1 {
		t.Errorf("descriptors %d and %d are remembered, want neither", r, w)
	}
}

func TestFileIsSentByTheSystem(t *testing.T) {
	name, want := filepath.Join(t.TempDir(), "file"), bytes.Repeat([]byte("0123456789"), 200_000)
	if err := os.WriteFile(name, want, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	nc, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	nc.(*net.TCPConn).SetWriteBuffer(16 << 10) // or it may take all at once
	c := New(nc)
	defer c.Close()
	got := make(chan []byte)
	go func() {
		all, _ := io.ReadAll(peer)
		got <- all
	}()
	send := func(file *os.File, n int) (sent int, err error) {
		c.Write(func() (park bool) {
			var m int
			m, err = c.(FileSender).TrySendFile(file, n-sent)
			sent += m
			return err == nil && sent < n
		})
		return sent, err
	}
	if n, err := send(file, len(want)/2); n != len(want)/2 || err != nil {
		t.Error(n, err)
	}
	if n, err := send(file, len(want)); n != len(want)/2 || err != io.EOF {
		t.Errorf("%d, %v; want the rest, and its end", n, err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if n, err := send(r, 1); n != 0 || err != ErrNoFile {
		t.Errorf("a pipe: %d, %v", n, err)
	}
	file.Close()
	if n, err := send(file, 1); n != 0 || err != ErrNoFile {
		t.Errorf("a closed file: %d, %v", n, err)
	}
	c.CloseWrite()
	if all := <-got; !bytes.Equal(all, want) {
		t.Errorf("%d bytes came, want %d", len(all), len(want))
	}
}
