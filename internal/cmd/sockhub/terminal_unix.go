//go:build linux || darwin || freebsd || netbsd || openbsd

package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// isTerminal reports whether f is one: a stream (an io.Reader or io.Writer) that
// is no file is none, and neither is /dev/null, though it is a character device.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	raw, err := f.SyscallConn() // Fd would make the file blocking
	if err != nil {
		return false
	}
	is := false
	raw.Control(func(fd uintptr) {
		_, err := unix.IoctlGetTermios(int(fd), getTermios)
		is = err == nil
	})
	return is
}
