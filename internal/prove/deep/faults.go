package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	"github.com/sockhub/sockhub"
)

// Connections over loopback go through a proxy that slices, delays, slows, cuts
// and resets them. Three accounts of each must agree: what the senders were
// told, the report, and what the peer got.

// toxics are what a proxy may do; each has one of the first and perhaps one of
// the second.
var (
	ends = []string{
		`{"type":"noop"}`,
		`{"type":"reset_peer","attributes":{"timeout":%d}}`,
		`{"type":"limit_data","attributes":{"bytes":%d}}`,
		`{"type":"slow_close","attributes":{"delay":%d}}`,
		`{"type":"reset_peer","stream":"upstream","attributes":{"timeout":%d}}`,
	}
	pains = []string{
		`{"type":"noop","name":"pain"}`,
		`{"type":"latency","name":"pain","attributes":{"latency":%d,"jitter":10}}`,
		`{"type":"slicer","name":"pain","attributes":{"average_size":64,"size_variation":32,"delay":%d}}`,
		`{"type":"bandwidth","name":"pain","attributes":{"rate":%d}}`,
	}
)

func faults(n int, seed uint64) error {
	hub, err := sockhub.New(context.Background(), &sockhub.Options{WriteTimeout: time.Second, Linger: 200 * time.Millisecond})
	if err != nil {
		return err
	}
	defer hub.Close()
	l, err := hub.Listen(context.Background(), "tcp4", "127.0.0.1:0", &sockhub.ListenOptions{ConnOutbound: 200_000})
	if err != nil {
		return err
	}
	w := &waiting{conns: make(map[string]chan *sockhub.Conn), ends: make(map[*sockhub.Conn]chan sockhub.Disconnection)}
	go w.receive(hub)

	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	rng := rand.New(rand.NewPCG(seed, 0))
	begun := time.Now()
	var total sum
	const together, proxies = 20, 16
	var wg sync.WaitGroup
	errs := make(chan error, n)
	room := make(chan struct{}, proxies)
	for done := 0; done < n && len(errs) == 0; done += together {
		room <- struct{}{}
		first, r := done, rand.New(rand.NewPCG(rng.Uint64(), 0))
		wg.Go(func() {
			defer func() { <-room }()
			if err := w.proxy(server, l.Addr().String(), first, min(together, n-first), r, &total); err != nil {
				errs <- err
			}
		})
		if done%200 == 0 {
			fmt.Println(done, "connections,", time.Since(begun).Round(time.Second))
		}
	}
	wg.Wait()
	if len(errs) > 0 {
		return <-errs
	}
	fmt.Printf("MEASURED %d connections through proxies that delay, slice, slow, cut and reset: %d refused or broken in the handshake; of %d accepted messages %d written, %d cut, %d unsent, %d arrived; %v\n",
		n, total.refused, total.accepted, total.written, total.cut, total.unsent, total.arrived, time.Since(begun).Round(time.Second))
	return nil
}

