package sockhub_test

// The contract of one connection, as a fuzzer writes its life.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// FuzzConnection lets the fuzzer write what happens on one connection: how the
// peer's bytes are cut, when it pauses, finishes, resets or leaves, what the user
// sends and when he takes what came, and what time passes between; and holds the
// hub to the contract of Events, of Report and of the wire.
func FuzzConnection(f *testing.F) {
	f.Add(uint64(1), []byte{scriptNamed})
	f.Add(uint64(1), []byte{scriptNamed, opFrame, 4, opWriteAll, opTake, opTrySend, 9, opTake, opFrame, 200, opWrite, 3, opTake, opWriteAll, opTake, opFinishWrite})
	f.Add(uint64(2), []byte{scriptReuse, opLongFrame, 80, 1, opLongFrame, 40, 7, opWrite, 255, opTake, opSendMany, 12, opWriteAll, opTake, opReset})
	f.Add(uint64(3), []byte{scriptFaults | scriptReuse, opFrame, 0, opFrame, 1, opWrite, 8, opSleep, 3, opWriteAll, opTrySend, 255, opNotify, opTake, opFinish, opFrame, 9, opWriteAll})
	f.Add(uint64(4), []byte{scriptNamed | scriptTight, opFrame, 255, opWriteAll, opSendMany, 19, opPace, 30, opSendMany, 19, opTake, opTake, opClose})
	f.Add(uint64(5), []byte{scriptUnix | scriptTight, opBadFrame, opWrite, 2, opWait, 6, opWriteAll, opTake, opShutdown})
	f.Add(uint64(6), []byte{scriptHandler, opFrame, 7, opWriteAll, opFrame, 250, opWrite, 30, opWait, 40, opLeave})
	f.Fuzz(func(t *testing.T, seed uint64, text []byte) {
		text = text[:min(len(text), 300)]
		synctest.Test(t, func(t *testing.T) { play(t, seed, text) })
	})
}

// What the first byte of a script chooses.
const (
	scriptNamed   = 1 << iota // the first frame is a name
	scriptReuse               // ReuseBuffers
	scriptFaults              // of the network
	scriptTight               // little room in the network, and in the queue
	scriptUnix                // a Unix socket
	scriptHandler             // a Handler that echoes, instead of Events
)

// What each further byte does; some take operands.
const (
	opFrame       = iota // the peer has another message: its size
	opLongFrame          // the same, of two bytes
	opBadFrame           // it has one larger than MaxMessage
	opWrite              // it writes some of what it has
	opWriteAll           // it writes all
	opFinishWrite        // it ends its output
	opReset              // it is gone without a word
	opLeave              // it closes
	opPace               // it reads so slowly: milliseconds
	opTake               // the user takes a batch, if one is there
	opTrySend            // he sends: the size
	opSendMany           // he sends so many messages, for as long as 100 ms
	opNotify             // he asks for Drained
	opFinish             // he calls Finish
	opClose              // he calls Close
	opShutdown           // he shuts the hub down
	opSleep              // time passes: milliseconds
	opWait               // time passes: seconds
	ops
)

// scene is a connection, and what must come of it.
type scene struct {
	t    *testing.T
	hub  *sockhub.Hub
	peer *memnet.End
	c    *sockhub.Conn

	pending  []byte   // what the peer has, and has not written
	sent     [][]byte // the messages that it has begun to have
	bad      bool     // then comes one that is too large
	hurt     bool     // something ended the connection, or may have: not all has to arrive
	finished bool     // by the peer, orderly
	left     bool     // by us

	batch, dataIn int
	reported      bool
	ended, gone   bool
	got           [][]byte
	accepted      [][]byte
	handler       bool
	disconnection sockhub.Disconnection
}

const scriptMax = 20_000 // MaxMessage

