package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sockhub/sockhub"
)

func init() { roles["soak"] = soakPeers }

// soak is row 18: peers that behave and peers that do not, for a long time, and
// the memory meanwhile.
func soak(p *proof) {
	length := p.d(5*time.Minute, 30*time.Second) // -scale 12 is an hour
	hub, err := sockhub.New(context.Background(), &sockhub.Options{HandshakeTimeout: time.Second, WriteTimeout: time.Second, IdleTimeout: 5 * time.Second})
	p.must(err)
	var conns, msgs, bad atomic.Int64
	ended := func(d sockhub.Disconnection) {
		if conns.Add(1); !balances(d.Report) {
			bad.Add(1)
		}
	}
	looped := make(chan struct{})
	go func() {
		defer close(looped)
		for b := range hub.Events() {
			for c, m := range b.Messages() {
				msgs.Add(1)
				c.TrySend(m)
			}
			for _, d := range b.Disconnected {
				ended(d)
			}
		}
	}()
	if l, err := net.Listen("tcp4", "127.0.0.1:0"); err == nil {
		l.Close() // the runtime's own descriptors are there then
	}
	before, fdsBefore := runtime.NumGoroutine(), fds()
	h := &soakHandler{msgs: &msgs, ended: ended}
	var addrs []any
	for _, l := range []struct {
		network string
		o       *sockhub.ListenOptions
	}{
		{"tcp4", nil},
		{"tcp4", &sockhub.ListenOptions{Mode: sockhub.Anonymous, Handler: func(*sockhub.Conn) sockhub.Handler { return h }}},
		{"udp4", &sockhub.ListenOptions{MaxConns: 1000}},
	} {
		listener, err := hub.Listen(context.Background(), l.network, "127.0.0.1:0", l.o)
		p.must(err)
		addrs = append(addrs, listener.Addr())
	}
	c := p.start(nil, "soak", append(addrs, p.seed)...)

	// A straight line through what is in RAM after a collection while the
	// peers rest, without the first third, in which pools and tables come to
	// their sizes.
	var at, rss []float64
	begun := time.Now()
	for round := 0; time.Since(begun) < length; round++ {
		time.Sleep(max(0, untilRest(time.Now())) + soakRest - 200*time.Millisecond)
		settle()
		if t := time.Since(begun); t > length/3 {
			at, rss = append(at, t.Hours()), append(rss, float64(p.rss()))
		}
		if round%3 == 0 {
			p.say("%d connections, %d messages, %s", conns.Load(), msgs.Load(), mib(p.rss()))
		}
		time.Sleep(soakRest)
	}
	slope, sigma := line(at, rss)
	p.must(c.end())
	p.until("the last connections to be gone", 20*time.Second, func() bool { s := hub.Stats(); return s.Conns+s.Connecting == 0 })
	hub.Close()
	<-looped
	settle()
	p.measured("%v: %d connections, %d messages; RSS %s at the end, slope %+.2f ± %.2f MiB/h after the first third",
		length, conns.Load(), msgs.Load(), mib(int64(rss[len(rss)-1])), slope/(1<<20), sigma/(1<<20))
	p.measured("%d goroutines and %d descriptors more than before", runtime.NumGoroutine()-before, fds()-fdsBefore)
	p.check(slope-2*sigma <= 1<<20, "the memory grows by more than 1 MiB/h")
	p.check(bad.Load() == 0, "%d reports do not balance", bad.Load())
	p.check(runtime.NumGoroutine() <= before && fds() <= fdsBefore, "something leaks")
	if n, ok := leaked(); ok {
		p.check(n == 0, "%d goroutines can never go on", n)
	}
}

// In each round of the clock the peers rest at the end, so that only what stays is
// in memory.
const (
	soakRound = 10 * time.Second
	soakRest  = 3 * time.Second
)

// untilRest is the time until the peers rest next, which is their last visit's
// time to end in.
func untilRest(now time.Time) time.Duration {
	return now.Truncate(soakRound).Add(soakRound - soakRest).Sub(now)
}