// proxy is a proxy with a character of its own, for some connections.
func (w *waiting) proxy(server *toxiproxy.ApiServer, upstream string, first, n int, rng *rand.Rand, total *sum) error {
	proxy := toxiproxy.NewProxy(server, fmt.Sprint("proxy ", first), "127.0.0.1:0", upstream)
	if err := proxy.Start(); err != nil {
		return err
	}
	defer proxy.Stop()
	end, pain := ends[rng.IntN(len(ends))], pains[rng.IntN(len(pains))]
	for _, toxic := range []string{end, pain} {
		if strings.Contains(toxic, "%d") {
			least, most := 1, 300 // ms or µs
			switch {
			case strings.Contains(toxic, "bytes"):
				most = 300_000
			case strings.Contains(toxic, "rate"): // KB/s
				least = 50
			}
			toxic = fmt.Sprintf(toxic, least+rng.IntN(most))
		}
		if _, err := proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
			return fmt.Errorf("%s: %w", toxic, err)
		}
	}
	var wg sync.WaitGroup
	errs := make(chan error, n)
	for i := range n {
		r := rand.New(rand.NewPCG(rng.Uint64(), 1))
		name := fmt.Sprint("peer ", first+i)
		wg.Go(func() {
			if err := w.connection(proxy.Listen, name, r, total); err != nil {
				errs <- fmt.Errorf("%s through %s and %s: %w", name, end, pain, err)
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

// sum is over all connections.
type sum struct {
	sync.Mutex
	refused, accepted, written, cut, unsent, arrived uint64
}

// waiting is who waits for a connection's beginning and end.
type waiting struct {
	mu    sync.Mutex
	conns map[string]chan *sockhub.Conn
	ends  map[*sockhub.Conn]chan sockhub.Disconnection
}

func (w *waiting) receive(hub *sockhub.Hub) {
	for b := range hub.Events() {
		w.mu.Lock()
		for _, c := range b.Unknown {
			w.ends[c] = make(chan sockhub.Disconnection, 1)
			if ch := w.conns[c.Name()]; ch != nil {
				ch <- c
			}
		}
		for _, d := range b.Disconnected {
			w.ends[d.Conn] <- d
		}
		w.mu.Unlock()
	}
}

func (w *waiting) connection(addr, name string, rng *rand.Rand, total *sum) error {
	came := make(chan *sockhub.Conn, 1)
	w.mu.Lock()
	w.conns[name] = came
	w.mu.Unlock()
	nc, err := net.Dial("tcp4", addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	var wire []byte
	read := make(chan struct{})
	go func() { // the peer, at its own pace
		defer close(read)
		nc.Write(append(binary.LittleEndian.AppendUint64(nil, uint64(len(name))), name...))
		buf := make([]byte, 10_000)
		for {
			nc.SetReadDeadline(time.Now().Add(4 * time.Second))
			n, err := nc.Read(buf)
			if wire = append(wire, buf[:n]...); err != nil {
				return
			}
		}
	}()
	var c *sockhub.Conn
	select {
	case c = <-came:
	case <-read: // it was broken in the handshake
		select {
		case c = <-came:
		case <-time.After(10 * time.Millisecond):
			total.Lock()
			total.refused++
			total.Unlock()
			return nil
		}
	}
	w.mu.Lock()
	ended := w.ends[c]
	w.mu.Unlock()

	const senders = 3
	var accepted [senders]int
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rng.IntN(800))*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for s := range senders {
		r := rand.New(rand.NewPCG(rng.Uint64(), 0))
		wg.Go(func() { accepted[s] = send(ctx, c, s, r) })
	}
	wg.Wait()
	if rng.IntN(3) == 0 {
		c.Close()
	} else {
		c.Finish()
	}
	var d sockhub.Disconnection
	select {
	case d = <-ended:
	case <-time.After(20 * time.Second):
		return errors.New("it does not end")
	}
	<-read
	return compare(d.Report, accepted[:], wire, total)
}

// send sends messages that begin with the sender and a number, and returns how
// many were accepted.
func send(ctx context.Context, c *sockhub.Conn, s int, r *rand.Rand) (n int) {
	message := func(k int) []byte {
		m := make([]byte, 8+r.IntN(1+r.IntN(4000)))
		binary.LittleEndian.PutUint32(m, uint32(s))
		binary.LittleEndian.PutUint32(m[4:], uint32(k))
		return m
	}
	for {
		switch r.IntN(3) {
		case 0:
			if c.Send(ctx, message(n)) != nil {
				return n
			}
			n++
		case 1:
			if err := c.TrySend(message(n)); err == nil {
				n++
			} else if !errors.Is(err, sockhub.ErrBackpressure) || ctx.Err() != nil {
				return n
			}
		case 2:
			k := 1 + r.IntN(30)
			var run [][]byte
			for i := range k {
				run = append(run, message(n+i))
			}
			got, err := c.SendMany(ctx, slices.Values(run))
			if n += got; err != nil {
				return n
			}
		}
	}
}

// compare compares the three accounts.
func compare(r sockhub.Report, accepted []int, wire []byte, total *sum) error {
	next := make([]int, len(accepted))
	follow := func(where string, m []byte) error {
		s, k := binary.LittleEndian.Uint32(m), int(binary.LittleEndian.Uint32(m[4:]))
		if k != next[s] {
			return fmt.Errorf("%s: message %d of sender %d, want %d", where, k, s, next[s])
		}
		next[s]++
		return nil
	}
	var arrived uint64
	for in := wire; len(in) >= 8; {
		n := binary.LittleEndian.Uint64(in)
		if n > uint64(len(in)-8) {
			break
		}
		m := in[8 : 8+n]
		in = in[8+n:]
		if arrived++; arrived == 1 {
			if string(m) != "OK" {
				return fmt.Errorf("the answer is %q", m)
			}
			continue
		}
		if err := follow("arrived", m); err != nil {
			return err
		}
	}
	arrived = max(arrived, 1) - 1
	if arrived > r.WrittenMessages {
		return fmt.Errorf("%d arrived: %+v", arrived, r)
	}
	// What was written and has not arrived is between this and the rest.
	lost := r.WrittenMessages - arrived
	at := slices.Clone(next)
	rest := slices.Collect(r.Unsent())
	if r.Cut {
		rest = append([][]byte{r.CutMessage()}, rest...)
	}
	seen := make([]bool, len(accepted))
	for _, m := range rest {
		s := binary.LittleEndian.Uint32(m)
		if !seen[s] {
			seen[s], next[s] = true, int(binary.LittleEndian.Uint32(m[4:]))
		}
		if err := follow("given back", m); err != nil {
			return err
		}
	}
	var sumAccepted, between uint64
	for s, n := range accepted {
		sumAccepted += uint64(n)
		if !seen[s] {
			next[s] = n
		}
		if next[s] != n {
			return fmt.Errorf("sender %d: %d were accepted, the last one known is %d", s, n, next[s]-1)
		}
		between += uint64(n - at[s])
	}
	var cut uint64
	if r.Cut {
		cut = 1
	}
	if r.AcceptedMessages != sumAccepted || r.AcceptedMessages != r.WrittenMessages+r.UnsentMessages+r.DroppedMessages+cut ||
		r.AcceptedBytes != r.WrittenBytes+r.UnsentBytes+r.DroppedBytes+r.CutSize || between != lost+uint64(len(rest)) {
		return fmt.Errorf("%d were accepted, %d arrived: %+v", sumAccepted, arrived, r)
	}
	total.Lock()
	defer total.Unlock()
	total.accepted += r.AcceptedMessages
	total.written += r.WrittenMessages
	total.cut += cut
	total.unsent += r.UnsentMessages
	total.arrived += arrived
	return nil
}
