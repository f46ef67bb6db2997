package sockhub_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockhub/sockhub"
)

// cpuTime is what this process has used so far.
func cpuTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkPacketSend(b *testing.B) {
	for _, burst := range []int{1, 16} {
		name := fmt.Sprintf("%d to each of 200", burst)
		b.Run(name+"/loop", func(b *testing.B) {
			pc, peers := deafPeers(b)
			body := make([]byte, 100)
			onCPU(b, func(n int) {
				for i := 0; i < n; i++ {
					pc.WriteToUDPAddrPort(body, peers[i/burst%len(peers)].LocalAddr().(*net.UDPAddr).AddrPort())
				}
			})
		})
		for _, how := range []string{"send", "many", "broadcast"} {
			if how == "broadcast" && burst > 1 {
				continue
			}
			b.Run(name+"/"+how, func(b *testing.B) {
				pc, peers := deafPeers(b)
				hub, _ := sockhub.New(context.Background(), &sockhub.Options{MaxConns: 10000})
				defer hub.Close()
				if _, err := hub.ServePacket(pc, nil); err != nil {
					b.Fatal(err)
				}
				var conns []*sockhub.Conn
				for _, p := range peers {
					p.WriteTo([]byte("x"), pc.LocalAddr())
				}
				for len(conns) < len(peers) {
					conns = append(conns, (<-hub.Events()).Unknown...)
				}
				go func() {
					for range hub.Events() {
					}
				}()
				body := make([]byte, 100)
				msgs := slices.Repeat([][]byte{body}, burst)
				round := func() { // until all is sent
					for c := conns[len(conns)-1]; c.Stats().QueuedMessages > 0; {
						runtime.Gosched()
					}
					runtime.Gosched()
				}
				onCPU(b, func(n int) {
					switch how {
					case "send":
						for i := 0; i < n; i++ {
							conns[i/burst%len(conns)].Send(context.Background(), body)
							if i%(200*burst) == 0 {
								round()
							}
						}
					case "many":
						for i := 0; i < n; i += burst {
							conns[i/burst%len(conns)].SendMany(context.Background(), slices.Values(msgs))
							if i%(200*burst) == 0 {
								round()
							}
						}
					case "broadcast":
						for i := 0; i < n; i += len(conns) {
							hub.Broadcast(slices.Values(conns), body)
							round()
						}
					}
				})
			})
		}
	}
}

func onCPU(b *testing.B, run func(n int)) {
	before := cpuTime()
	b.ResetTimer()
	run(b.N)
	b.StopTimer()
	b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
}

func deafPeers(b *testing.B) (*net.UDPConn, []*net.UDPConn) {
	listen := func() *net.UDPConn {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			b.Fatal(err)
		}
		return c
	}
	var peers []*net.UDPConn
	for range 200 {
		p := listen()
		b.Cleanup(func() { p.Close() })
		p.SetReadBuffer(4096)
		peers = append(peers, p)
	}
	pc := listen()
	b.Cleanup(func() { pc.Close() })
	return pc, peers
}

// TestPacketLoad is the load of BenchmarkPacketEcho, in a process of its own.
func TestPacketLoad(t *testing.T) {
	args := strings.Fields(os.Getenv("SOCKHUB_PACKET_LOAD"))
	if len(args) != 4 {
		t.Skip("only for BenchmarkPacketEcho")
	}
	var second unix.CPUSet // where the server is pinned to the first
	second.Set(1)
	runtime.LockOSThread()
	unix.SchedSetaffinity(0, &second)
	server := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(args[0]))
	var n [3]int
	for i := range n {
		n[i], _ = strconv.Atoi(args[i+1])
	}
	peers, burst, rounds := make([]int, n[0]), n[1], n[2]
	for i := range peers { // blocking, so that the load is cheaper than the server
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000})
		to := &unix.SockaddrInet4{Port: server.Port, Addr: [4]byte(server.IP.To4())}
		if err := unix.Connect(fd, to); err != nil {
			t.Fatal(err)
		}
		peers[i] = fd
	}
	body, buf := make([]byte, 100), make([]byte, 2000)
	for range rounds {
		for _, p := range peers {
			for range burst {
				unix.Write(p, body)
			}
		}
		for _, p := range peers {
			for range burst {
				if _, err := unix.Read(p, buf); err != nil {
					break
				}
			}
		}
	}
}

func BenchmarkPacketEcho(b *testing.B) {
	for _, shape := range [][2]int{{200, 1}, {1, 16}} {
		name := fmt.Sprintf("%d peers %d each", shape[0], shape[1])
		load := func(b *testing.B, addr net.Addr) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestPacketLoad$")
			rounds := b.N/shape[0]/shape[1] + 1
			cmd.Env = append(os.Environ(), fmt.Sprintf("SOCKHUB_PACKET_LOAD=%v %d %d %d", addr, shape[0], shape[1], rounds))
			onCPU(b, func(int) {
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Errorf("%v: %s", err, out)
				}
			})
		}
		b.Run(name+"/loop", func(b *testing.B) {
			pc, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				b.Fatal(err)
			}
			defer pc.Close()
			go func() {
				buf := make([]byte, 65536)
				for {
					n, from, err := pc.ReadFromUDPAddrPort(buf)
					if err != nil {
						return
					}
					pc.WriteToUDPAddrPort(buf[:n], from)
				}
			}()
			load(b, pc.LocalAddr())
		})
		for _, handled := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/handler=%v", name, handled), func(b *testing.B) {
				hub, _ := sockhub.New(context.Background(), &sockhub.Options{ReuseBuffers: true})
				defer hub.Close()
				o := &sockhub.ListenOptions{}
				if handled {
					o.Handler = func(*sockhub.Conn) sockhub.Handler {
						return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(m) }}
					}
				} else {
					go func() {
						for batch := range hub.Events() {
							for c, m := range batch.Messages() {
								c.TrySend(m)
							}
							batch.Release()
						}
					}()
				}
				l, err := hub.Listen(b.Context(), "udp4", "127.0.0.1:0", o)
				if err != nil {
					b.Fatal(err)
				}
				load(b, l.Addr())
			})
		}
	}
}
