package sockhub_test

// Report: what was written, cut and not sent.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

func TestReportTellsWrittenCutAndUnsentApart(t *testing.T) {
	for _, tt := range []struct {
		name    string
		buffer  int // what leaves of frames of 8 + 10 bytes
		written uint64
		cut     string
		cutAt   uint64
		unsent  []string
	}{
		{"nothing was cut", 36, 2, "", 0, []string{"message..2", "message..3"}},
		{"a header was cut", 36 + 3, 2, "message..2", 0, []string{"message..3"}},
		{"behind a header", 36 + 8, 2, "message..2", 0, []string{"message..3"}},
		{"a body was cut", 36 + 12, 2, "message..2", 4, []string{"message..3"}},
		{"all was written", 100, 4, "", 0, nil},
		{"almost all", 71, 3, "message..3", 9, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLine(t, nil, &memnet.Options{Buffer: tt.buffer}, nil)
				if _, err := l.c.SendMany(t.Context(), of("message..0", "message..1", "message..2", "message..3")); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				l.c.Close()
				r := l.endsWith(sockhub.ErrClosed).Report
				if d := cmp.Diff(tt.unsent, unsent(r)); d != "" {
					t.Errorf("unsent (-want +got):\n%s", d)
				}
				if r.AcceptedMessages != 4 || r.AcceptedBytes != 40 || r.WrittenMessages != tt.written || r.Cut != (tt.cut != "") ||
					string(r.CutMessage()) != tt.cut || r.CutWritten != tt.cutAt || r.Unacked != int64(min(tt.buffer, 72)) {
					t.Errorf("%+v", r)
				}
				if d := cmp.Diff(unsent(r), unsent(r)); d != "" {
					t.Error("a second look differs")
				}
				for range r.Unsent() {
					break
				}
				// The peer has the rest, and then the end.
				msgs, cut, err := readAll(l.p)
				if err != nil || uint64(len(msgs)) != tt.written || len(cut) != tt.buffer%18 && tt.buffer < 72 {
					t.Errorf("the peer got %q, and %d bytes, %v", msgs, len(cut), err)
				}
			})
		})
	}
}

