//go:build linux && !race

package sockhub_test

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
)

// TestIdleConnectionWaitsOnASmallStack measures what TestReaderThatRestedGoesOn
// is good for. The race detector's stacks are larger.
func TestIdleConnectionWaitsOnASmallStack(t *testing.T) {
	const conns = 200
	_, l := echoHub(t, &sockhub.ListenOptions{Mode: sockhub.Anonymous})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range conns {
		p, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		p.Write(frame("x"))
		if _, err := io.ReadFull(p, make([]byte, len(frame("x")))); err != nil {
			t.Fatal(err)
		}
	}
	var each uint64
	// Stacks shrink when the garbage collector comes by, which tells nobody.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 100 {
		runtime.GC()
		runtime.ReadMemStats(&after)
		if each = (after.StackInuse - before.StackInuse) / conns; each < 3000 {
			return
		}
		<-tick.C
	}
	t.Errorf("%d bytes of stack for each connection", each)
}
