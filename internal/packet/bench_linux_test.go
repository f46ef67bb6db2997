package packet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkSend compares a socket's sessions with a loop over
// WriteToUDPAddrPort, by the CPU time that this process takes for a datagram:
// with one to each of 200 peers, and with bursts of 16 to one. The peers' sockets
// are full and drop what comes, so that it is the sending that is measured.
func BenchmarkSend(b *testing.B) {
	for _, burst := range []int{1, 16} {
		name := map[int]string{1: "one to each of 200", 16: "16 to each of 200"}[burst]
		b.Run(name+"/loop", func(b *testing.B) {
			pc, peers := sockets(b)
			body := make([]byte, 100)
			measure(b, func(n int) {
				for i := 0; i < n; i++ {
					pc.WriteToUDPAddrPort(body, peers[i/burst%len(peers)])
				}
			})
		})
		b.Run(name+"/sessions", func(b *testing.B) {
			pc, peers := sockets(b)
			stats := new(Stats)
			l := Listen(pc, Options{Max: MaxUDP, Sessions: len(peers), Stats: stats})
			s := l.s
			var all []*session
			s.mu.Lock()
			for _, p := range peers {
				all = append(all, s.newSession(source{key: keyOf(p), addr: net.UDPAddrFromAddrPort(p)}))
				s.live++
			}
			s.mu.Unlock()
			frame := frames([][]byte{make([]byte, 100)})
			v := make([][]byte, burst)
			for i := range v {
				v[i] = frame
			}
			measure(b, func(n int) {
				for i := 0; i < n; i += burst {
					x := all[i/burst%len(all)]
					n, _, _ := x.WriteNow(v)
					if n == burst*len(frame) {
						continue
					}
					x.Write(func() bool { // there was no room
						m, _ := x.TryWritev(v[n/len(frame):])
						n += m
						return n < burst*len(frame)
					})
				}
			})
			for _, x := range all {
				x.Close()
			}
			l.Close()
			if n := stats.Dropped.Load(); n > 0 {
				b.Errorf("%d were not sent", n)
			}
		})
	}
}

// sockets makes a socket and 200 peers that do not read.
func sockets(b *testing.B) (*net.UDPConn, []netip.AddrPort) {
	listen := func() *net.UDPConn {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { c.Close() })
		return c
	}
	var peers []netip.AddrPort
	for range 200 {
		p := listen()
		p.SetReadBuffer(4096)
		peers = append(peers, p.LocalAddr().(*net.UDPAddr).AddrPort())
	}
	return listen(), peers
}

// measure reports the CPU time of an operation beside the time.
func measure(b *testing.B, run func(n int)) {
	b.Helper()
	b.ReportAllocs()
	before := cpu()
	b.ResetTimer()
	run(b.N)
	b.StopTimer()
	b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op")
}

func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// keyOf is the key under which the socket has a peer.
func keyOf(p netip.AddrPort) []byte {
	key := make([]byte, unix.SizeofSockaddrInet4)
	binary.NativeEndian.PutUint16(key, unix.AF_INET)
	binary.BigEndian.PutUint16(key[2:], p.Port())
	ip := p.Addr().As4()
	copy(key[4:], ip[:])
	return key
}
