package sockhub_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
	"github.com/sockhub/sockhub/internal/transport"
)

// benchPair connects two hubs over loopback. Every batch of the server's goes
// to onServer, the client's events are the benchmark's to receive.
func benchPair(b *testing.B, network string, conns int, onServer func(*sockhub.Batch)) (client *sockhub.Hub, dialed []*sockhub.Conn, server *sockhub.Hub) {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	server, err := sockhub.New(context.Background(), nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { server.Close() })
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = b.TempDir() + "/s"
	}
	l, err := server.Listen(ctx, network, addr, &sockhub.ListenOptions{Mode: sockhub.Anonymous})
	if err != nil {
		b.Fatal(err)
	}
	if client, err = sockhub.New(context.Background(), nil); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { client.Close() })
	done := make(chan struct{})
	b.Cleanup(func() { server.Close(); <-done })
	go func() {
		defer close(done)
		for batch := range server.Events() {
			onServer(batch)
		}
	}()
	for range conns {
		c, err := client.Dial(ctx, network, l.Addr().String(), &sockhub.DialOptions{Mode: sockhub.Anonymous})
		if err != nil {
			b.Fatal(err)
		}
		dialed = append(dialed, c)
	}
	return client, dialed, server
}

// receiveAll takes n messages from the hub's events.
func receiveAll(b *testing.B, h *sockhub.Hub, n int) {
	for n > 0 {
		batch, ok := <-h.Events()
		if !ok || len(batch.Disconnected) > 0 {
			b.Fatalf("the connection has ended, %d messages before the last", n)
		}
		for _, d := range batch.Received {
			n -= len(d.Messages)
		}
	}
}

// report gives the figures that people compare, for messages of one size.
func report(b *testing.B, msgs, size int) {
	seconds := b.Elapsed().Seconds()
	b.ReportMetric(float64(msgs)/seconds, "msgs/s")
	b.ReportMetric(float64(msgs)*float64(size)/1e6/seconds, "MB/s")
}

var benchNetworks = []string{"tcp", "unix"}

// One message there, the same back, and only then the next.
func BenchmarkRoundTrip(b *testing.B) {
	for _, network := range benchNetworks {
		for _, size := range []int{32, 4096, 65536} {
			b.Run(fmt.Sprintf("%s/%dB", network, size), func(b *testing.B) {
				client, conns, _ := benchPair(b, network, 1, echo)
				msg := make([]byte, size)
				b.ReportAllocs()
				n := 0
				for b.Loop() {
					if err := conns[0].TrySend(msg); err != nil {
						b.Fatal(err)
					}
					receiveAll(b, client, 1)
					n++
				}
				report(b, n, 2*size)
			})
		}
	}
}

// Many connections, each with one message under way.
func BenchmarkManyRoundTrips(b *testing.B) {
	const conns = 100
	for _, network := range benchNetworks {
		b.Run(network, func(b *testing.B) {
			client, dialed, _ := benchPair(b, network, conns, echo)
			msg := make([]byte, 32)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				for _, c := range dialed {
					if err := c.TrySend(msg); err != nil {
						b.Fatal(err)
					}
				}
				receiveAll(b, client, conns)
				n += conns
			}
			report(b, n, 2*len(msg))
		})
	}
}

// An echo by each API, with received memory used again and without: the peers are
// plain connections, so that all that is allocated is the hub's.
func BenchmarkEcho(b *testing.B) {
	const conns = 20
	for _, reuse := range []bool{true, false} {
		for _, api := range []string{"Handler", "Events"} {
			for _, size := range []int{64, 16384} {
				b.Run(fmt.Sprintf("%s/reuse=%t/%dB", api, reuse, size), func(b *testing.B) {
					hub, err := sockhub.New(context.Background(), &sockhub.Options{ReuseBuffers: reuse})
					if err != nil {
						b.Fatal(err)
					}
					defer hub.Close()
					o := &sockhub.ListenOptions{Mode: sockhub.Anonymous}
					if api == "Handler" {
						o.Handler = func(*sockhub.Conn) sockhub.Handler { return answerer{} }
					}
					l, err := hub.Listen(b.Context(), "tcp", "127.0.0.1:0", o)
					if err != nil {
						b.Fatal(err)
					}
					go func() {
						for batch := range hub.Events() {
							echo(batch)
							batch.Release()
						}
					}()
					peers := make([]net.Conn, conns)
					for i := range peers {
						if peers[i], err = net.Dial("tcp", l.Addr().String()); err != nil {
							b.Fatal(err)
						}
						defer peers[i].Close()
					}
					out := frame(string(make([]byte, size)))
					in := make([]byte, len(out))
					b.ReportAllocs()
					n := 0
					for b.Loop() {
						for _, p := range peers {
							if _, err := p.Write(out); err != nil {
								b.Fatal(err)
							}
						}
						for _, p := range peers {
							if _, err := io.ReadFull(p, in); err != nil {
								b.Fatal(err)
							}
						}
						n += conns
					}
					report(b, n, 2*size)
				})
			}
		}
	}
}

