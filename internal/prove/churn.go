package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sockhub/sockhub"
)

func init() { roles["churn"] = churnClients }

// churn is row 3. Clients in a second process connect, say their name, send a
// message, get it back, and leave in one of three ways, again and again.
func churn(p *proof) {
	const clients = 10_000
	each := p.n(100)
	// Room for all handshakes: that evictions work is row 5's.
	hub, err := sockhub.New(context.Background(), &sockhub.Options{MaxConns: 16_000, MaxPending: 16_000})
	p.must(err)
	l, err := hub.Listen(context.Background(), "tcp4", "127.0.0.1:0", nil)
	p.must(err)
	var came, went, bad, msgs atomic.Int64
	looped := make(chan struct{})
	go func() {
		defer close(looped)
		for b := range hub.Events() {
			came.Add(int64(len(b.Connected) + len(b.Unknown)))
			for c, m := range b.Messages() {
				msgs.Add(1)
				c.TrySend(m)
			}
			for _, d := range b.Disconnected {
				went.Add(1)
				if !balances(d.Report) {
					bad.Add(1)
				}
			}
		}
	}()
	// The runtime keeps its record of a goroutine (440 bytes) for the next one,
	// and never gives it back. Those that are needed at once are made before,
	// so that they are not taken for the library's.
	spare(2 * clients)
	heap0, fds0, goroutines0 := heap(), fds(), runtime.NumGoroutine()
	c := p.start(nil, "churn", l.Addr(), clients, each, p.seed)
	// Its lines, which tell how far it is, are shown meanwhile.
	var done, failed int64
	_, err = fmt.Sscan(c.line("DONE", time.Hour), &done, &failed)
	p.must(err)
	p.must(c.end())
	p.until("the last connections to be gone", 10*time.Second, func() bool { return went.Load() >= came.Load() && hub.Stats().Conns+hub.Stats().Connecting == 0 })
	p.measured("%d connections by %d clients, %d of them not completed; %d messages echoed", done+failed, clients, failed, msgs.Load())
	p.check(failed == 0, "%d connections failed", failed)
	p.check(came.Load() == went.Load() && bad.Load() == 0, "%d came, %d went, %d reports do not balance", came.Load(), went.Load(), bad.Load())

	p.until("goroutines and descriptors as at the start", 10*time.Second, func() bool {
		return fds() <= fds0 && runtime.NumGoroutine() <= goroutines0+1 // the peer's lines
	})
	heap1 := heap()
	p.measured("goroutines %d → %d, descriptors %d → %d, heap %s → %s", goroutines0, runtime.NumGoroutine(), fds0, fds(), mib(heap0), mib(heap1))
	p.check(heap1-heap0 <= 1<<20, "the heap has grown by %s", mib(heap1-heap0))
	if n, ok := leaked(); ok {
		p.measured("goroutine leak profile: %d", n)
		p.check(n == 0, "%d leaked goroutines", n)
	} else {
		p.measured("goroutine leak profile: not in this build")
	}
	hub.Close()
	<-looped
}

// spare makes the runtime have the records of n goroutines.
func spare(n int) {
	var wg sync.WaitGroup
	all := make(chan struct{})
	for range n {
		wg.Go(func() { <-all })
	}
	close(all)
	wg.Wait()
}

// balances reports whether nothing of a connection's output is unaccounted for.
func balances(r sockhub.Report) bool {
	var cut uint64
	if r.Cut {
		cut = 1
	}
	return r.AcceptedMessages == r.WrittenMessages+r.UnsentMessages+r.DroppedMessages+cut &&
		r.AcceptedBytes == r.WrittenBytes+r.UnsentBytes+r.DroppedBytes+r.CutSize
}

// churnClients has the address, the number of clients, how often each connects,
// and a seed.
func churnClients(args []string, quit <-chan struct{}) error {
	addr := args[0]
	clients, err1 := strconv.Atoi(args[1])
	each, err2 := strconv.Atoi(args[2])
	seed, err3 := strconv.ParseUint(args[3], 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	var done, failed atomic.Int64
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			for range each {
				if err := visit(addr, i, r); err != nil {
					if failed.Add(1) <= 3 {
						fmt.Println("a client:", err)
					}
				} else {
					done.Add(1)
				}
			}
		})
	}
	all := make(chan struct{})
	go func() { wg.Wait(); close(all) }()
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			fmt.Println(done.Load(), "done,", failed.Load(), "failed")
		case <-all:
			fmt.Println("DONE", done.Load(), failed.Load())
			<-quit
			return nil
		case <-quit:
			return nil
		}
	}
}

// visit is one connection of client i. The clients come from 200 addresses,
// because the ports of one are too few for all that wait for their end.
func visit(addr string, i int, r *rand.Rand) error {
	// 10,000 connect at once: those for whom the listener's queue has no place
	// hear from the kernel after a second, or three.
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	nc, err := dialFrom(ctx, "tcp4", fmt.Sprintf("127.0.1.%d", 1+i%200), addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(60 * time.Second))
	if err := greet(nc, "client "+strconv.Itoa(i)); err != nil {
		return fmt.Errorf("the greeting: %w", err)
	}
	msg := make([]byte, r.IntN(200))
	if _, err := nc.Write(frame(string(msg))); err != nil {
		return err
	}
	if _, err := receive(nc, make([]byte, 200)); err != nil {
		return fmt.Errorf("the echo: %w", err)
	}
	switch r.IntN(3) {
	case 0: // our FIN first, and then the hub's
		nc.(*net.TCPConn).CloseWrite()
		if n, err := io.Copy(io.Discard, nc); n > 0 || err != nil {
			return fmt.Errorf("%d bytes and %v after the end", n, err)
		}
	case 1:
		nc.(*net.TCPConn).SetLinger(0) // a reset
	}
	return nil
}
