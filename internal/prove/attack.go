package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sockhub/sockhub"
)

func init() {
	roles["stutter"] = stutter
	roles["announce"] = announce
	roles["good"] = goodClients
}

const attackers = 10_000

// attacked is a hub for the rows under attack. It counts, and echoes.
type attacked struct {
	*sockhub.Hub
	l    *sockhub.Listener
	msgs atomic.Int64
	gone atomic.Int64
}

func (p *proof) newAttacked() *attacked {
	hub, err := sockhub.New(context.Background(), &sockhub.Options{MaxConns: 16_000, MaxPending: 12_000})
	p.must(err)
	a := &attacked{Hub: hub}
	a.l, err = hub.Listen(context.Background(), "tcp4", "127.0.0.1:0", nil)
	p.must(err)
	go func() {
		for b := range hub.Events() {
			for c, m := range b.Messages() {
				c.TrySend(m)
				a.msgs.Add(1)
			}
			a.gone.Add(int64(len(b.Disconnected)))
		}
	}()
	return a
}

// halfHeaders is row 4.
func halfHeaders(p *proof) {
	a := p.newAttacked()
	defer a.Close()
	settle()
	before := p.rss()

	// The peers come as fast as they can, once. Memory is measured when they
	// are all there.
	c := p.start(nil, "stutter", a.l.Addr(), attackers, "once")
	var most int
	var used int64
	for end := time.Now().Add(sockhub.DefaultHandshakeTimeout + 10*time.Second); ; time.Sleep(10 * time.Millisecond) {
		n := a.Stats().Connecting
		if n >= most {
			most, used = n, p.rss()-before
		}
		if n == 0 && most > 0 && a.Stats().HandshakeTimeouts >= uint64(attackers) || time.Now().After(end) {
			break
		}
	}
	var n, cut int
	var slowest float64
	_, err := fmt.Sscan(c.line("LEFT", 20*time.Second), &n, &cut, &slowest)
	p.must(err)
	p.must(c.end())
	p.measured("%d handshakes under way at once: %.1f KiB of RSS each", most, float64(used)/float64(most)/1024)
	p.check(used/int64(most) <= 16<<10, "more than 16 KiB each")
	p.check(most >= attackers*99/100, "only %d were there at once", most)
	p.measured("%d of %d were ended, the last %.2f s after it had connected", cut, n, slowest)
	p.check(cut == attackers && slowest <= 5.5, "not all were gone by 5.5 s")

	// The same number of honest connections, whose own memory is measured
	// first, in the same way: the most of 5 s in which all send a message of no
	// bytes, which is to read as much as the header that announces 60 MiB. Stacks
	// grow for it, and are exchanged for small ones when nothing follows. Then
	// all announce a message.
	c = p.start(nil, "announce", a.l.Addr(), attackers)
	c.line("CONNECTED", 60*time.Second)
	p.until("all connections", 10*time.Second, func() bool { return a.Stats().Conns == attackers })
	fmt.Fprintln(c.stdin, "go")
	c.line("SENT", 30*time.Second)
	peak := func() (high int64) {
		for range 500 { // 5 s; FrameTimeout is 30 s
			high = max(high, p.rss())
			time.Sleep(10 * time.Millisecond)
		}
		return high
	}
	own := peak()
	p.check(a.msgs.Load() == attackers, "%d messages came", a.msgs.Load())
	fmt.Fprintln(c.stdin, "go")
	c.line("SENT", 30*time.Second)
	high := peak() - own
	p.check(a.Stats().Conns == attackers, "%d connections are left", a.Stats().Conns)
	p.measured("%d connections: %.1f KiB of RSS each; 60 MiB announced by each: %+.2f MiB of RSS at most, for all", attackers,
		float64(own-before)/attackers/1024, float64(high)/(1<<20))
	settle()
	p.measured("after a collection these connections have %.1f KiB each", float64(p.rss()-before)/attackers/1024)
	p.check(high <= 8<<20, "announcing costs %s", mib(high))
	p.must(c.end())
	p.until("the end of all", 10*time.Second, func() bool { return a.gone.Load() == attackers })
}

// goodDuringAttack is row 5: both attacks, kept up, and good clients from an
// address that no attacker has.
func goodDuringAttack(p *proof) {
	a := p.newAttacked()
	defer a.Close()
	for _, attack := range []string{"stutter", "announce"} {
		d := p.d(30*time.Second, 5*time.Second)
		var c *peer
		if attack == "stutter" {
			c = p.start(nil, attack, a.l.Addr(), attackers, "again")
			p.until("the attack", 10*time.Second, func() bool { return a.Stats().Connecting > attackers*9/10 })
		} else {
			c = p.start(nil, attack, a.l.Addr(), attackers)
			c.line("CONNECTED", 60*time.Second)
			fmt.Fprintln(c.stdin, "go\ngo")
		}
		good := p.start(nil, "good", a.l.Addr(), "127.0.0.3", 100, d, p.seed)
		var n, admitted int
		var p50, p99, worst float64
		_, err := fmt.Sscan(good.line("GOOD", d+30*time.Second), &n, &admitted, &p50, &p99, &worst)
		p.must(err)
		p.must(good.end())
		p.measured("during %q: %d of %d good clients admitted (%.2f %%); 50 %% within %.1f ms, 99 %% within %.1f ms, all within %.0f ms",
			attack, admitted, n, 100*float64(admitted)/float64(n), p50, p99, worst)
		p.check(float64(admitted) >= 0.999*float64(n) && p99 <= 100, "during %q", attack)
		p.must(c.end())
		p.until("the end of the attackers", 20*time.Second, func() bool { return a.Stats().Connecting+a.Stats().Conns == 0 })
	}
}