type answerer struct{ sockhub.BaseHandler }

func (answerer) Message(r *sockhub.Reply, msg []byte) { r.Send(msg) }

// The way from a reader's turn into a batch and out of Events: connections in
// memory, on each of which so many messages come at once. No system call is in it.
func BenchmarkFanIn(b *testing.B) {
	const conns = 50
	for _, at := range []int{1, 64} {
		b.Run(fmt.Sprintf("%d at once", at), func(b *testing.B) {
			hub, err := sockhub.New(context.Background(), &sockhub.Options{ReuseBuffers: true})
			if err != nil {
				b.Fatal(err)
			}
			defer hub.Close()
			peers := make([]*memnet.End, conns)
			for i := range peers {
				ours, peer := memnet.Pair(nil)
				if _, err := hub.ServeConn(b.Context(), ours, &sockhub.ListenOptions{Mode: sockhub.Anonymous}); err != nil {
					b.Fatal(err)
				}
				defer peer.Close()
				peers[i] = peer
			}
			wire := frames(slices.Repeat([]string{string(make([]byte, 64))}, at)...)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				for _, p := range peers {
					p.Write(wire)
				}
				for got := 0; got < conns*at; {
					batch := <-hub.Events()
					for _, d := range batch.Received {
						got += len(d.Messages)
					}
					batch.Release()
				}
				n += conns * at
			}
			report(b, n, 64)
		})
	}
}

// One way, in runs of a thousand; the last message of a run is answered.
func BenchmarkSendMany(b *testing.B) {
	const run = 1000
	for _, network := range benchNetworks {
		for _, size := range []int{9, 128, 1024} {
			b.Run(fmt.Sprintf("%s/%dB", network, size), func(b *testing.B) {
				got := 0
				client, conns, _ := benchPair(b, network, 1, func(batch *sockhub.Batch) {
					for _, d := range batch.Received {
						for got += len(d.Messages); got >= run; got -= run {
							d.Conn.TrySend(nil)
						}
					}
				})
				msgs := slices.Values(slices.Repeat([][]byte{make([]byte, size)}, run))
				b.ReportAllocs()
				n := 0
				for b.Loop() {
					if _, err := conns[0].SendMany(context.Background(), msgs); err != nil {
						b.Fatal(err)
					}
					receiveAll(b, client, 1)
					n += run
				}
				report(b, n, size)
			})
		}
	}
}

// One way, each message answered when it is there.
func BenchmarkLarge(b *testing.B) {
	for _, network := range benchNetworks {
		for _, size := range []int{1 << 20, 9 << 20} {
			b.Run(fmt.Sprintf("%s/%dMB", network, size>>20), func(b *testing.B) {
				client, conns, _ := benchPair(b, network, 1, func(batch *sockhub.Batch) {
					for c := range batch.Messages() {
						c.TrySend(nil)
					}
				})
				msg := make([]byte, size)
				b.ReportAllocs()
				n := 0
				for b.Loop() {
					if err := conns[0].Send(context.Background(), msg); err != nil {
						b.Fatal(err)
					}
					receiveAll(b, client, 1)
					n++
				}
				report(b, n, size)
			})
		}
	}
}

