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
	for name, send := range map[string]func() int{
		"sendto": func() int {
			n, _ := sendOne(fds[0], p, true)
			return n
		},
		"sendmsg": func() int {
			v := []unix.Iovec{{Base: unsafe.SliceData(p)}}
			v[0].SetLen(len(p))
			n, _ := sendmsg(fds[0], v, true)
			return n
		},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if n := send(); n != len(p) {
					b.Fatal(n)
				}
				unix.Read(fds[1], buf)
			}
		})
	}
}
