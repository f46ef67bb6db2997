package sockhub_test

// Handing connections over among everything else that may be done with them, at random.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// TestHandoverAmongAllElse has a few connections with one small InboundLimit, over faulty
// transports. Their peers send messages, streams and raw bytes, between which they switch
// when they have seen the answer. SetHandler is called at any time and within calls, Handlers
// and the receiver of Events take their time, or nobody receives, and some connections are
// ended at any moment.
//
//   - each byte of a peer's is heard once, in order, by somebody, up to the end
//   - what the peer sends behind the last SetHandler, and that it has ended, is heard by
//     that one alone, and so is a NotifyDrained behind it
//   - nothing stands still, nobody is given up, and all reports balance
func TestHandoverAmongAllElse(t *testing.T) {
	eachBubble(t, 100, handOverAmongAllElse)
}

func handOverAmongAllElse(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 11))
	b := sockhub.NewBudget(150_000+rng.Int64N(50_000), 0, 0)
	o := &sockhub.Options{
		Budget: b, MaxMessage: 8000, StreamOver: []int64{0, 700}[rng.IntN(2)], ReuseBuffers: rng.IntN(2) == 0,
		ConnInbound: 200 + rng.Int64N(100_000), ConnOutbound: 200 + rng.Int64N(5000), FrameTimeout: time.Second,
	}
	v := &talks{t: t, rng: fork(rng), untaken: rng.IntN(4) == 0, much: rng.IntN(4) == 0}
	over := make(chan struct{})
	var hubs []*sockhub.Hub
	var receivers sync.WaitGroup
	for range 1 + rng.IntN(2) {
		hub := openHub(t, o)
		hubs = append(hubs, hub)
		receivers.Go(func() {
			if v.untaken {
				<-over
			}
			v.receive(hub)
		})
	}
	if rng.IntN(4) == 0 {
		v.shut = hubs[0]
	}
	for i := range 1 + rng.IntN(3) {
		v.begin(hubs[i%len(hubs)], fmt.Sprint("peer ", i), rng)
	}
	v.begun.Store(true)
	behind := make(chan struct{})
	var peers sync.WaitGroup
	for _, k := range v.all {
		listens, speaks, ops := fork(rng), fork(rng), fork(rng)
		peers.Go(func() { k.listen(listens) })
		peers.Go(func() {
			if k.speak(speaks, speaks.IntN(20)) {
				<-behind
				if k.speak(speaks, 1+speaks.IntN(5)) {
					k.p.CloseWrite()
				}
			}
			close(k.spoken)
		})
		peers.Go(func() {
			for range ops.IntN(12) {
				k.change(ops)
			}
			k.settle(ops)
		})
	}
	for _, k := range v.all {
		<-k.settled
	}
	close(behind)
	for begun := time.Now(); !v.done() && time.Since(begun) < 24*time.Hour; {
		<-time.After(10 * time.Second)
	}
	close(over)
	for _, k := range v.all {
		if !k.over() {
			t.Errorf("%s stands still: %+v", k, k.c.Stats())
		}
		if k.c.Finish(); k.ender == 0 {
			<-k.c.Context().Done()
		}
		k.p.Close()
	}
	peers.Wait()
	for _, h := range hubs {
		h.Close()
	}
	receivers.Wait()
	<-time.After(10 * time.Minute)
	for _, k := range v.all {
		k.check()
	}
	for _, h := range hubs {
		if held := b.Held() + h.Held(); held != "" {
			t.Errorf("held: %s", held)
		}
	}
}

// talks are all connections of one seed.
type talks struct {
	t       *testing.T
	all     []*talk
	untaken bool         // nobody receives from Events before Handlers have had all
	much    bool         // is sent
	shut    *sockhub.Hub // ends by Shutdown, perhaps; nil: none
	begun   atomic.Bool  // all have: not before that

	// mu guards what follows, and what of each talk is. Who takes a batch has it until he
	// has noted what is in it, so that all is noted in the order in which it was heard.
	mu  sync.Mutex
	rng *rand.Rand
}

func (v *talks) draw(n int) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.rng.IntN(n)
}