// One message to many connections, all of which are waited for.
func BenchmarkBroadcast(b *testing.B) {
	const conns = 100
	for _, network := range benchNetworks {
		for _, size := range []int{64, 16384} {
			b.Run(fmt.Sprintf("%s/%dB", network, size), func(b *testing.B) {
				client, _, server := benchPair(b, network, conns, func(*sockhub.Batch) {})
				all := slices.Collect(server.Conns())
				for len(all) < conns { // the last may not have come in yet
					all = slices.Collect(server.Conns())
				}
				msg := make([]byte, size)
				b.ReportAllocs()
				n := 0
				for b.Loop() {
					if sent, err := server.Broadcast(slices.Values(all), msg); sent != conns || err != nil {
						b.Fatal(sent, err)
					}
					receiveAll(b, client, conns)
					n += conns
				}
				report(b, n, size)
			})
		}
	}
}

// What a turn of the reader and its answers cost the hub, without a system call or a
// peer: a transport that at each turn has as many messages, and takes all that is
// written. It is small beside the kernel's part, and steady enough to count instructions.
func BenchmarkTurn(b *testing.B) {
	for _, api := range []string{"Handler", "Events"} {
		for _, msgs := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/%dx64B", api, msgs), func(b *testing.B) {
				hub, err := sockhub.New(context.Background(), &sockhub.Options{ReuseBuffers: true})
				if err != nil {
					b.Fatal(err)
				}
				defer hub.Close()
				o := &sockhub.ListenOptions{Mode: sockhub.Anonymous}
				if api == "Handler" {
					o.Handler = func(*sockhub.Conn) sockhub.Handler { return echoHandler{} }
				} else {
					go func() {
						for batch := range hub.Events() {
							for _, d := range batch.Received {
								d.Conn.SendMany(context.Background(), slices.Values(d.Messages))
							}
							batch.Release()
						}
					}()
				}
				frame := append([]byte{64, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 64)...)
				ours, peer := memnet.Pair(nil)
				defer peer.Close()
				t := &treadmill{
					Conn: ours.Transport(), input: bytes.Repeat(frame, msgs), turns: b.N, start: b.ResetTimer,
					answered: make(chan struct{}, 1), over: make(chan struct{}),
				}
				b.ReportAllocs()
				if _, err := hub.ServeConn(context.Background(), onTreadmill{ours, t}, o); err != nil {
					b.Fatal(err)
				}
				<-t.over
				b.StopTimer()
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*msgs), "ns/msg")
			})
		}
	}
}

// treadmill is the transport of BenchmarkTurn: it has input turns times, each time when
// the input before was answered. For the rest it is that of an idle connection in memory.
type treadmill struct {
	transport.Conn
	input    []byte
	turns    int
	read     bool // this turn's input was
	written  int  // in this turn
	start    func()
	answered chan struct{} // a send for each turn
	over     chan struct{} // closed after the last
}

// onTreadmill is what brings it.
type onTreadmill struct {
	*memnet.End
	t *treadmill
}

func (c onTreadmill) Transport() transport.Conn { return c.t }

func (t *treadmill) Read(turn func() bool) error {
	for t.start(); t.turns > 0; t.turns-- {
		t.read = false
		if !turn() {
			return nil
		}
		<-t.answered
	}
	close(t.over)
	return t.Conn.Read(turn)
}

func (t *treadmill) TryRead(p []byte) (n int, drained bool, err error) {
	if t.turns == 0 {
		return t.Conn.TryRead(p)
	}
	if !t.read {
		t.read, n = true, copy(p, t.input)
	}
	return n, true, nil
}

// TryWritev is called by one goroutine at a time, whichever has the connection's pen.
func (t *treadmill) TryWritev(v [][]byte) (n int, err error) {
	for _, p := range v {
		n += len(p)
	}
	if t.written += n; t.written == len(t.input) {
		t.written = 0
		t.answered <- struct{}{}
	}
	return n, nil
}

func (t *treadmill) WriteNow(v [][]byte) (n int, ok bool, err error) {
	n, err = t.TryWritev(v)
	return n, true, err
}

func (t *treadmill) WriteInTurn(v [][]byte) (n int, ok bool, err error) { return t.WriteNow(v) }

type echoHandler struct{ sockhub.BaseHandler }

func (echoHandler) Message(r *sockhub.Reply, msg []byte) { r.Send(msg) }
