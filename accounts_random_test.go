package sockhub_test

// Two hubs that share a Budget, in a rush of peers that mind no rule.

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
)

// TestAccountsAreEmptyAfterARush has peers come and go, on every network and with little
// room everywhere: they send what they like, read the answers or do not, and leave in
// every way. Handlers and a loop over Events answer them, panic, and leave Streams unread,
// and others send to all or close some. Whatever was charged, lent or promised meanwhile
// has to have come back when all is over, since nothing else gives it back as long as the
// program lives; and one peer that behaves has to get all of its answers.
func TestAccountsAreEmptyAfterARush(t *testing.T) {
	eachSeed(t, 2, func(t *testing.T, seed uint64) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { rushAtRandom(&rush{t: t, seed: seed}) })
	})
}

// rush is two hubs, and those who come to them.
type rush struct {
	t      *testing.T
	seed   uint64
	forks  atomic.Uint64
	hubs   []*sockhub.Hub
	doors  []door
	peers  sync.WaitGroup
	others sync.WaitGroup // their readers, and the hubs' loops
}

// door is where peers come in.
type door struct {
	network, addr string
	mode          sockhub.Mode
	most          int // bytes of a message
}

// the tag of the peer that behaves.
const good = "good"

func rushAtRandom(r *rush) {
	const largest = 200_000
	t, rng := r.t, r.fork()
	in, out := 2*(largest+64<<10)+rng.Int64N(1_000_000), 200_000+rng.Int64N(2_000_000)
	total := []int64{0, in + out/2}[rng.IntN(2)]
	t.Logf("a budget of %d, %d, %d", in, out, total)
	budget := sockhub.NewBudget(in, out, total)
	t.Cleanup(r.others.Wait) // after the hubs' Close
	for range 2 {
		r.open(&sockhub.Options{Budget: budget, MaxMessage: largest}, rng)
	}
	l, err := r.hubs[0].Listen(soon(t), "tcp4", "127.0.0.1:0", &sockhub.ListenOptions{
		Mode: sockhub.Anonymous, Tag: good, Overflow: sockhub.BlockSender, IdleTimeout: -1,
		Handler: func(*sockhub.Conn) sockhub.Handler { return answerer{} }})
	if err != nil {
		t.Fatal(err)
	}
	p := dialHub(t, l, "")

	defer r.peers.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	for range 16 {
		own := r.fork()
		r.peers.Go(func() {
			for ctx.Err() == nil {
				r.visit(r.doors[own.IntN(len(r.doors))], own)
			}
		})
	}
	own := r.fork()
	r.peers.Go(func() {
		for ctx.Err() == nil {
			r.meddle(r.hubs[own.IntN(2)], own)
			rest(own, 1, 3)
		}
	})
	for k := 0; ctx.Err() == nil; k++ {
		m := numbered(k, 100)
		p.send(m)
		if got := p.receive(); !bytes.Equal(got, m) {
			t.Fatalf("the peer that behaves is answered %q to %q", got, m)
		}
	}
	p.Close()
	held := func() string { return budget.Held() + r.hubs[0].Held() + r.hubs[1].Held() }
	if rng.IntN(3) == 0 {
		t.Log("one hub is closed in the rush") // and its own accounts with it
		r.hubs[1].Close()
		held = func() string { return budget.Held() + r.hubs[0].Held() }
	}
	r.peers.Wait()
	defer func() {
		if t.Failed() {
			t.Log(held())
		}
	}()
	eventually(t, "nothing is held", func() bool { return held() == "" })
}

// fork makes a generator for whoever needs one of its own. It may be called concurrently.
func (r *rush) fork() *rand.Rand { return rand.New(rand.NewPCG(r.seed, r.forks.Add(1))) }

