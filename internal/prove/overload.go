package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sockhub/sockhub"
)

func init() { roles["offer"] = offer }

const (
	burnTime     = 20 * time.Microsecond
	offerConns   = 64
	offerSize    = 1000
	overInbound  = 32 << 20
	overOutbound = 32 << 20
)

// burn is a handler's work: it keeps a processor busy.
func burn() {
	for begun := time.Now(); time.Since(begun) < burnTime; {
	}
}

type burner struct{ sockhub.BaseHandler }

// Message answers with the number of the message.
func (burner) Message(r *sockhub.Reply, msg []byte) {
	burn()
	r.Send(msg[:8:8])
}

// overload is row 9.
func overload(p *proof) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	for _, handler := range []bool{false, true} {
		p.overload(handler)
	}
}

func (p *proof) overload(handler bool) {
	what := "Events"
	if handler {
		what = "Handler"
	}
	hub, err := sockhub.New(context.Background(), &sockhub.Options{
		MaxMessage: 1 << 20, InboundLimit: overInbound, OutboundLimit: overOutbound,
		ConnInbound: 256 << 10, ConnOutbound: 256 << 10,
	})
	p.must(err)
	defer hub.Close()
	// What the kernel holds waits too, and is beyond the hub's limits.
	o := &sockhub.ListenOptions{Mode: sockhub.Anonymous, Config: &net.ListenConfig{Control: receiveBuffer(32 << 10)}}
	if handler {
		o.Handler = func(*sockhub.Conn) sockhub.Handler { return burner{} }
	}
	l, err := hub.Listen(context.Background(), "tcp4", "127.0.0.1:0", o)
	p.must(err)
	var refused atomic.Int64
	go func() {
		for b := range hub.Events() {
			for c, m := range b.Messages() {
				burn()
				if errors.Is(c.TrySend(m[:8:8]), sockhub.ErrBackpressure) {
					refused.Add(1)
				}
			}
		}
	}()

	idle := func() bool { return hub.Stats().Conns == 0 && hub.Stats().QueuedIn == 0 }
	step := p.d(8*time.Second, 3*time.Second)
	p.say("%s: what can be done at all", what)
	full := p.offer(l, step, 1_000_000)[0]
	var rates []int
	times := []float64{0.5, 1, 2, 3, 5, 10, 0.5}
	for _, x := range times {
		rates = append(rates, int(x*full.goodput))
	}
	p.say("%s: %.0f messages/s; now from half of that to ten times of it, %v each", what, full.goodput, step)
	p.until("the first clients to be gone", 20*time.Second, idle)
	refused.Store(0) // answers to them
	settle()
	base := p.rss()
	// A collector that may double the heap would be measured instead.
	budget := base + overInbound + overOutbound
	debug.SetMemoryLimit(budget)
	var high atomic.Int64
	done := make(chan struct{})
	sampled := make(chan struct{})
	go func() {
		defer close(sampled)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				high.Store(max(high.Load(), p.rss()))
			}
		}
	}()
	steps := p.offer(l, step, rates...)
	close(done)
	<-sampled
	peak := 0.0
	for _, s := range steps {
		peak = max(peak, s.goodput)
	}
	var text []string
	worst := 1.0
	for i, s := range steps[1 : len(steps)-1] {
		text = append(text, fmt.Sprintf("%g ×: %.0f/s", times[i+1], s.goodput))
		if times[i+1] > 1 {
			worst = min(worst, s.goodput/peak)
		}
	}
	back := steps[len(steps)-1].back
	p.measured("%s: goodput at %s; above the capacity at least %.1f %% of the peak", what, strings.Join(text, ", "), 100*worst)
	p.measured("%s: RSS %s at most; the budget is %s (%s at the start, InboundLimit and OutboundLimit 32 MiB each); %d answers refused", what, mib(high.Load()), mib(budget), mib(base), refused.Load())
	p.measured("%s: 99 %% within %.1f ms before, at half the capacity; again within three times that, or 20 ms, %.2f s after the overload", what, steps[0].p99, back)
	p.check(worst >= 0.9, "%s: goodput falls to %.1f %%", what, 100*worst)
	p.check(float64(high.Load()) <= 1.1*float64(budget), "%s: RSS of %s", what, mib(high.Load()))
	p.check(back <= 5, "%s: the latency is back after %.1f s", what, back)
}

// offered is what came of one rate.
type offered struct {
	goodput float64 // answers a second
	p99     float64 // ms, from the time at which the message was due
	back    float64 // seconds until the latency was as in the first step
}

// offer has a second process send at these rates, one after the other.
func (p *proof) offer(l *sockhub.Listener, step time.Duration, rates ...int) (all []offered) {
	args := []any{l.Addr(), step, p.seed}
	for _, r := range rates {
		args = append(args, r)
	}
	c := p.start(nil, "offer", args...)
	for range rates {
		var o offered
		_, err := fmt.Sscan(c.line("STEP", step+20*time.Second), &o.goodput, &o.p99, &o.back)
		p.must(err)
		all = append(all, o)
	}
	p.must(c.end())
	return all
}

