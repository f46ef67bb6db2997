package packet

import (
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// What sessions hold that nobody has accepted is free again when the user has closed the
// socket: their bytes stayed taken.
func TestSocketThatItsUserClosesGivesBackWhatItHolds(t *testing.T) {
	for name, wrap := range map[string]func(net.PacketConn) net.PacketConn{
		"fast":  func(pc net.PacketConn) net.PacketConn { return pc },
		"plain": func(pc net.PacketConn) net.PacketConn { return struct{ net.PacketConn }{pc} },
	} {
		t.Run(name, func(t *testing.T) {
			pc, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var taken atomic.Int64
			l := Listen(wrap(pc), Options{
				Max: MaxUDP, Sessions: 1, Stats: new(Stats),
				Room: func(n int) bool { taken.Add(int64(n)); return true },
				Free: func(n int) { taken.Add(-int64(n)) },
			})
			for range 3 {
				c, err := net.Dial("udp", pc.LocalAddr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				for range 3 {
					c.Write(make([]byte, 3000))
				}
			}
			live := func() int {
				l.s.mu.Lock()
				defer l.s.mu.Unlock()
				return l.s.live
			}
			until(t, "they came", func() bool { return taken.Load() > 0 && live() == 3 })
			pc.Close()
			<-l.s.done
			if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept: %v", err)
			}
			until(t, "all is given back", func() bool { return taken.Load() == 0 && live() == 0 })
			if err := l.Close(); err != net.ErrClosed {
				t.Errorf("Close: %v", err)
			}
			if taken.Load() != 0 || live() != 0 {
				t.Errorf("given back twice: %d bytes, %d live", taken.Load(), live())
			}
		})
	}
}

// until waits for what nothing tells.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
