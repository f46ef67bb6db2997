//go:build race && (darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package transport

import (
	"runtime"
	"syscall"
	"unsafe"
)

// Package syscall tells the race detector which bytes a transfer touches, and
// that what came before a write on any descriptor happens before what follows
// a read on any. Programs rely on the latter without knowing, as in a test that
// gets an answer over a socket and then looks at what the handler has stored.
// Raw system calls must say the same of themselves, and on the same token for
// the sake of peers that are in this process and use package net. That token
// is private to package syscall; but it is released by every syscall.Write,
// one that fails included, and acquired by every syscall.Read that succeeds, of
// no bytes at all included.
func init() {
	raceReceived = func(fd int, p []byte) {
		runtime.RaceWriteRange(unsafe.Pointer(unsafe.SliceData(p)), len(p))
		syscall.Read(fd, nil)
	}
	raceSending = func(v [][]byte) {
		for _, b := range v {
			if len(b) > 0 {
				runtime.RaceReadRange(unsafe.Pointer(unsafe.SliceData(b)), len(b))
			}
		}
		syscall.Write(-1, nil)
	}
}