// talk is one connection, what its peer has said, and who has heard that. Byte k of what the
// peer says is 1 + k%251.
type talk struct {
	v        *talks
	name     string
	hub      *sockhub.Hub
	c        *sockhub.Conn
	p        *memnet.End
	ender    int           // how it is ended at a random moment, perhaps (see end); 0: it is not
	gone     chan struct{} // closed when the peer sees an end
	spoken   chan struct{} // ... has said all
	settled  chan struct{} // closed behind the last SetHandler
	switched chan struct{} // the peer has seen the answer to its wish to switch

	// Guarded by talks.mu.
	raw      bool
	handlers int
	said     int
	heard    int
	turnAt   int    // where the peer wants to switch, and waits for that
	last     string // who hears from said's mark on
	mark     int    // of said, when last was set
	drained  int    // told to last since then
	ended    []string
	known    bool // somebody has heard of it
	handed   bool // SetHandler has given it to a Handler last
	ends     map[string][]sockhub.Disconnection
}

func (k *talk) String() string {
	k.v.mu.Lock()
	defer k.v.mu.Unlock()
	return fmt.Sprintf("%s (ender %d): heard %d of %d, ended %q, last %q with %d Drained", k.name, k.ender, k.heard, k.said, k.ended, k.last, k.drained)
}

// begin makes a connection. The end of another one of the same client may wait to be taken.
func (v *talks) begin(hub *sockhub.Hub, name string, rng *rand.Rand) {
	k := &talk{v: v, name: name, hub: hub, turnAt: -1, mark: -1, ends: make(map[string][]sockhub.Disconnection),
		gone: make(chan struct{}), spoken: make(chan struct{}), settled: make(chan struct{}), switched: make(chan struct{}, 9)}
	if rng.IntN(3) == 0 {
		k.ender = 1 + rng.IntN(3)
	}
	if hub == v.shut {
		k.ender = 4
	}
	if _, err := hub.Expect(name, nil); err != nil {
		v.t.Fatal(err)
	}
	buffer := 200 + rng.IntN(4096)
	if v.much {
		buffer += 4096
	}
	l := memnet.Listen(&memnet.Options{Seed: rng.Uint64(), Buffer: buffer, Unix: rng.IntN(2) == 0, Faults: memnet.Faults{
		ShortRead: 0.2, ShortWrite: 0.2, Spurious: 0.1, Blind: 0.2, Delay: 0.2, Stall: 0.05, MaxWait: 20 * time.Millisecond}})
	conns := make(chan *sockhub.Conn, 2)
	first := rng.IntN(2)
	_, err := hub.Serve(l, &sockhub.ListenOptions{HalfOpen: true, Handler: func(c *sockhub.Conn) sockhub.Handler {
		defer func() { conns <- c }()
		if first--; first >= 0 {
			return nil
		}
		v.mu.Lock()
		k.c = c
		v.mu.Unlock()
		h := k.another()
		k.known = h != nil
		return h
	}})
	if err != nil {
		v.t.Fatal(err)
	}
	for range 1 + first {
		if k.p, err = l.Dial(v.t.Context()); err != nil {
			v.t.Fatal(err)
		}
		k.p.Write(frame(name))
		if c := <-conns; k.c == nil {
			c.Close()
		}
	}
	v.mu.Lock()
	v.all = append(v.all, k)
	v.mu.Unlock()
}

// ---- the peer ----

// speak sends so many messages, or as many raw pieces, and reports whether all went well.
func (k *talk) speak(rng *rand.Rand, n int) bool {
	if k.v.much {
		n *= 3
	}
	for range n {
		size, turns := 1+rng.IntN([]int{20, 700, 8000}[rng.IntN(3)]), rng.IntN(6) == 0
		switch {
		case turns:
			size = 1 + rng.IntN(20)
		case k.v.much:
			size = 8000 - size/8
		}
		w, raw := k.says(size, turns)
		if !raw {
			w = frame(string(w))
		}
		for len(w) > 0 {
			n := 1 + rng.IntN(len(w))
			if _, err := k.p.Write(w[:n]); err != nil {
				return false
			}
			w = w[n:]
			rest(rng, 10, 20)
		}
		if turns {
			select {
			case <-k.switched:
			case <-k.gone:
				return false
			}
		}
	}
	return true
}