// stutter connects a number of peers that send 7 bytes and then nothing. With
// "again", who is ended comes back, until quit. In the end it says how many
// there were, how many of them were ended by the other side, and how many
// seconds the longest was there.
func stutter(args []string, quit <-chan struct{}) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	again := args[2] == "again"
	var (
		wg           sync.WaitGroup
		mu           sync.Mutex
		cut, strange int
		slowest      time.Duration
	)
	stop := make(chan struct{})
	room := make(chan struct{}, 500) // that connect at once: a machine has two cores, not all attackers of the world
	for i := range n {
		wg.Go(func() {
			for first := true; first || again; first = false {
				select {
				case <-stop:
					return
				case room <- struct{}{}:
				}
				nc, err := dialFrom(context.Background(), "tcp4", fmt.Sprintf("127.0.0.%d", 10+i%4), args[0])
				<-room
				if err != nil {
					continue
				}
				begun := time.Now()
				nc.Write(make([]byte, 7))
				left := make(chan struct{})
				go func() {
					select {
					case <-stop:
						nc.Close()
					case <-left:
					}
				}()
				_, err = io.Copy(io.Discard, nc)
				close(left)
				nc.Close()
				mu.Lock()
				if errors.Is(err, net.ErrClosed) {
					strange++
				} else {
					cut++
					slowest = max(slowest, time.Since(begun))
				}
				mu.Unlock()
			}
		})
	}
	all := make(chan struct{})
	go func() { wg.Wait(); close(all) }()
	select {
	case <-all:
	case <-quit:
		close(stop)
		<-all
	}
	fmt.Println("LEFT", cut+strange, cut, slowest.Seconds())
	return nil
}

// announce connects named peers, says so, and when it reads a line, all of them
// send a message of no bytes, and at the next announce one of 60 MiB.
func announce(args []string, quit <-chan struct{}) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	conns := make([]net.Conn, n)
	errs := make(chan error, n)
	var wg sync.WaitGroup
	for from := range 50 {
		wg.Go(func() {
			for i := from; i < n; i += 50 {
				nc, err := dialFrom(context.Background(), "tcp4", fmt.Sprintf("127.0.0.%d", 10+i%4), args[0])
				if err == nil {
					conns[i] = nc
					err = greet(nc, "peer "+strconv.Itoa(i))
				}
				if err != nil {
					errs <- err
				}
			}
		})
	}
	wg.Wait()
	defer func() {
		for _, nc := range conns {
			if nc != nil {
				nc.Close()
			}
		}
	}()
	if len(errs) > 0 {
		return <-errs
	}
	fmt.Println("CONNECTED")
	for _, size := range []uint64{0, 60 << 20} {
		awaitGo(quit)
		header := binary.LittleEndian.AppendUint64(nil, size)
		for _, nc := range conns {
			if _, err := nc.Write(header); err != nil {
				return err
			}
		}
		fmt.Println("SENT")
	}
	<-quit
	return nil
}

// goodClients connects so many clients a second, for a time, whether or not
// those before were admitted, and says how many were, and in how many
// milliseconds 50, 99 and 100 % of them.
func goodClients(args []string, quit <-chan struct{}) error {
	rate, err1 := strconv.Atoi(args[2])
	d, err2 := time.ParseDuration(args[3])
	seed, err3 := strconv.ParseUint(args[4], 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(seed, 0))
	var wg sync.WaitGroup
	var mu sync.Mutex
	var took []time.Duration
	n := 0
	for begun, due := time.Now(), time.Duration(0); due < d; n++ {
		time.Sleep(time.Until(begun.Add(due)))
		meant := begun.Add(due)
		name := "good " + strconv.Itoa(n)
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			nc, err := dialFrom(ctx, "tcp4", args[1], args[0])
			if err != nil {
				return
			}
			defer nc.Close()
			nc.SetDeadline(time.Now().Add(10 * time.Second))
			if greet(nc, name) == nil {
				mu.Lock()
				took = append(took, time.Since(meant))
				mu.Unlock()
			}
		})
		due += time.Duration(r.ExpFloat64() * float64(time.Second) / float64(rate))
	}
	wg.Wait()
	slices.Sort(took)
	ms := func(q float64) float64 {
		if len(took) == 0 {
			return -1
		}
		return took[min(len(took)-1, int(q*float64(len(took))))].Seconds() * 1000
	}
	fmt.Println("GOOD", n, len(took), ms(0.5), ms(0.99), ms(1))
	<-quit
	return nil
}