// line fits a straight line, and returns its slope and the standard error of that.
func line(x, y []float64) (slope, sigma float64) {
	n := float64(len(x))
	var mx, my, sxx, sxy, rest float64
	for i := range x {
		mx, my = mx+x[i]/n, my+y[i]/n
	}
	for i := range x {
		sxx += (x[i] - mx) * (x[i] - mx)
		sxy += (x[i] - mx) * (y[i] - my)
	}
	slope = sxy / sxx
	for i := range x {
		d := y[i] - my - slope*(x[i]-mx)
		rest += d * d
	}
	return slope, math.Sqrt(rest / (n - 2) / sxx)
}

type soakHandler struct {
	sockhub.BaseHandler
	msgs  *atomic.Int64
	ended func(sockhub.Disconnection)
}

func (h *soakHandler) Message(r *sockhub.Reply, m []byte)   { h.msgs.Add(1); r.Send(m) }
func (h *soakHandler) Disconnected(d sockhub.Disconnection) { h.ended(d) }

// soakPeers is the other process.
func soakPeers(args []string, quit <-chan struct{}) error {
	seed, err := strconv.ParseUint(args[3], 10, 64)
	if err != nil {
		return err
	}
	const peers = 50
	var wg sync.WaitGroup
	errs := make(chan error, peers)
	for i := range peers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			for n := 0; ; n++ {
				select {
				case <-quit:
					return
				case <-time.After(time.Duration(rng.IntN(50)) * time.Millisecond):
				}
				if untilRest(time.Now()) <= 0 {
					continue
				}
				// From many addresses, so that ports do not run out.
				from := net.IPv4(127, byte(1+i), byte(rng.IntN(250)), byte(1+rng.IntN(250)))
				if err := soakVisit(args, from, fmt.Sprint("peer ", i, " ", n%3), rng); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

// soakVisit is one peer's life. Only what must not happen is an error.
func soakVisit(addrs []string, from net.IP, name string, rng *rand.Rand) error {
	how := rng.IntN(9)
	if how == 8 {
		return datagrams(addrs[2], from)
	}
	anonymous := rng.IntN(2)
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: from}, Timeout: 5 * time.Second}
	conn, err := dialer.Dial("tcp4", addrs[anonymous])
	if err != nil {
		return err
	}
	nc := conn.(*net.TCPConn)
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(10 * time.Second))
	if anonymous == 0 {
		if how == 0 {
			nc.Write(frame(name)[:3]) // and then nothing more
			if rng.IntN(20) == 0 {
				io.Copy(io.Discard, nc) // until HandshakeTimeout
			}
			return nil
		}
		if greet(nc, name) != nil {
			return nil // its last connection has not ended yet
		}
	}
	switch how {
	case 1: // half a message
		nc.Write(frame(string(make([]byte, 1000)))[:500])
		return nil
	case 2: // more announced than comes
		nc.Write(binary.LittleEndian.AppendUint64(nil, 60<<20))
		nc.Write(make([]byte, 1000))
		return nil
	case 3: // more than is allowed
		nc.Write(binary.LittleEndian.AppendUint64(nil, 1<<40))
		io.Copy(io.Discard, nc)
		return nil
	case 4: // does not read
		flood(nc, 1<<20)
		nc.SetLinger(0)
		return nil
	}
	size := 64
	if how == 5 {
		size = 1 << 20
	}
	msg, buf := frame(string(make([]byte, size))), make([]byte, size)
	for range 20 {
		if _, err := nc.Write(msg); err != nil {
			return fmt.Errorf("writing: %w", err)
		}
		if m, err := receive(nc, buf); err != nil || len(m) != size {
			return fmt.Errorf("%d bytes came back: %w", len(m), err)
		}
		if size > 64 {
			break
		}
	}
	if how == 6 {
		nc.SetLinger(0)
	}
	return nil
}

// datagrams sends some and waits a while for what comes back: any may be lost.
func datagrams(addr string, from net.IP) error {
	dialer := net.Dialer{LocalAddr: &net.UDPAddr{IP: from}}
	nc, err := dialer.Dial("udp4", addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	buf := make([]byte, 100)
	for range 10 {
		if _, err := nc.Write([]byte("datagram")); err != nil {
			return err
		}
		nc.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		var late net.Error
		if _, err := nc.Read(buf); err != nil && !errors.As(err, &late) {
			return err
		}
	}
	return nil
}