func TestAnswerOfTheHandshakeIsInNoReport(t *testing.T) {
	for _, buffer := range []int{1, 8, 9, 10, 11, 1000} {
		synctest.Test(t, func(t *testing.T) {
			r := newRoom(t, nil, nil)
			ours, peer := memnet.Pair(&memnet.Options{Buffer: buffer})
			defer peer.Close()
			go peer.Write(frame("w"))
			c, err := r.ServeConn(t.Context(), ours, nil)
			if err != nil {
				t.Fatal(err)
			}
			c.TrySend([]byte("first"))
			r.take()
			c.Close()
			d := r.endOf(c)
			rep := d.Report
			switch {
			case rep.AcceptedMessages != 1 || rep.AcceptedBytes != 5:
				t.Errorf("buffer of %d: %+v", buffer, rep)
			case buffer <= 10 && (rep.UnsentMessages != 1 || rep.Cut):
				t.Errorf("buffer of %d: %+v", buffer, rep)
			case buffer == 11 && (!rep.Cut || rep.CutWritten != 0):
				t.Errorf("buffer of %d: %+v", buffer, rep)
			case buffer == 1000 && rep.WrittenMessages != 1:
				t.Errorf("buffer of %d: %+v", buffer, rep)
			}
			if s := r.Stats(); s.MessagesOut != rep.WrittenMessages {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestReportsBalanceUnderFaults sends from several goroutines over connections
// that break in every way, and compares three accounts of it: what the senders
// were told, the report, and what the peer got.
func TestReportsBalanceUnderFaults(t *testing.T) {
	eachBubble(t, 600, func(t *testing.T, seed uint64) { breakAtRandom(t, rand.New(rand.NewPCG(seed, 1))) })
}

func breakAtRandom(t *testing.T, rng *rand.Rand) {
	chance := func() float64 { return max(0, rng.Float64()*1.5-0.5) }
	mo := &memnet.Options{
		Buffer: 1 + rng.IntN(3000), Seed: rng.Uint64(), Unix: rng.IntN(3) == 0, NoWriteNow: rng.IntN(3) == 0, NoUnacked: rng.IntN(3) == 0,
		Faults: memnet.Faults{ShortWrite: chance(), ShortRead: chance(), Blind: chance(), Spurious: chance(), Delay: chance(), Stall: chance()},
	}
	how := rng.IntN(6)
	switch how {
	case 0:
		mo.Faults.ResetAt[0] = 1 + rng.Int64N(40_000)
	case 1:
		mo.Faults.FailWriteAt[0] = 1 + rng.Int64N(40_000)
	}
	policy := sockhub.OverflowPolicy(1 + rng.IntN(4))
	l := newLine(t, &sockhub.Options{Linger: time.Second}, mo, &sockhub.ListenOptions{ConnOutbound: 1 + rng.Int64N(20_000), Overflow: policy})

	// The peer reads at its own pace.
	var (
		peer sync.WaitGroup
		wire []byte
	)
	pace := time.Duration(rng.IntN(20)) * time.Millisecond
	rp := rand.New(rand.NewPCG(rng.Uint64(), 0))
	peer.Go(func() {
		buf := make([]byte, 4000)
		for {
			n, err := l.p.Read(buf[:1+rp.IntN(len(buf))])
			wire = append(wire, buf[:n]...)
			if err != nil {
				return
			}
			if rp.IntN(4) == 0 {
				sleepFor(pace)
			}
		}
	})

	// The senders write down what was accepted of theirs.
	const senders = 3
	var (
		sending  sync.WaitGroup
		accepted [senders][]string
	)
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+rng.IntN(3000))*time.Millisecond)
	defer cancel()
	for s := range senders {
		rs := rand.New(rand.NewPCG(rng.Uint64(), uint64(s)))
		sending.Go(func() { accepted[s] = sendAtRandom(t, ctx, l.c, s, rs, time.Millisecond) })
	}
	sleepFor(time.Duration(rng.IntN(1000)) * time.Millisecond)
	switch how {
	case 2:
		l.c.Close()
	case 3:
		l.p.Reset()
	default: // also if a fault has ended it, or will
		sending.Wait()
		l.c.Finish()
	}
	sending.Wait()
	left := make(chan struct{})
	go func() { peer.Wait(); close(left) }()
	select {
	case <-left:
	case <-time.After(24 * time.Hour): // a write has failed, and the peer has yet to leave
	}
	l.p.Close()
	peer.Wait()
	<-time.After(time.Minute) // it may linger

	d := l.ended()
	r := d.Report
	var all []string
	for _, a := range accepted {
		all = append(all, a...)
	}
	if r.AcceptedMessages != uint64(len(all)) {
		t.Errorf("%d were accepted: %+v", len(all), r)
	}
	if r.DroppedMessages > 0 && policy != sockhub.DropOldest {
		t.Errorf("dropped under %v: %+v", policy, r)
	}
	got, cut, _ := readAll(strings.NewReader(string(wire)))
	if uint64(len(got)) > r.WrittenMessages {
		t.Errorf("%d arrived: %+v", len(got), r)
	}
	if how == 2 && policy != sockhub.DisconnectPeer { // nobody destroys what was written
		if uint64(len(got)) != r.WrittenMessages || r.Cut != (len(cut) > 0) || r.Cut && r.CutWritten != uint64(max(0, len(cut)-8)) {
			t.Errorf("%d and %d bytes arrived: %+v", len(got), len(cut), r)
		}
	}
	if errors.Is(d.Err, sockhub.ErrClosed) && how > 3 && (r.WrittenMessages+r.DroppedMessages != r.AcceptedMessages || uint64(len(got)) != r.WrittenMessages) {
		t.Errorf("%d arrived of what was finished: %+v", len(got), r)
	}

	// Each sender's messages are, in order: those that arrived, perhaps
	// some that were written or dropped, the cut one, the unsent ones.
	rest := unsent(r)
	if r.Cut {
		rest = append([]string{string(r.CutMessage())}, rest...)
	}
	known := append(texts(got), rest...)
	dropped := r.DroppedMessages + r.WrittenMessages - uint64(len(got))
	for s, a := range accepted {
		i := 0
		for _, m := range known {
			if !strings.HasPrefix(m, fmt.Sprint(s, ":")) {
				continue
			}
			j := slices.Index(a[i:], m)
			if j < 0 {
				t.Fatalf("%.20q arrived or is unsent in the wrong place, or twice, or was never accepted", m)
			}
			i += j + 1
		}
	}
	if uint64(len(known))+dropped != uint64(len(all)) {
		t.Errorf("%d are known: %+v", len(known), r)
	}
	if dropped == r.DroppedMessages && dropped == 0 {
		slices.Sort(known)
		slices.Sort(all)
		if !slices.Equal(known, all) {
			t.Error("not the same messages")
		}
	}
}

// sendAtRandom returns what was accepted. Its waits are in proportion to unit.
func sendAtRandom(t *testing.T, ctx context.Context, c *sockhub.Conn, s int, rng *rand.Rand, unit time.Duration) (accepted []string) {
	k := 0
	message := func() string {
		k++
		return fmt.Sprint(s, ":", k, ":") + strings.Repeat(string(rune('a'+rng.IntN(26))), rng.IntN(1+rng.IntN(6000)))
	}
	for range 40 {
		var err error
		switch rng.IntN(4) {
		case 0:
			m := message()
			if err = c.TrySend([]byte(m)); err == nil {
				accepted = append(accepted, m)
			}
		case 1:
			m := message()
			if err = c.SendParts(ctx, []byte(m[:2]), []byte(m[2:])); err == nil {
				accepted = append(accepted, m)
			}
		case 2:
			m := message()
			if err = c.Send(ctx, []byte(m)); err == nil {
				accepted = append(accepted, m)
			}
		case 3:
			var run []string
			for range rng.IntN(10) {
				run = append(run, message())
			}
			var n int
			n, err = c.SendMany(ctx, of(run...))
			if n > len(run) || err == nil && n != len(run) {
				t.Errorf("SendMany: %d of %d, %v", n, len(run), err)
			}
			accepted = append(accepted, run[:n]...)
		}
		switch {
		case err == nil, errors.Is(err, sockhub.ErrBackpressure), errors.Is(err, context.DeadlineExceeded):
		case errors.Is(err, sockhub.ErrClosed), errors.Is(err, sockhub.ErrNotConnected), errors.Is(err, sockhub.ErrSlowPeer):
			return accepted
		default:
			t.Errorf("a send fails with %v", err)
		}
		if rng.IntN(5) == 0 {
			sleepFor(time.Duration(rng.IntN(30)) * unit)
		}
	}
	return accepted
}

func TestWriteErrorLeavesTheInputToItsEnd(t *testing.T) {
	for _, unix := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l := newLine(t, nil, &memnet.Options{Unix: unix, Faults: memnet.Faults{FailWriteAt: [2]int64{20, 0}}}, nil)
			l.sent("12 bytes out", "and no more")
			synctest.Wait()
			if err := l.c.TrySend(nil); !errors.Is(err, sockhub.ErrNotConnected) {
				t.Errorf("after the write failed: %v", err)
			}
			l.p.Write(frames("still", "there"))
			l.happened("message  still", "message  there")
			l.p.Read(make([]byte, 100)) // so that its Close is no reset
			l.p.Close()
			d := l.endsWith(syscall.ETIMEDOUT)
			if r := d.Report; r.WrittenMessages != 1 || r.UnsentMessages != 1 || r.Cut {
				t.Errorf("%+v", r)
			}
			var op interface{ Timeout() bool }
			if !errors.As(d.Err, &op) {
				t.Errorf("%T is no error of package net", d.Err)
			}
		})
	}
}