// offer is an open-loop generator: each message has a time at which it is due,
// whether or not those before were answered or could be sent at all. Those that
// could not be sent until their step's end are given up, as a user would.
func offer(args []string, quit <-chan struct{}) error {
	step, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	var rates []int
	for _, a := range args[3:] {
		n, err := strconv.Atoi(a)
		if err != nil {
			return err
		}
		rates = append(rates, n)
	}
	begun := time.Now().Add(100 * time.Millisecond)
	g := &generator{begun: begun, step: step, rates: rates, bins: make([][]int32, int((step*time.Duration(len(rates))+20*time.Second)/binTime)), answers: make([]atomic.Int64, len(rates)+20)}
	errs := make(chan error, 2*offerConns)
	for i := range offerConns {
		nc, err := net.Dial("tcp4", args[0])
		if err != nil {
			return err
		}
		defer nc.Close()
		nc.(*net.TCPConn).SetWriteBuffer(32 << 10)
		go func() { errs <- g.write(nc, i) }()
		go func() { errs <- g.read(nc) }()
	}
	base := 0.0
	for i := range rates {
		select {
		case err := <-errs:
			if err != nil {
				return err
			}
		case <-quit:
			return nil
		case <-time.After(time.Until(begun.Add(step*time.Duration(i+1) + 50*time.Millisecond))):
		}
		// The first quarter is left out, where what there was before is still
		// answered.
		p99 := g.latency(step*time.Duration(i)+step/4, step*time.Duration(i+1))
		if i == 0 {
			base = p99
		}
		fmt.Println("STEP", float64(g.answers[i].Load())/step.Seconds(), p99, g.back(i, max(3*base, 20)))
	}
	<-quit
	return nil
}

const binTime = 100 * time.Millisecond

type generator struct {
	begun   time.Time
	step    time.Duration
	rates   []int
	answers []atomic.Int64 // by the step in which they came

	mu   sync.Mutex
	bins [][]int32 // latencies in µs, by the time at which the message was due
}

// latency is the 99th percentile, in ms, of the messages that were due in a
// span of time. Of those that were not sent or not answered nothing is known.
func (g *generator) latency(from, to time.Duration) float64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []int32
	for b := from / binTime; b < to/binTime; b++ {
		all = append(all, g.bins[b]...)
	}
	if len(all) == 0 {
		return -1
	}
	slices.Sort(all)
	return float64(all[len(all)*99/100]) / 1000
}

// back is how many seconds of a step have passed when the latency has become,
// and then stays, what it should be.
func (g *generator) back(i int, limit float64) float64 {
	last := 0.0
	const span = 5 * binTime
	for at := time.Duration(0); at+span <= g.step; at += span {
		if l := g.latency(g.step*time.Duration(i)+at, g.step*time.Duration(i)+at+span); l < 0 || l > limit {
			last = (at + span).Seconds()
		}
	}
	return last
}

func (g *generator) write(nc net.Conn, i int) error {
	msg := frame(string(make([]byte, offerSize)))
	var out []byte
	for s, rate := range g.rates {
		gap := time.Duration(float64(time.Second) * offerConns / float64(rate))
		end := g.step * time.Duration(s+1)
		due := g.step*time.Duration(s) + gap*time.Duration(i)/offerConns
		for due < end {
			now := time.Since(g.begun)
			if now >= end {
				break // the rest was not sent in time
			}
			if now < due {
				time.Sleep(due - now)
			}
			for out = out[:0]; due <= max(now, due) && len(out) < 16<<10 && due < end; due += gap {
				binary.LittleEndian.PutUint64(msg[8:], uint64(due))
				out = append(out, msg...)
				if due+gap > now {
					due += gap
					break
				}
			}
			if _, err := nc.Write(out); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *generator) read(nc net.Conn) error {
	buf := make([]byte, 16*100)
	for {
		n, err := io.ReadAtLeast(nc, buf, 16)
		if errors.Is(err, net.ErrClosed) || err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if n%16 > 0 {
			m, err := io.ReadFull(nc, buf[n:n+16-n%16])
			if n += m; err != nil {
				return err
			}
		}
		now := time.Since(g.begun)
		g.answers[min(int(now/g.step), len(g.answers)-1)].Add(int64(n / 16))
		g.mu.Lock()
		for a := buf[:n]; len(a) > 0; a = a[16:] {
			due := time.Duration(binary.LittleEndian.Uint64(a[8:]))
			b := min(int(due/binTime), len(g.bins)-1)
			g.bins[b] = append(g.bins[b], int32(min((now-due).Microseconds(), 1<<31-1)))
		}
		g.mu.Unlock()
	}
}