func (k *talk) says(size int, turns bool) (body []byte, raw bool) {
	k.v.mu.Lock()
	defer k.v.mu.Unlock()
	for range size {
		body = append(body, byte(1+k.said%251))
		k.said++
	}
	if turns {
		k.turnAt = k.said
	}
	return body, k.raw
}

// listen reads what the peer is sent.
func (k *talk) listen(rng *rand.Rand) {
	defer close(k.gone)
	var got []byte
	buf := make([]byte, 3000)
	for {
		n, err := k.p.Read(buf[:1+rng.IntN(len(buf))])
		got = append(got, buf[:n]...)
		if before, after, ok := bytes.Cut(got, []byte(turned)); ok {
			got = after
			k.switched <- struct{}{}
		} else if before != nil {
			got = got[max(0, len(got)-len(turned)):]
		}
		if err != nil {
			return
		}
		rest(rng, 10, 20)
	}
}

// turned is what the peer is answered when it may switch.
const turned = "turned"

// ---- the program ----

// change does something with the connection.
func (k *talk) change(rng *rand.Rand) {
	switch rng.IntN(8) {
	case 0, 1:
		k.give(k.another())
	case 2:
		k.give(nil)
	case 3:
		k.c.NotifyDrained()
	case 4:
		k.c.TrySend(make([]byte, rng.IntN(3000)))
	case 5:
		if rng.IntN(3) == 0 {
			k.end(nil)
		}
	}
	if rng.IntN(2) == 0 {
		rest(rng, 2, 50)
	} else {
		for range rng.IntN(20) {
			runtime.Gosched()
		}
	}
}

// give is SetHandler.
func (k *talk) give(h sockhub.Handler) {
	err := k.c.SetHandler(h)
	k.v.mu.Lock()
	defer k.v.mu.Unlock()
	k.handed = err == nil && h != nil || err != nil && k.handed
}

// settle sets the last who has the connection.
func (k *talk) settle(rng *rand.Rand) {
	name := "last"
	if !k.v.untaken && rng.IntN(2) == 0 {
		name = "Events"
	}
	var h sockhub.Handler
	if name == "last" {
		h = &partner{k, name}
	}
	k.give(h)
	k.v.mu.Lock()
	k.last, k.mark = name, k.said
	k.v.mu.Unlock()
	k.c.NotifyDrained()
	close(k.settled)
}

// end ends the connection, or its output, if that is to be. r is nil outside of a call.
func (k *talk) end(r *sockhub.Reply) {
	switch {
	case k.ender == 1 && r != nil:
		r.Close()
	case k.ender == 1:
		k.c.Close()
	case k.ender == 2 && r != nil:
		r.Finish()
	case k.ender == 2:
		k.c.Finish()
	case k.ender == 3 && r != nil:
		r.CloseWrite()
	case k.ender == 3:
		k.c.CloseWrite()
	case k.ender == 4 && k.v.begun.Load():
		go k.hub.Shutdown(context.Background())
	}
}

// another is a new Handler, or nil.
func (k *talk) another() sockhub.Handler {
	k.v.mu.Lock()
	defer k.v.mu.Unlock()
	k.handlers++
	p := &partner{k, fmt.Sprint("Handler ", k.handlers)}
	switch k.v.rng.IntN(5) {
	case 0:
		return nil
	case 1:
		return &deafPartner{p: p}
	}
	return p
}

// hearsLocked notes who hears so many bytes, and returns at which they begin.
func (k *talk) hearsLocked(who string, n int) (at int) {
	at, k.known = k.heard, true
	k.heard += n
	if k.mark >= 0 && k.heard > k.mark && who != k.last || k.heard > k.said {
		k.v.t.Errorf("%s hears %d bytes from %d on, of %d; what comes behind %d is for %s", who, n, at, k.said, k.mark, k.last)
	}
	return at
}