func TestCleanEndOfAPeerWhoGotEverythingIsEOF(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, nil, nil, nil)
		l.sent("answer")
		expect(t, l.p, frame("answer"))
		l.p.Close()
		l.happened("ended", "disconnected  EOF")
	})
	synctest.Test(t, func(t *testing.T) { // but not within a message
		l := newLine(t, nil, nil, nil)
		l.p.Write(frames("one", "two")[:15])
		l.p.Close()
		l.happened("message  one", "ended", "disconnected  unexpected EOF")
	})
	synctest.Test(t, func(t *testing.T) { // nor by a reset
		l := newLine(t, nil, nil, nil)
		l.p.Write(frames("one", "two"))
		l.p.Reset()
		<-time.After(time.Second) // the guess that nothing more is there takes its time to be found wrong
		b := l.take()
		if n := len(b.Received); n != 1 {
			t.Errorf("%d deliveries", n)
		}
		d := l.find(b)
		if !errors.Is(d.Err, syscall.ECONNRESET) || errors.Is(d.Err, io.EOF) {
			t.Errorf("ended with %v", d.Err)
		}
	})
}

// find returns the connection's end, which is in b or waits behind it.
func (l *line) find(b *sockhub.Batch) sockhub.Disconnection {
	l.t.Helper()
	if len(b.Disconnected) > 0 {
		return b.Disconnected[0]
	}
	return l.ended()
}

