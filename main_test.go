package sockhub

import (
	"os"
	"testing"
	"unsafe"

	"github.com/sockhub/sockhub/internal/chunk"
	"github.com/sockhub/sockhub/internal/leakcheck"
)

// TestMain fails the package if its tests leave a goroutine or a descriptor.
// Memory that ReuseBuffers gives back is overwritten, so that whoever still
// reads it is seen.
func TestMain(m *testing.M) {
	if os.Getenv("SOCKHUB_TEST_USE_AFTER_RELEASE") == "" { // else that is to be seen without
		chunk.Poison = func(mem []byte) {
			for i := range mem {
				mem[i] = 0xdb
			}
		}
	}
	leakcheck.Main(m)
}

// An idle connection costs its memory, and the allocator rounds that, with the 8 bytes
// that it puts in front of what has pointers, up to 1,280 bytes, or to 1,408.
func TestConnIsSmall(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("counted for 64 bits")
	}
	if size := unsafe.Sizeof(Conn{}); size > 1280-8 {
		t.Errorf("%d bytes", size)
	}
}