// compare checks what has come at this place.
func (k *talk) compare(m []byte, at int) {
	for i, b := range m {
		if b != byte(1+(at+i)%251) {
			k.v.t.Errorf("%s: at byte %d is what belongs elsewhere", k.name, at+i)
			return
		}
	}
}

// turn switches between messages and raw bytes, if the peer wants that now. r is nil
// outside of a call.
func (k *talk) turn(r *sockhub.Reply) {
	k.v.mu.Lock()
	due, how := k.heard == k.turnAt, k.v.rng.IntN(4)
	if due {
		k.raw, k.turnAt = !k.raw, -1
	}
	raw := k.raw
	k.v.mu.Unlock()
	switch {
	case !due:
	case r == nil || how == 0:
		k.c.SetRaw(raw)
		go k.c.Send(context.Background(), []byte(turned))
	case how == 1:
		r.SetRaw(raw)
		r.Send([]byte(turned))
	default:
		r.Send([]byte(turned))
		r.SetRaw(raw)
	}
}

// read reads a stream, or a part of it, as which it was noted from byte at on.
func (k *talk) read(s *sockhub.Stream, at int) {
	most := []int{1, 2}[k.v.draw(2)] * k.v.draw(8000)
	buf := make([]byte, 1+k.v.draw(3000))
	for n := 0; n < most; {
		i, err := s.Read(buf)
		k.compare(buf[:i], at+n)
		if n += i; err != nil {
			break
		}
		k.rest()
	}
	s.Close()
}

// rest takes its time, now and then longer than any timeout.
func (k *talk) rest() {
	switch n := k.v.draw(300); {
	case n == 0:
		sleepFor(time.Minute)
	case n < 10:
		sleepFor(time.Duration(k.v.draw(3000)) * time.Millisecond)
	case n < 25:
		sleepFor(time.Duration(k.v.draw(30)) * time.Millisecond)
	}
}

// receive is the loop over Events.
func (v *talks) receive(hub *sockhub.Hub) {
	delivered := make(map[*talk]sockhub.Delivery)
	for idle := 1; ; {
		v.mu.Lock()
		select {
		case b, ok := <-hub.Events():
			if !ok {
				v.mu.Unlock()
				return
			}
			idle = 1
			starts := v.takeLocked(b, delivered)
			v.mu.Unlock()
			for k, d := range delivered {
				if d.Stream != nil {
					k.read(d.Stream, starts[k])
				}
				k.turn(nil)
				k.rest()
			}
			clear(delivered)
			b.Release()
		default:
			v.mu.Unlock()
			sleepFor(time.Duration(idle) * time.Millisecond)
			idle = min(2*idle, 1000)
		}
	}
}

// takeLocked notes what is in a batch. delivered are those of whom there is something, and
// starts where their Streams begin.
func (v *talks) takeLocked(b *sockhub.Batch, delivered map[*talk]sockhub.Delivery) (starts map[*talk]int) {
	starts = make(map[*talk]int)
	of := func(c *sockhub.Conn) *talk {
		for _, k := range v.all {
			if k.c == c {
				return k
			}
		}
		return &talk{v: v, ends: make(map[string][]sockhub.Disconnection)} // one before
	}
	for _, c := range b.Connected {
		of(c).known = true
	}
	for _, d := range b.Received {
		k := of(d.Conn)
		for _, m := range d.Messages {
			k.compare(m, k.hearsLocked("Events", len(m)))
		}
		if d.Stream != nil {
			starts[k] = k.hearsLocked("Events", int(d.Stream.Size()))
		}
		delivered[k] = d
	}
	for _, c := range b.Drained {
		of(c).drainedLocked("Events")
	}
	for _, c := range b.Ended {
		of(c).endedLocked("Events", c)
	}
	for _, d := range b.Disconnected {
		k := of(d.Conn)
		k.ends["Events"] = append(k.ends["Events"], d)
	}
	return starts
}

func (k *talk) drainedLocked(who string) {
	if k.mark >= 0 && who == k.last {
		k.drained++
	}
}

func (k *talk) endedLocked(who string, c *sockhub.Conn) {
	if k.ended = append(k.ended, who); k.ender == 4 { // it may be Shutdown's, and the peer does not know
		c.Finish()
	}
}