func play(t *testing.T, seed uint64, text []byte) {
	next := func() (b byte) {
		if len(text) > 0 {
			b, text = text[0], text[1:]
		}
		return b
	}
	how := next()
	s := &scene{t: t, handler: how&scriptHandler != 0}
	ho := &sockhub.Options{MaxMessage: scriptMax, ReuseBuffers: how&scriptReuse != 0, Linger: time.Second}
	mo := &memnet.Options{Seed: seed, Unix: how&scriptUnix != 0}
	if how&scriptFaults != 0 {
		mo.Faults = memnet.Faults{ShortRead: 0.2, ShortWrite: 0.2, Spurious: 0.1, Blind: 0.2, Delay: 0.2, Stall: 0.05, MaxWait: 20 * time.Millisecond}
	}
	if how&scriptTight != 0 {
		mo.Buffer, ho.ConnOutbound, ho.ConnInbound = 100, 500, 700
	}
	hub, err := sockhub.New(context.Background(), ho)
	if err != nil {
		t.Fatal(err)
	}
	s.hub = hub
	ours, peer := memnet.Pair(mo)
	s.peer = peer

	lo := &sockhub.ListenOptions{Mode: sockhub.Anonymous}
	if how&scriptNamed != 0 {
		lo.Mode = sockhub.Named
	}
	if s.handler {
		lo.Handler = func(*sockhub.Conn) sockhub.Handler { return (*echoScene)(s) }
	}
	served := make(chan error, 1)
	var conn atomic.Pointer[sockhub.Conn]
	go func() {
		c, err := hub.ServeConn(t.Context(), ours, lo)
		conn.Store(c)
		served <- err
	}()

	// The peer writes in the order of the script, and reads at its pace.
	writes, wrote := make(chan func(), len(text)+8), make(chan struct{})
	go func() {
		defer close(wrote)
		for write := range writes {
			write()
		}
	}()
	var pace atomic.Int64 // a time.Duration
	wire := make(chan []byte, 1)
	go func() {
		var in []byte
		buf := make([]byte, 1000)
		for {
			n, err := peer.Read(buf)
			in = append(in, buf[:n]...)
			if err != nil {
				wire <- in
				return
			}
			sleepFor(time.Duration(pace.Load()))
		}
	}()

	closed := make(chan struct{}) // closed when our Shutdown has returned, or was never called
	shutdown := false
	slept := time.Duration(0) // HandshakeTimeout and the others may have ended it
	for len(text) > 0 {
		switch next() % ops {
		case opFrame:
			s.frame(int(next()))
		case opLongFrame:
			s.frame((int(next()) | int(next())<<8) % scriptMax)
		case opBadFrame:
			if !s.bad && !s.finished {
				s.bad = true
				s.pending = binary.LittleEndian.AppendUint64(s.pending, scriptMax+1+uint64(next()))
			}
		case opWrite:
			s.write(writes, int(next())*8)
		case opWriteAll:
			s.write(writes, len(s.pending))
		case opFinishWrite:
			if !s.finished {
				s.finished = true
				writes <- func() { peer.CloseWrite() }
			}
		case opReset:
			s.hurt = true
			peer.Reset()
		case opLeave:
			s.hurt = true
			peer.Close()
		case opPace:
			pace.Store(int64(time.Duration(next()) * time.Millisecond))
		case opTake:
			select {
			case b, ok := <-hub.Events():
				if ok {
					s.take(b)
				}
			default:
			}
		case opTrySend:
			s.send(int(next()))
		case opSendMany:
			s.sendMany(int(next()))
		case opNotify:
			if s.c != nil {
				s.c.NotifyDrained()
			}
		case opFinish:
			if s.c != nil {
				s.left = true
				s.c.Finish()
			}
		case opClose:
			if s.c != nil {
				s.left = true
				s.c.Close()
			}
		case opShutdown:
			if !shutdown {
				shutdown, s.left, s.hurt = true, true, true
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(next())*time.Millisecond)
				go func() {
					defer close(closed)
					defer cancel()
					hub.Shutdown(ctx)
				}()
			}
		case opSleep:
			d := time.Duration(next()) * time.Millisecond
			slept += d
			sleepFor(d)
		case opWait:
			d := time.Duration(next()) * time.Second
			slept += d
			sleepFor(d)
		}
		synctest.Wait()
		s.c = conn.Load()
	}
	// Now all that can arrive does, within less than any timeout.
	pace.Store(0)
	settled := slept < time.Second // before that nothing of ours has timed out
	for range 20 {
		synctest.Wait()
		select {
		case b, ok := <-hub.Events():
			if ok {
				s.take(b)
			}
		case <-time.After(100 * time.Millisecond):
		}
	}
	whole := settled && !s.hurt && !s.left && how&(scriptTight|scriptFaults) == 0
	if !shutdown {
		close(closed)
		hub.Close()
	}
	for open := true; open; {
		select {
		case b, ok := <-hub.Events():
			if open = ok; ok {
				s.take(b)
			}
		case <-time.After(time.Hour):
			t.Fatal("the hub does not end")
		}
	}
	<-closed
	close(writes)
	peer.Close()
	<-wrote
	err = <-served
	s.c = conn.Load()
	s.check(how&scriptNamed != 0, whole, err, <-wire)
}

