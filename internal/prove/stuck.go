package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sockhub/sockhub"
)

func init() {
	roles["pingpong"] = pingpong
	roles["stuck"] = stuckPeer
	roles["slow"] = slowPeer
}

// echoHub is a hub that echoes, from its loop over Events or from handlers, and
// keeps the ends of connections by name.
type echoHub struct {
	*sockhub.Hub
	l *sockhub.Listener

	mu   sync.Mutex
	ends map[string]end
}

type end struct {
	sockhub.Disconnection
	at time.Time
}

func (e *echoHub) ended(d sockhub.Disconnection) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ends[d.Conn.Name()] = end{d, time.Now()}
}

// endOf waits for the end of a connection.
func (e *echoHub) endOf(p *proof, name string, limit time.Duration) (found end) {
	p.until("the end of "+name, limit, func() (ok bool) {
		e.mu.Lock()
		defer e.mu.Unlock()
		found, ok = e.ends[name]
		return ok
	})
	return found
}

type echoHandler struct{ e *echoHub }

func (h echoHandler) Message(r *sockhub.Reply, msg []byte) { r.Send(msg) }
func (echoHandler) Drained(*sockhub.Reply)                 {}
func (h echoHandler) Disconnected(d sockhub.Disconnection) { h.e.ended(d) }

func (p *proof) newEchoHub(handler bool, ho *sockhub.Options) *echoHub {
	hub, err := sockhub.New(context.Background(), ho)
	p.must(err)
	e := &echoHub{Hub: hub, ends: make(map[string]end)}
	o := new(sockhub.ListenOptions)
	if handler {
		o.Handler = func(*sockhub.Conn) sockhub.Handler { return echoHandler{e} }
	}
	e.l, err = hub.Listen(context.Background(), "tcp4", "127.0.0.1:0", o)
	p.must(err)
	go func() {
		for b := range hub.Events() {
			for c, m := range b.Messages() {
				c.TrySend(m)
			}
			for _, d := range b.Disconnected {
				e.ended(d)
			}
		}
	}()
	return e
}

// oneStuck is row 8.
func oneStuck(p *proof) {
	for _, handler := range []bool{false, true} {
		what := "Events"
		if handler {
			what = "Handler"
		}
		e := p.newEchoHub(handler, nil)
		others := p.start(nil, "pingpong", e.l.Addr(), 999)
		others.line("CONNECTED", 30*time.Second)
		var quiet, beside, ratios []float64
		rounds := max(2, p.n(8))
		for round := range rounds {
			// Each round is compared with itself: what else the machine does
			// changes.
			before := others.rates(7 * time.Second)
			samples, text := p.beStuck(e, others, fmt.Sprint("stuck ", round))
			quiet, beside = append(quiet, before...), append(beside, samples...)
			ratios = append(ratios, median(samples)/median(before))
			if round == rounds-1 {
				p.measured("%s: %s", what, text)
			}
		}
		p.must(others.end())
		a, b, kept := median(quiet), median(beside), median(ratios)
		p.measured("%s: 999 peers exchange %.0f messages/s, and beside a stuck one %.0f/s: %.1f %% (the median of %d rounds, from %.1f to %.1f %%)",
			what, a, b, 100*kept, rounds, 100*slices.Min(ratios), 100*slices.Max(ratios))
		p.check(kept >= 0.95, "%s: only %.1f %% of the rate are left", what, 100*kept)
		e.Close()
		p.slow(what, handler)
	}
}