// A Handler learns that its answer was refused, or finds it in the report.
func TestAnswersAfterTheEndOfTheOutput(t *testing.T) {
	for what, end := range map[string]func(r *sockhub.Reply, p *memnet.End){
		"Reply.CloseWrite": func(r *sockhub.Reply, _ *memnet.End) { r.CloseWrite() },
		"Reply.Finish":     func(r *sockhub.Reply, _ *memnet.End) { r.Finish() },
		"Reply.Close":      func(r *sockhub.Reply, _ *memnet.End) { r.Close() },
		"Conn.Close":       func(r *sockhub.Reply, _ *memnet.End) { r.Conn().Close() },
		"a failed write": func(r *sockhub.Reply, p *memnet.End) {
			p.Reset()
			r.Conn().TrySend([]byte("x"))
			<-time.After(time.Second)
		},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var (
					calls, accepted int
					p               *memnet.End
					gone            = make(chan sockhub.Disconnection, 1)
				)
				h := &handlerFuncs{
					message: func(r *sockhub.Reply, m []byte) {
						if calls++; calls == 2 {
							end(r, p)
						}
						for range 2 {
							switch err := r.Send(m); {
							case err == nil:
								accepted++
							case !errors.Is(err, sockhub.ErrClosed) && !errors.Is(err, sockhub.ErrNotConnected):
								t.Error(err)
							}
						}
					},
					disconnected: func(d sockhub.Disconnection) { gone <- d },
				}
				_, c, peer := serveHandler(t, sockhub.Anonymous, h, nil)
				p = peer
				p.Write(frames("1", "2", "3"))
				<-time.After(2 * time.Second)
				p.Close()
				d := <-gone
				checkReport(t, c, d, false)
				if d.Report.AcceptedMessages < uint64(accepted) {
					t.Errorf("%d answers were accepted: %v, %+v", accepted, d.Err, d.Report)
				}
			})
		})
	}
}

// Another goroutine ends the output while a Handler is called: what that has
// answered already, and what it answers in the same turn, is refused or reported.
func TestAnswersBesideAFinishOfAnotherGoroutine(t *testing.T) {
	for name, end := range map[string]func(*sockhub.Conn){
		"Finish":     func(c *sockhub.Conn) { c.Finish() },
		"CloseWrite": func(c *sockhub.Conn) { c.CloseWrite() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gone := make(chan sockhub.Disconnection, 1)
				var accepted uint64
				calls := 0
				h := &handlerFuncs{
					message: func(r *sockhub.Reply, m []byte) {
						if r.Send(m) == nil {
							accepted++
						}
						if calls++; calls == 2 {
							done := make(chan struct{})
							go func() { defer close(done); end(r.Conn()) }()
							<-done
						}
					},
					disconnected: func(d sockhub.Disconnection) { gone <- d },
				}
				_, _, p := serveHandler(t, sockhub.Anonymous, h, nil)
				p.Write(frames("1", "2", "3", "4"))
				p.CloseWrite()
				d := <-gone
				r := d.Report
				var unsent []string
				for m := range r.Unsent() {
					unsent = append(unsent, string(m))
				}
				if r.AcceptedMessages != accepted || r.WrittenMessages+r.UnsentMessages != accepted || uint64(len(unsent)) != r.UnsentMessages {
					t.Errorf("%d answers without an error, unsent %q, %+v", accepted, unsent, r)
				}
			})
		})
	}
}

