package sockhub_test

// The subject of preauth_test.go over sockets, from many addresses.

import (
	"fmt"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
)

// Linux, because all of 127.0.0.0/8 are addresses of the machine there.

func TestPeersThatSendSevenBytesLockNobodyOut(t *testing.T) {
	s := newStand(t, nil, echo)
	l := s.listen("tcp4", nil)
	old := dialHub(t, l, "old")
	n := stutterers(t)
	c := startChild(t, fmt.Sprint("stutter tcp ", l.Addr(), " ", n))
	eventually(t, "a full table", func() bool { return s.Stats().RefusedLimit > 0 })

	client := newStand(t, nil, nil)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			begun := time.Now()
			from := net.IPv4(127, 0, 0, byte(1+i%4)) // some share the address of the stutterers
			worker, err := client.Dial(soon(t), "tcp", l.Addr().String(), &sockhub.DialOptions{
				Name: fmt.Sprint("worker-", i), Reconnect: &sockhub.Backoff{},
				Dialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: from}},
			})
			if err != nil {
				t.Error(err)
				return
			}
			if d := time.Since(begun); d > sockhub.DefaultHandshakeTimeout {
				t.Errorf("a worker of %v was let in after %v", from, d)
			}
			if err := worker.TrySend(nil); err != nil {
				t.Error(err)
			}
		})
	}
	old.send([]byte("still served"))
	if m := old.receive(); string(m) != "still served" {
		t.Errorf("the echo is %q", m)
	}
	wg.Wait()
	client.until("all echoes", func() bool { return client.count == 20 || t.Failed() })
	c.line("STUTTERED")
	// Those who were evicted for others are on their way out, some for a moment.
	eventually(t, "no more than MaxPending", func() bool { return s.Stats().Connecting <= sockhub.DefaultMaxPending })
	if st := s.Stats(); st.Conns != 21 {
		t.Errorf("%+v", st)
	} else {
		t.Logf("%d refused or evicted, %d timed out", st.RefusedLimit, st.HandshakeTimeouts)
	}
	c.wait()
}

func TestPeerThatSendsSevenBytesCostsLittle(t *testing.T) {
	const most = 16 << 10
	s := newStand(t, &sockhub.Options{MaxPending: -1, HandshakeTimeout: -1}, nil)
	l := s.listen("tcp4", nil)
	n := stutterers(t)
	used := func() uint64 {
		runtime.GC()
		runtime.GC() // what pools hold goes with the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := used()
	c := startChild(t, fmt.Sprint("stutter tcp ", l.Addr(), " ", n))
	c.line("STUTTERED")
	eventually(t, "all peers", func() bool { return s.Stats().Connecting == n })
	each := (int64(used()) - int64(before)) / int64(n)
	if t.Logf("%d bytes each of %d peers", each, n); each > most {
		t.Errorf("a peer that sent 7 bytes costs %d bytes, not %d at most", each, most)
	}
	c.wait()
}