// open opens a hub, with Handlers or Events behind each of its doors.
func (r *rush) open(o *sockhub.Options, rng *rand.Rand) {
	some := func(least, more int64) int64 { return []int64{0, least + rng.Int64N(more)}[rng.IntN(2)] }
	o.MaxConns, o.Overflow, o.ReuseBuffers = 12+rng.IntN(40), sockhub.OverflowPolicy(rng.IntN(5)), rng.IntN(2) == 0
	o.StreamOver, o.ConnInbound, o.ConnOutbound = some(1000, 150_000), some(1000, 500_000), some(1000, 500_000)
	o.WriteTimeout, o.FrameTimeout, o.Linger = 200*time.Millisecond, 200*time.Millisecond, 20*time.Millisecond
	o.Logger = slog.New(slog.DiscardHandler)
	r.t.Logf("a hub: MaxConns %d, Overflow %v, ReuseBuffers %v, StreamOver %d, ConnInbound %d, ConnOutbound %d",
		o.MaxConns, o.Overflow, o.ReuseBuffers, o.StreamOver, o.ConnInbound, o.ConnOutbound)
	hub := openHub(r.t, o)
	r.hubs = append(r.hubs, hub)
	own := r.fork()
	r.others.Go(func() { r.receive(hub, own) })

	const tcp, packet = "127.0.0.1:0", 60_000
	doors := []door{{"tcp4", tcp, sockhub.Anonymous, 250_000}, {"tcp4", tcp, sockhub.Raw, 250_000}, {"udp4", tcp, 0, packet}}
	if runtime.GOOS == "linux" {
		name := func() string { _, name := address(r.t, "abstract"); return name }
		doors = append(doors, door{"unix", name(), sockhub.Anonymous, 250_000}, door{"unixgram", name(), 0, packet}, door{"unixpacket", name(), 0, packet})
	}
	for _, d := range doors {
		lo := &sockhub.ListenOptions{Mode: d.mode, MaxConns: int(some(8, 1)), IdleTimeout: 100 * time.Millisecond}
		if rng.IntN(3) > 0 {
			lo.Handler = func(*sockhub.Conn) sockhub.Handler { return &unruly{rng: r.fork()} }
		}
		r.t.Logf("%s: mode %v, MaxConns %d, Handlers %v", d.network, d.mode, lo.MaxConns, lo.Handler != nil)
		l, err := hub.Listen(soon(r.t), d.network, d.addr, lo)
		if err != nil {
			r.t.Fatal(err)
		}
		d.addr = l.Addr().String()
		r.doors = append(r.doors, d)
	}
}

// visit is a peer that comes, sends, and leaves.
func (r *rush) visit(d door, rng *rand.Rand) {
	var dialer net.Dialer
	if d.network == "unixgram" {
		_, own := address(r.t, "abstract")
		dialer.LocalAddr = &net.UnixAddr{Net: d.network, Name: own}
	}
	c, err := dialer.Dial(d.network, d.addr)
	if err != nil {
		return // the hub is closed
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Duration(20+rng.IntN(400)) * time.Millisecond))
	switch own := fork(rng); rng.IntN(3) {
	case 0:
		r.others.Go(func() { io.Copy(io.Discard, c) })
	case 1:
		r.others.Go(func() { io.Copy(io.Discard, &unhurried{c, own}) })
	}
	for range rng.IntN(150) {
		m := make([]byte, []int{rng.IntN(200), rng.IntN(200), rng.IntN(200), rng.IntN(d.most)}[rng.IntN(4)])
		if d.mode == sockhub.Anonymous {
			m = frame(string(m))
		}
		cut := rng.IntN(60) == 0
		if cut {
			m = m[:rng.IntN(len(m)+1)]
		}
		if _, err := c.Write(m); cut || err != nil {
			break
		}
	}
	if h, ok := c.(interface{ CloseWrite() error }); ok && rng.IntN(3) == 0 {
		h.CloseWrite()
		rest(rng, 1, 100)
	}
	if c, ok := c.(*net.TCPConn); ok && rng.IntN(3) == 0 {
		c.SetLinger(0) // a reset
	}
}

// receive is a hub's loop over Events.
func (r *rush) receive(hub *sockhub.Hub, rng *rand.Rand) {
	for b := range hub.Events() {
		for c, m := range b.Messages() {
			switch rng.IntN(8) {
			case 0, 1:
				c.TrySend(bytes.Clone(m))
			case 2:
				ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
				c.SendParts(ctx, []byte("to"), bytes.Clone(m))
				cancel()
			}
		}
		for _, d := range b.Received {
			if s, most := d.Stream, rng.Int64N(250_000); s != nil {
				r.others.Go(func() { io.CopyN(io.Discard, s, most); s.Close() })
			}
		}
		rest(rng, 20, 5)
		if rng.IntN(4) > 0 { // nobody has to
			b.Release()
		}
	}
}

// meddle sends to all of a hub's connections or some, or ends some.
func (r *rush) meddle(hub *sockhub.Hub, rng *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+rng.IntN(10))*time.Millisecond)
	defer cancel()
	conns := slices.DeleteFunc(slices.Collect(hub.Conns()), func(c *sockhub.Conn) bool { return c.Peer().Tag == good })
	for range rng.IntN(10) {
		hub.Broadcast(slices.Values(conns), make([]byte, rng.IntN(2000)))
	}
	for _, c := range conns {
		switch rng.IntN(9) {
		case 0:
			c.SendMany(ctx, slices.Values(slices.Repeat([][]byte{make([]byte, rng.IntN(30_000))}, rng.IntN(100))))
		case 1: // the reader may end early
			c.SendFrom(ctx, rng.Uint64N(300_000), io.LimitReader(zeros{}, rng.Int64N(600_000)))
		case 2:
			if rng.IntN(10) == 0 {
				c.SetHandler([]sockhub.Handler{nil, &unruly{rng: r.fork()}}[rng.IntN(2)])
			}
		case 3:
			if rng.IntN(10) == 0 {
				[]func() error{c.Close, c.Finish, c.CloseWrite}[rng.IntN(3)]()
			}
		}
	}
}
