package transport

import (
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
		cut      int
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
		{name: "cut", messages: []message{{unix.SOL_TCP, unix.TCP_CM_INQ, zero}}, cut: 5},
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
			if test.cut > 0 {
				n -= unix.CmsgSpace(4) - unix.CmsgLen(4) + test.cut
				h := (*unix.Cmsghdr)(unsafe.Pointer(&space))
				h.SetLen(n) // as the kernel does
			}
			if got := nothingLeft(&space, n); got != test.want {
				t.Errorf("nothingLeft = %v, want %v", got, test.want)
			}
		})
	}
}