func TestReportForALog(t *testing.T) {
	for want, r := range map[string]sockhub.Report{
		"0 of 0 messages written":                           {Unacked: -1},
		"3 of 3 messages written":                           {AcceptedMessages: 3, WrittenMessages: 3, Unacked: 90},
		"5 accepted: 1 written, 3 unsent, 1 cut":            {AcceptedMessages: 5, WrittenMessages: 1, UnsentMessages: 3, Cut: true},
		"2 accepted: 0 written, 2 dropped":                  {AcceptedMessages: 2, DroppedMessages: 2},
		"1 accepted: 0 written, 1 cut":                      {AcceptedMessages: 1, Cut: true, CutSize: 10},
		"9 accepted: 2 written, 3 unsent, 3 dropped, 1 cut": {AcceptedMessages: 9, WrittenMessages: 2, UnsentMessages: 3, DroppedMessages: 3, Cut: true},
	} {
		if got := r.String(); got != want {
			t.Errorf("%q instead of %q", got, want)
		}
	}
}

// The output of a connection has failed, and its peer is silent: it ends after WriteTimeout,
// whichever that is, with what has failed.
func TestWriteTimeoutAfterAFailedWrite(t *testing.T) {
	for timeout, want := range map[time.Duration]time.Duration{3 * time.Second: 3 * time.Second, -1: sockhub.DefaultWriteTimeout} {
		synctest.Test(t, func(t *testing.T) {
			l := newLine(t, &sockhub.Options{WriteTimeout: timeout}, &memnet.Options{Faults: memnet.Faults{FailWriteAt: [2]int64{20, 0}}}, nil)
			took := within(func() {
				l.sent(string(make([]byte, 100)))
				if d := ended(t, l.Hub, l.c); !errors.Is(d.Err, syscall.ETIMEDOUT) || !d.Report.Cut {
					t.Errorf("%v, %v", d.Err, d.Report)
				}
			})
			if took != want {
				t.Errorf("WriteTimeout %v: it ended after %v", timeout, took)
			}
		})
	}
}

// The output ends within a call: all that it answers is reported, in its order.
func TestAnswersAfterTheEndAreReportedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c *sockhub.Conn
		reports := make(chan sockhub.Disconnection, 1)
		large := string(make([]byte, 10_000))
		h := &handlerFuncs{
			message: func(r *sockhub.Reply, m []byte) {
				if string(m) == "end" {
					done := make(chan struct{})
					go func() { c.Finish(); close(done) }()
					<-done
				}
				r.Send([]byte("small " + string(m)))
				r.Send([]byte(large))
			},
			disconnected: func(d sockhub.Disconnection) { reports <- d },
		}
		hub := openHub(t, &sockhub.Options{WriteTimeout: -1})
		var p *memnet.End
		c, p = serveMemory(t, hub, &memnet.Options{Buffer: 50}, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
		c.TrySend(make([]byte, 1000))
		synctest.Wait()
		p.Write(frames("1", "2", "end"))
		synctest.Wait()
		c.Close()
		d := <-reports
		checkReport(t, c, d, false)
		if got, want := unsent(d.Report), []string{"small 1", large, "small 2", large, "small end", large}; !slices.Equal(got, want) {
			t.Errorf("%d unsent: %.20q", len(got), got)
		}
	})
}