// frame gives the peer one more message.
func (s *scene) frame(n int) {
	if s.bad || s.finished {
		return
	}
	m := body(1, len(s.sent), n)
	s.sent = append(s.sent, m)
	s.pending = append(s.pending, wire(m)...)
}

// write writes the first n bytes of what the peer has.
func (s *scene) write(writes chan<- func(), n int) {
	if n = min(n, len(s.pending)); n == 0 || s.finished {
		return
	}
	p := s.pending[:n]
	s.pending = s.pending[n:]
	writes <- func() { s.peer.Write(p) }
}

func (s *scene) send(n int) {
	if s.c == nil || s.handler {
		return
	}
	m := body(2, len(s.accepted), n)
	if s.c.TrySend(m) == nil {
		s.accepted = append(s.accepted, m)
	}
}

func (s *scene) sendMany(n int) {
	if s.c == nil || s.handler {
		return
	}
	var ms [][]byte
	for i := range n {
		ms = append(ms, body(2, len(s.accepted)+i, 10*i))
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), 100*time.Millisecond)
	defer cancel()
	n, _ = s.c.SendMany(ctx, slices.Values(ms))
	s.accepted = append(s.accepted, ms[:n]...)
}

// take checks a batch against those before.
func (s *scene) take(b *sockhub.Batch) {
	s.batch++
	if s.handler && len(b.Connected)+len(b.Unknown)+len(b.Received)+len(b.Drained)+len(b.Ended)+len(b.Disconnected) > 0 {
		s.t.Errorf("Events tells of a connection that has a Handler: %+v", b)
	}
	for range b.Unknown {
		if s.reported {
			s.t.Error("reported twice")
		}
		s.reported = true
	}
	for _, m := range b.Messages() {
		if !s.reported || s.ended || s.gone {
			s.t.Errorf("data, reported %v, ended %v, gone %v", s.reported, s.ended, s.gone)
		}
		s.dataIn = s.batch
		s.got = append(s.got, bytes.Clone(m))
	}
	for range b.Ended {
		if !s.reported || s.ended || s.gone || s.dataIn == s.batch {
			s.t.Errorf("Ended, reported %v, ended %v, gone %v, its last data with it %v", s.reported, s.ended, s.gone, s.dataIn == s.batch)
		}
		s.ended = true
	}
	for _, d := range b.Disconnected {
		if !s.reported || s.gone {
			s.t.Errorf("Disconnected, reported %v, gone %v", s.reported, s.gone)
		}
		s.gone, s.disconnection = true, d
	}
	b.Release()
}