// beStuck has a peer that sends and never reads, until it is cut off, and
// returns the rates of the others meanwhile.
func (p *proof) beStuck(e *echoHub, others *peer, name string) (rates []float64, text string) {
	c := p.start(nil, "stuck", e.l.Addr(), name)
	c.line("STUCK", 20*time.Second)
	rates = others.rates(7 * time.Second)
	d := e.endOf(p, name, 2*sockhub.DefaultWriteTimeout)
	fmt.Fprintln(c.stdin, "read")
	var msgs, bytes uint64
	_, err := fmt.Sscan(c.line("READ", 20*time.Second), &msgs, &bytes)
	p.must(err)
	p.must(c.end())

	after := d.at.Sub(d.Conn.Stats().LastWrite)
	r := d.Report
	p.check(errors.Is(d.Err, sockhub.ErrSlowPeer), "%s ended with %v", name, d.Err)
	p.check((after-sockhub.DefaultWriteTimeout).Abs() <= time.Second, "%s ended %v after its last progress", name, after)
	p.check(balances(r), "%s: the report does not balance: %+v", name, r)
	// Its messages are numbered: those it reads in the end, the cut one and
	// the unsent ones must follow each other, and what its kernel had
	// acknowledged must be there.
	next, wire := r.WrittenMessages, 8*r.WrittenMessages+r.WrittenBytes
	if r.Cut {
		p.check(binary.LittleEndian.Uint64(r.CutMessage()) >= next, "%s: the cut message has number %d, %d were written", name, binary.LittleEndian.Uint64(r.CutMessage()), next)
		next = binary.LittleEndian.Uint64(r.CutMessage()) + 1
		wire += 8 + r.CutWritten
	}
	for m := range r.Unsent() {
		n := binary.LittleEndian.Uint64(m)
		p.check(n >= next, "%s: unsent message %d after %d", name, n, next)
		next = n + 1
	}
	// A few bytes of a header may have left beside what CutWritten counts, and
	// the answer to the name.
	p.check(msgs <= r.WrittenMessages && int64(bytes) >= int64(wire)-r.Unacked-8 && bytes <= wire+8,
		"%s: read %d messages, %d bytes: %+v", name, msgs, bytes, r)
	return rates, fmt.Sprintf("the stuck one was cut off %.2f s after its last progress; accepted %d = written %d + unsent %d + cut %v; of %d bytes written, %d not acknowledged, it read %d",
		after.Seconds(), r.AcceptedMessages, r.WrittenMessages, r.UnsentMessages, r.Cut, wire, r.Unacked, bytes)
}

// slow has peers that read slowly for several times WriteTimeout, while there
// is always more for them.
//
// Only what the peer's kernel says can be seen from here, and that says nothing
// for long: a window that was closed is opened again when much of the receive
// buffer is free, and never by less than a segment. So the plain case (10 kB/s
// with the system's own buffer) is beyond any sender: SIOCOUTQ, TCP_INFO's
// window and writability all stand still for 13 s. It is measured beside those
// that can be held to the promise.
func (p *proof) slow(what string, handler bool) {
	d := p.d(40*time.Second, 25*time.Second)
	var wg sync.WaitGroup
	for _, v := range []struct {
		rate, buffer int
		timeout      time.Duration
	}{
		{10_000, 16 << 10, 0},
		{30_000, 0, 0},
		{10_000, 0, 30 * time.Second},
		{10_000, 0, 0},
	} {
		e := p.newEchoHub(handler, &sockhub.Options{WriteTimeout: v.timeout})
		c := p.start(nil, "slow", e.l.Addr(), "slow", d, v.rate, v.buffer)
		c.line("FLOODED", 20*time.Second)
		wg.Go(func() {
			var read int
			_, err := fmt.Sscan(<-c.lines, &read)
			limit := cmp.Or(v.timeout, sockhub.DefaultWriteTimeout)
			buffer := "of the system"
			if v.buffer > 0 {
				buffer = fmt.Sprintf("of %d KiB", v.buffer>>10)
			}
			how := fmt.Sprintf("%s: a peer that reads %d kB/s, receive buffer %s, WriteTimeout %v", what, v.rate/1000, buffer, limit)
			left := e.Stats().QueuedOut
			e.mu.Lock()
			gone, cut := e.ends["slow"]
			e.mu.Unlock()
			switch {
			case err != nil:
				p.fail("%s: %v", how, err)
			case cut:
				p.measured("%s: CUT OFF with %v", how, gone.Err)
				p.fail("%s: cut off", how)
			default:
				p.measured("%s: kept for %v; it has read %d kB, and %s are queued", how, d, read/1000, mib(left))
				p.check(left > 0, "%s: nothing is queued", how)
			}
			if err := c.end(); err != nil {
				p.fail("%s: %v", how, err)
			}
			e.Close()
		})
	}
	wg.Wait()
}

// rates are the peer's next samples, messages a second.
func (c *peer) rates(d time.Duration) (samples []float64) {
	for len(c.lines) > 0 { // from before
		<-c.lines
	}
	c.line("RATE", 10*time.Second) // a part of it was before
	for end := time.Now().Add(d); time.Now().Before(end); {
		f, err := strconv.ParseFloat(c.line("RATE", 10*time.Second), 64)
		c.p.must(err)
		samples = append(samples, f)
	}
	return samples
}