// partner is a Handler that does this and that in its calls, but the last.
type partner struct {
	k    *talk
	name string
}

// note calls f with talks.mu held.
func (h *partner) note(f func()) {
	h.k.v.mu.Lock()
	defer h.k.v.mu.Unlock()
	f()
}

func (h *partner) Message(r *sockhub.Reply, m []byte) {
	h.note(func() { h.k.compare(m, h.k.hearsLocked(h.name, len(m))) })
	h.k.turn(r)
	h.goOn(r)
}

func (h *partner) Stream(r *sockhub.Reply, s *sockhub.Stream) {
	var at int
	h.note(func() { at = h.k.hearsLocked(h.name, int(s.Size())) })
	h.k.read(s, at)
	h.goOn(r)
}

func (h *partner) Drained(r *sockhub.Reply) {
	h.note(func() { h.k.drainedLocked(h.name) })
	if h.k.v.draw(4) == 0 {
		h.goOn(r)
	}
}

func (h *partner) Ended(r *sockhub.Reply) {
	h.note(func() { h.k.endedLocked(h.name, r.Conn()) })
}

func (h *partner) Disconnected(d sockhub.Disconnection) {
	h.note(func() { h.k.ends["a Handler"] = append(h.k.ends["a Handler"], d) })
}

func (h *partner) goOn(r *sockhub.Reply) {
	h.k.rest()
	what := h.k.v.draw(12)
	if what < 4 && h.name == "last" {
		return
	}
	switch what {
	case 0:
		r.SetHandler(h.k.another())
	case 1:
		r.SetHandler(h.k.another())
		r.SetHandler(h.k.another())
	case 2:
		r.Conn().NotifyDrained()
		r.SetHandler(h.k.another())
	case 3:
		if h.k.v.draw(3) == 0 {
			h.k.end(r)
		}
	case 4, 5, 6, 7:
		r.Send(make([]byte, h.k.v.draw(5000)))
	case 8:
		r.Send(make([]byte, h.k.v.draw(300)))
		r.Flush()
	}
}

// deafPartner does not hear of Drained.
type deafPartner struct {
	sockhub.BaseHandler
	p *partner
}

func (h *deafPartner) Message(r *sockhub.Reply, m []byte)         { h.p.Message(r, m) }
func (h *deafPartner) Stream(r *sockhub.Reply, s *sockhub.Stream) { h.p.Stream(r, s) }
func (h *deafPartner) Ended(r *sockhub.Reply)                     { h.p.Ended(r) }
func (h *deafPartner) Disconnected(d sockhub.Disconnection)       { h.p.Disconnected(d) }

// ---- the verdict ----

func (v *talks) done() bool {
	for _, k := range v.all {
		if !k.over() {
			return false
		}
	}
	return true
}

// over reports whether all that is to happen before the end has.
func (k *talk) over() bool {
	select {
	case <-k.spoken:
	default:
		return false
	}
	k.v.mu.Lock()
	defer k.v.mu.Unlock()
	return k.ender != 0 || k.heard == k.said && len(k.ended) > 0 && k.drained > 0
}

func (k *talk) check() {
	t, v := k.v.t, k.v
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(k.ended) > 1 || len(k.ended) == 1 && k.ended[0] != k.last && k.ender != 4 {
		t.Errorf("%s: Ended was told to %q, the last was %q", k.name, k.ended, k.last)
	}
	total := 0
	for who, ds := range k.ends {
		if total += len(ds); len(ds) != 1 {
			t.Errorf("%s: %s hears %d times of the end", k.name, who, len(ds))
		}
		for _, d := range ds {
			if checkReport(t, k.c, d, false); k.ender == 0 && !errors.Is(d.Err, sockhub.ErrClosed) {
				t.Errorf("%s has ended: %v", k.name, d.Err)
			}
		}
	}
	if total == 0 && (k.known || k.handed) { // else it waited for Events, and Shutdown did not
		t.Errorf("%s (ender %d): nobody hears of the end; cause %v; ended %v last %v heard %d of %d", k.name, k.ender, context.Cause(k.c.Context()), k.ended, k.last, k.heard, k.said)
	}
}
