//go:build race && linux

package packet

import (
	"runtime"
	"syscall"
	"unsafe"
)

// As in package transport: besides the bytes that a transfer touches, the
// detector learns that what came before a write on any descriptor happens before
// what follows a read on any, on the token that package syscall uses for that.
func init() {
	raceReceived = func(fd int, p []byte) {
		if len(p) > 0 {
			runtime.RaceWriteRange(unsafe.Pointer(unsafe.SliceData(p)), len(p))
		}
		syscall.Read(fd, nil)
	}
	raceSending = func(p []byte) {
		if len(p) > 0 {
			runtime.RaceReadRange(unsafe.Pointer(unsafe.SliceData(p)), len(p))
		}
		syscall.Write(-1, nil)
	}
}