func median(s []float64) float64 {
	s = slices.Clone(s)
	slices.Sort(s)
	return s[len(s)/2]
}

// pingpong connects n peers. Each sends a message when the one before has come
// back. Twice a second it says how many came back, per second.
func pingpong(args []string, quit <-chan struct{}) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	var count atomic.Int64
	errs := make(chan error, n)
	for i := range n {
		nc, err := net.Dial("tcp4", args[0])
		if err != nil {
			return err
		}
		defer nc.Close()
		if err := greet(nc, "peer "+strconv.Itoa(i)); err != nil {
			return err
		}
		go func() {
			msg, buf := frame(string(make([]byte, 64))), make([]byte, 100)
			for {
				if _, err := nc.Write(msg); err != nil {
					errs <- err
					return
				}
				if _, err := receive(nc, buf); err != nil {
					errs <- err
					return
				}
				count.Add(1)
			}
		}()
	}
	fmt.Println("CONNECTED")
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	last, before := time.Now(), count.Load()
	for {
		select {
		case <-quit:
			return nil
		case err := <-errs:
			return err
		case <-tick.C:
			now, n := time.Now(), count.Load()
			fmt.Println("RATE", float64(n-before)/now.Sub(last).Seconds())
			last, before = now, n
		}
	}
}

// flood sends numbered messages of 1,000 bytes until so many bytes have left
// or no more leave for a second.
func flood(nc net.Conn, limit int) {
	msg := frame(string(make([]byte, 1000)))
	for n := 0; n*len(msg) < limit; n++ {
		binary.LittleEndian.PutUint64(msg[8:], uint64(n))
		nc.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := nc.Write(msg); err != nil {
			return
		}
	}
}

// stuckPeer floods and does not read. When it is told, it reads what there is,
// and says how many whole messages and bytes that was.
func stuckPeer(args []string, quit <-chan struct{}) error {
	nc, err := net.Dial("tcp4", args[0])
	if err != nil {
		return err
	}
	defer nc.Close()
	if err := greet(nc, args[1]); err != nil {
		return err
	}
	flood(nc, 32<<20)
	fmt.Println("STUCK")
	awaitGo(quit)
	nc.SetReadDeadline(time.Now().Add(5 * time.Second))
	all, _ := io.ReadAll(nc) // a reset, after all that came before it
	msgs, next, rest := 0, uint64(0), all
	for len(rest) >= 1008 {
		if n := binary.LittleEndian.Uint64(rest[8:]); n < next {
			return fmt.Errorf("message %d after %d", n, next)
		} else if next = n + 1; binary.LittleEndian.Uint64(rest) != 1000 {
			return errors.New("a wrong length")
		}
		msgs, rest = msgs+1, rest[1008:]
	}
	fmt.Println("READ", msgs, len(all))
	<-quit
	return nil
}

// slowPeer floods, then reads at a rate for a time, and says how much that was.
func slowPeer(args []string, quit <-chan struct{}) error {
	d, err1 := time.ParseDuration(args[2])
	rate, err2 := strconv.Atoi(args[3])
	buffer, err3 := strconv.Atoi(args[4])
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	dialer := net.Dialer{Control: likeEthernet}
	if buffer > 0 {
		// Before it connects: a window that has become smaller makes its system refuse what
		// acknowledges what it has sent.
		dialer.Control = func(network, address string, c syscall.RawConn) error {
			return errors.Join(likeEthernet(network, address, c), receiveBuffer(buffer)(network, address, c))
		}
	}
	nc, err := dialer.Dial("tcp4", args[0])
	if err != nil {
		return err
	}
	defer nc.Close()
	if err := greet(nc, args[1]); err != nil {
		return err
	}
	flood(nc, 32<<20)
	fmt.Println("FLOODED")
	total := 0
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	buf := make([]byte, rate/10)
	for begun := time.Now(); time.Since(begun) < d; <-tick.C {
		nc.SetReadDeadline(time.Now().Add(20 * time.Second)) // there is always more
		n, err := io.ReadFull(nc, buf)
		if total += n; err != nil {
			break
		}
	}
	fmt.Println(total)
	<-quit
	return nil
}
