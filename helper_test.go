package sockhub_test

import (
	"encoding/binary"
	"runtime"
)

var leOrder = binary.LittleEndian

// leave leaves a callback in a way that it should not.
func leave(how string) {
	if how == "panic" {
		panic("boom")
	}
	runtime.Goexit()
}