// check is held when all is over. whole: nothing but the peer's orderly end, or a
// message that is too large, has ended the connection.
func (s *scene) check(named, whole bool, served error, out []byte) {
	t := s.t
	if s.c == nil {
		if served == nil || s.reported || len(s.accepted)+len(s.got) > 0 || len(out) > 0 {
			t.Errorf("not served, %v; reported %v, %d messages, answered %q", served, s.reported, len(s.got), out)
		}
		if whole && (!named || len(s.sent) > 0 && len(s.pending) == 0 && len(s.sent[0]) > 0 && len(s.sent[0]) <= sockhub.MaxNameLen) {
			t.Errorf("not served: %v", served)
		}
		return
	}
	if served != nil || !s.gone || !s.handler && !s.reported {
		t.Fatalf("served, %v; reported %v, gone %v", served, s.reported, s.gone)
	}
	var wrote [][]byte
	if named {
		if len(s.sent) == 0 || string(s.sent[0]) != s.c.Name() {
			t.Fatalf("let in as %q", s.c.Name())
		}
		s.sent = s.sent[1:]
		wrote = append(wrote, []byte("OK"))
	}
	if err := sameBodies(s.got, s.sent[:min(len(s.got), len(s.sent))]); err != nil {
		t.Errorf("received: %v", err)
	}
	if whole && len(s.pending) == 0 && len(s.got) != len(s.sent) {
		t.Errorf("received %d of %d messages", len(s.got), len(s.sent))
	}

	d := s.disconnection
	checkReport(t, s.c, d, false)
	r := d.Report
	if r.AcceptedMessages != uint64(len(s.accepted)) {
		t.Errorf("%d were accepted: %+v", len(s.accepted), r)
	}
	// A peer that is cut off in its message may be told so before the message is seen to be too large.
	switch tooLarge := errors.Is(d.Err, sockhub.ErrMessageTooLarge); {
	case tooLarge && !s.bad,
		whole && s.bad && len(s.pending) == 0 && !tooLarge,
		whole && !s.bad && s.finished && len(s.pending) == 0 && !s.handler && d.Err != io.EOF:
		t.Errorf("ended with %v; too large %v, finished %v", d.Err, s.bad, s.finished)
	}

	// What the peer read begins what was accepted, and the report goes on from there.
	arrived, cut, _ := readAll(bytes.NewReader(out))
	if n := len(wrote); len(arrived) >= n {
		if err := sameBodies(arrived[:n], wrote); err != nil {
			t.Errorf("the answer: %v", err)
		}
		arrived = arrived[n:]
	} else if arrived = nil; !bytes.HasPrefix(wire([]byte("OK")), cut) {
		t.Errorf("the answer begins with %q", cut)
	} else {
		cut = nil
	}
	if uint64(len(arrived)) > r.WrittenMessages || len(arrived) > len(s.accepted) {
		t.Fatalf("%d arrived: %+v", len(arrived), r)
	}
	if err := sameBodies(arrived, s.accepted[:len(arrived)]); err != nil {
		t.Errorf("arrived: %v", err)
	}
	if len(cut) > 0 && (len(arrived) == len(s.accepted) || !bytes.HasPrefix(wire(s.accepted[len(arrived)]), cut)) {
		t.Errorf("%d bytes arrived behind message %d, which are not of the next", len(cut), len(arrived))
	}
	if whole && r.WrittenMessages == r.AcceptedMessages && len(arrived) != len(s.accepted) {
		t.Errorf("%d arrived of what was written: %+v", len(arrived), r)
	}
	rest := s.accepted[int(r.WrittenMessages):]
	if r.Cut {
		if !bytes.Equal(r.CutMessage(), rest[0]) {
			t.Error("another message was cut")
		}
		rest = rest[1:]
	}
	if err := sameBodies(slices.Collect(r.Unsent()), rest); err != nil {
		t.Errorf("unsent: %v", err)
	}
}

// echoScene answers each message with itself.
type echoScene scene

func (s *echoScene) Message(r *sockhub.Reply, m []byte) {
	s.got = append(s.got, bytes.Clone(m))
	if r.Send(m) == nil {
		s.accepted = append(s.accepted, s.got[len(s.got)-1])
	}
}

func (s *echoScene) Drained(*sockhub.Reply) {}

func (s *echoScene) Disconnected(d sockhub.Disconnection) {
	if s.gone {
		s.t.Error("Disconnected twice")
	}
	s.gone, s.disconnection = true, d
}
