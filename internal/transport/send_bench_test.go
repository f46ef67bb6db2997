//go:build linux

package transport

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BenchmarkSendOne compares the two ways to send one slice.
func BenchmarkSendOne(b *testing.B) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	p := make([]byte, 72)
	buf := make([]byte, 100)
	for _, raw := range []bool{true, false} {
		name := "sendmsg"
		if raw {
			name = "sendto"
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				v := []unix.Iovec{{Base: unsafe.SliceData(p)}}
				v[0].SetLen(len(p))
				if n, errno := sendmsg(fds[0], v, raw); n != len(p) {
					b.Fatal(n, errno)
				}
				unix.Read(fds[1], buf)
			}
		})
	}
}
