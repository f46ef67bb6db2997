package sockhub_test

// Names, IDs, claims, and how clients come and go.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// room is a hub with a listener in memory, in a bubble of synctest. Nothing
// receives from Events but the test itself.
type room struct {
	*sockhub.Hub
	t *testing.T
	l *memnet.Listener
}

func newRoom(t *testing.T, o *sockhub.Options, lo *sockhub.ListenOptions) *room {
	t.Helper()
	hub, err := sockhub.New(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hub.Close() })
	r := &room{Hub: hub, t: t, l: memnet.Listen(nil)}
	if _, err := hub.Serve(r.l, lo); err != nil {
		t.Fatal(err)
	}
	return r
}

// claim connects a peer that gives a name.
func (r *room) claim(name string) *memnet.End {
	r.t.Helper()
	p, err := r.l.Dial(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { p.Close() })
	if _, err := p.Write(frame(name)); err != nil {
		r.t.Fatal(err)
	}
	return p
}

// join is claim of one who is let in.
func (r *room) join(name string) *memnet.End {
	r.t.Helper()
	p := r.claim(name)
	expect(r.t, p, frame("OK"))
	return p
}

// refused is claim of one who is not.
func (r *room) refused(name string) {
	r.t.Helper()
	endsUnheard(r.t, r.claim(name))
}

// endsUnheard checks that nothing comes but the end, and waits until its hub knows.
func endsUnheard(t *testing.T, p io.Reader) {
	t.Helper()
	if n, err := p.Read(make([]byte, 1)); n > 0 || err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read %d bytes, %v; want only the end", n, err)
	}
	synctest.Wait()
}

// expected is Expect that must succeed.
func (r *room) expected(name string, o *sockhub.ClientOptions) sockhub.ID {
	r.t.Helper()
	id, err := r.Expect(name, o)
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

// take takes one batch that waits, or none. What has led to it is over, and
// what follows from its being taken is too.
func (r *room) take() *sockhub.Batch {
	synctest.Wait()
	defer synctest.Wait()
	select {
	case b := <-r.Events():
		return b
	default:
		return &sockhub.Batch{}
	}
}

// news takes all batches that wait, and those that follow from it.
func (r *room) news() (all []string) {
	for {
		b := r.take()
		if len(batchText(b)) == 0 {
			return all
		}
		all = append(all, batchText(b)...)
	}
}

// batchText is what happened to whom. Every reason but a refusal by a rule is
// given.
func batchText(b *sockhub.Batch) (all []string) {
	add := func(what string, c *sockhub.Conn, more ...any) {
		all = append(all, strings.TrimSpace(fmt.Sprintln(append([]any{what, c.Name()}, more...)...)))
	}
	for _, c := range b.Connected {
		add("connected", c)
	}
	for _, c := range b.Unknown {
		add("unknown", c)
	}
	for c, m := range b.Messages() {
		add("message", c, string(m))
	}
	for _, c := range b.Ended {
		add("ended", c)
	}
	for _, d := range b.Disconnected {
		if refused := new(sockhub.AdmissionError); errors.As(d.Err, &refused) {
			add("disconnected", d.Conn, "not admitted")
		} else {
			add("disconnected", d.Conn, d.Err)
		}
	}
	return all
}

// gone is whose connections ended.
func gone(b *sockhub.Batch) (names []string) {
	for _, d := range b.Disconnected {
		names = append(names, d.Conn.Name())
	}
	return names
}

// happened checks what news there is.
func (r *room) happened(want ...string) {
	r.t.Helper()
	if d := cmp.Diff(want, r.news()); d != "" {
		r.t.Fatalf("events (-want +got):\n%s", d)
	}
}

// conn is the current connection of a client, when those that were made are there.
func (r *room) conn(name string) *sockhub.Conn {
	r.t.Helper()
	synctest.Wait()
	id, ok := r.Lookup(name)
	if !ok {
		r.t.Fatalf("nobody is called %s", name)
	}
	c, ok := r.Conn(id)
	if !ok {
		r.t.Fatalf("%s is not connected", name)
	}
	return c
}

// sends checks what a Send by ID returns.
func (r *room) sends(id sockhub.ID, want error) {
	r.t.Helper()
	if err := r.TrySend(id, nil); !errors.Is(err, want) {
		r.t.Fatalf("TrySend to %d: %v, want %v", id, err, want)
	}
}

func deny(sockhub.Peer) error { return errors.New("no") }

func TestExpectedClientKeepsItsID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		id := r.expected("w", nil)
		r.sends(id, sockhub.ErrNotConnected)
		for range 3 {
			p := r.join("w")
			r.happened("connected w")
			if c := r.conn("w"); c.ID() != id {
				t.Errorf("the ID is %d, want %d", c.ID(), id)
			}
			r.sends(id, nil)
			expect(t, p, frame(""))
			p.Close()
			r.happened("ended w", "disconnected w EOF")
			r.sends(id, sockhub.ErrNotConnected)
		}
		if s := r.Stats(); s.Expected != 1 || s.Conns != 0 || s.Accepted != 3 {
			t.Errorf("%+v", s)
		}
	})
}

func TestOthersLoseTheirIDWhenTheirEndIsTaken(t *testing.T) {
	for _, mode := range []sockhub.Mode{sockhub.Named, sockhub.Anonymous} {
		synctest.Test(t, func(t *testing.T) {
			r := newRoom(t, nil, &sockhub.ListenOptions{Mode: mode})
			seen := map[sockhub.ID]bool{}
			for range 3 {
				p := r.claim("x") // to Anonymous, a message
				synctest.Wait()
				b := r.take()
				if len(b.Unknown) != 1 {
					t.Fatal(batchText(b))
				}
				id := b.Unknown[0].ID()
				if id == 0 || seen[id] {
					t.Errorf("the ID is %d, as before", id)
				}
				seen[id] = true
				r.sends(id, nil)
				r.news()
				p.Reset()
				synctest.Wait()
				r.sends(id, sockhub.ErrNotConnected)
				if b := r.take(); len(b.Disconnected) != 1 {
					t.Fatal(batchText(b))
				}
				r.sends(id, sockhub.ErrUnknownID)
				if _, ok := r.Lookup("x"); ok {
					t.Error("the name is still known")
				}
				if err := r.Forget(id); !errors.Is(err, sockhub.ErrUnknownID) {
					t.Errorf("Forget: %v", err)
				}
			}
		})
	}
}

func TestNamesAndIDsThatAreNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		for _, name := range []string{"", strings.Repeat("x", sockhub.MaxNameLen+1)} {
			if _, err := r.Expect(name, nil); !errors.Is(err, sockhub.ErrBadName) {
				t.Errorf("Expect %.10q: %v", name, err)
			}
			r.refused(name)
		}
		long := strings.Repeat("x", sockhub.MaxNameLen)
		id := r.expected(long, nil)
		r.join(long)
		if _, err := r.Expect(long, nil); !errors.Is(err, sockhub.ErrNameTaken) {
			t.Errorf("Expect twice: %v", err)
		}
		for _, none := range []sockhub.ID{0, id + 1, id + 1<<32, 1<<64 - 1} {
			r.sends(none, sockhub.ErrUnknownID)
			if err := r.Forget(none); !errors.Is(err, sockhub.ErrUnknownID) {
				t.Errorf("Forget %d: %v", none, err)
			}
		}
		if _, err := r.Expect("w", &sockhub.ClientOptions{Duplicates: 9}); err == nil {
			t.Error("a policy that is none")
		}
		r.Close()
		if _, err := r.Expect("w", nil); !errors.Is(err, sockhub.ErrClosed) {
			t.Errorf("Expect after Close: %v", err)
		}
	})
}

// ---- adoption ----

func TestUnexpectedConnectionIsAdoptedWithItsID(t *testing.T) {
	for _, taken := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newRoom(t, nil, nil)
			p := r.join("w")
			want := []string{"connected w", "message w hello"}
			if taken {
				r.happened("unknown w")
			}
			before, ok := r.Lookup("w")
			p.Write(frame("hello"))
			synctest.Wait()
			if id := r.expected("w", nil); !ok || id != before {
				t.Errorf("the ID is %d, want %d", id, before)
			}
			r.happened(want...)
			p.Close()
			r.happened("ended w", "disconnected w EOF")
			r.sends(before, sockhub.ErrNotConnected)
			r.join("w")
			r.happened("connected w")
			if id := r.conn("w").ID(); id != before {
				t.Errorf("the ID after a reconnect is %d, want %d", id, before)
			}
		})
	}
}

// The moment of the Expect is moved over the whole life of the connection.
func TestAdoptedIsNeverReportedAfterItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for at := range 4 {
			r := newRoom(t, nil, nil)
			adopt := func(now int) {
				if now == at {
					r.expected("w", nil)
				}
			}
			p := r.join("w")
			adopt(0)
			p.CloseWrite()
			synctest.Wait()
			adopt(1)
			p.Reset()
			adopt(2) // perhaps before, perhaps after the hub hears of it
			synctest.Wait()
			adopt(3)
			gone, reported := map[*sockhub.Conn]bool{}, 0
			for {
				b := r.take()
				if len(batchText(b)) == 0 {
					break
				}
				for _, c := range append(b.Connected, b.Unknown...) {
					reported++
					if gone[c] {
						t.Errorf("at %d: %s is reported after its end", at, c)
					}
				}
				for _, d := range b.Disconnected {
					gone[d.Conn] = true
				}
			}
			if len(gone) != 1 || reported != 1 {
				t.Errorf("at %d: %d connections reported, %d gone", at, reported, len(gone))
			}
			r.join("w")
			r.happened("connected w")
		}
	})
}

func TestDeniedAdoptionEndsTheConnectionAndTakesANewID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		p := r.join("w")
		r.happened("unknown w")
		old, _ := r.Lookup("w")
		id := r.expected("w", &sockhub.ClientOptions{Admit: deny})
		if now, ok := r.Lookup("w"); id == old || now != id || !ok {
			t.Errorf("the IDs are %d and %d, and %d before", id, now, old)
		}
		endsUnheard(t, p)
		synctest.Wait()
		r.sends(old, sockhub.ErrNotConnected)
		r.happened("disconnected w not admitted")
		r.sends(old, sockhub.ErrUnknownID)
		r.sends(id, sockhub.ErrNotConnected)
		r.refused("w")
		r.happened()
		if s := r.Stats(); s.RefusedPolicy != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// The connection that is still ending has the name, and the registration has
// another ID: Forget of that must leave nothing behind.
func TestForgetOfANameWhoseOldOwnerIsEnding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leave := make(chan struct{})
		h := &handlerFuncs{message: func(*sockhub.Reply, []byte) { <-leave }}
		r := newRoom(t, nil, &sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
		p := r.join("w")
		p.Write(frame("stay"))
		synctest.Wait()
		old, _ := r.Lookup("w")
		if err := r.Forget(old); err != nil {
			t.Fatal(err)
		}
		id := r.expected("w", nil)
		if id == old {
			t.Error("the forgotten ID is used again")
		}
		if err := r.Forget(id); err != nil {
			t.Fatal(err)
		}
		close(leave)
		synctest.Wait()
		r.sends(old, sockhub.ErrUnknownID)
		r.sends(id, sockhub.ErrUnknownID)
		if id, ok := r.Lookup("w"); ok {
			t.Errorf("the name is still that of %d", id)
		}
		r.join("w")
	})
}

// ---- Forget ----

func TestForgetEndsTheConnectionAndThenTheID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		id := r.expected("w", nil)
		p := r.join("w")
		r.happened("connected w")
		if err := r.Forget(id); err != nil {
			t.Fatal(err)
		}
		endsUnheard(t, p)
		synctest.Wait()
		r.sends(id, sockhub.ErrNotConnected)
		q := r.join("w") // a stranger now, and not kept waiting
		r.happened("unknown w", "disconnected w sockhub: closed")
		r.sends(id, sockhub.ErrUnknownID)
		if c := r.conn("w"); c.ID() == id {
			t.Error("a forgotten ID is back")
		}
		q.Close()
		r.news()
	})
}

func TestForgetOfOneWhoIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		id := r.expected("w", nil)
		if err := r.Forget(id); err != nil {
			t.Fatal(err)
		}
		r.sends(id, sockhub.ErrUnknownID)
		if _, ok := r.Lookup("w"); ok {
			t.Error("the name is still known")
		}
		id = r.expected("w", nil)
		r.join("w").Reset()
		synctest.Wait()
		if err := r.Forget(id); err != nil {
			t.Fatal(err)
		}
		r.sends(id, sockhub.ErrNotConnected) // its events are not taken
		if d := cmp.Diff([]string{"w"}, gone(r.take())); d != "" {
			t.Errorf("ends (-want +got):\n%s", d)
		}
		r.sends(id, sockhub.ErrUnknownID)
	})
}

// ---- two that claim one name ----

func TestSecondClaimIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		r.expected("w", nil)
		for _, name := range []string{"w", "x"} {
			p := r.join(name)
			r.refused(name)
			p.Write(frame("still here"))
			r.news()
			r.refused(name)
			p.Reset()
			synctest.Wait()
			r.join(name) // its end need not be taken for this
		}
		if s := r.Stats(); s.RefusedName != 4 || s.Accepted != 4 {
			t.Errorf("%+v", s)
		}
	})
}

func TestClaimWaitsForAnOwnerThatHasFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		r.expected("w", nil)
		p := r.join("w")
		p.CloseWrite()
		synctest.Wait()
		const n = 5
		let := 0
		var wg sync.WaitGroup
		for range n {
			q := r.claim("w")
			wg.Go(func() {
				if answer, _ := io.ReadAll(io.LimitReader(q, 10)); len(answer) > 0 {
					let++
				}
			})
		}
		synctest.Wait()
		if s := r.Stats(); s.RefusedName != 0 || s.Connecting != n || s.Conns != 1 {
			t.Errorf("%+v", s)
		}
		r.happened("connected w", "ended w", "disconnected w EOF", "connected w")
		wg.Wait()
		if s := r.Stats(); let != 1 || s.RefusedName != n-1 || s.Conns != 1 {
			t.Errorf("%d were let in; %+v", let, s)
		}
	})
}

func TestClaimWaitsNoLongerThanTheHandshakeMayTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := newRoom(t, &sockhub.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, &sockhub.ListenOptions{HalfOpen: true})
		r.join("w").CloseWrite()
		synctest.Wait()
		begun := time.Now()
		r.refused("w")
		if d := time.Since(begun); d != sockhub.DefaultHandshakeTimeout {
			t.Errorf("refused after %v", d)
		}
		synctest.Wait()
		if s := r.Stats(); s.HandshakeTimeouts != 1 || s.Conns != 1 {
			t.Errorf("%+v", s)
		}
		if !strings.Contains(log.String(), "has not ended") {
			t.Errorf("the log does not say what it has waited for: %s", &log)
		}
	})
}

func TestReplaceOldEndsTheOldOneFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{Duplicates: sockhub.ReplaceOld}, nil)
		id := r.expected("w", nil)
		old := r.join("w")
		r.happened("connected w")
		p := r.join("w") // answered before the events are taken
		endsUnheard(t, old)
		p.Write(frame("hello"))
		synctest.Wait()
		r.sends(id, sockhub.ErrNotConnected)
		b := r.take()
		if d := cmp.Diff([]string{"disconnected w " + sockhub.ErrReplaced.Error()}, batchText(b)); d != "" {
			t.Fatalf("the first batch (-want +got):\n%s", d)
		}
		r.sends(id, nil)
		r.happened("connected w", "message w hello")
		if c := r.conn("w"); c.ID() != id || c == b.Disconnected[0].Conn {
			t.Errorf("the connection is %v of %d", c, c.ID())
		}
	})
}

// roomForOne is a room whose Listener has one place, which is not left before end is
// closed; nor is "other" let in before.
func roomForOne(t *testing.T, end <-chan struct{}) *room {
	return newRoom(t, &sockhub.Options{Duplicates: sockhub.ReplaceOld}, &sockhub.ListenOptions{
		MaxConns: 1,
		Handler: func(*sockhub.Conn) sockhub.Handler {
			return &handlerFuncs{disconnected: func(sockhub.Disconnection) { <-end }}
		},
		Admit: func(p sockhub.Peer) error {
			if p.Name == "other" {
				<-end
			}
			return nil
		},
	})
}

// Who replaces an owner on a Listener that is full gets the owner's place there, whoever
// else comes when that has ended.
func TestReplaceOldOnAFullListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 50 {
			end := make(chan struct{})
			r := roomForOne(t, end)
			r.join("alpha")
			others := []*memnet.End{}
			for range 5 {
				others = append(others, r.claim("other"))
			}
			second := r.claim("alpha")
			synctest.Wait()
			close(end)
			got := make([]byte, 10)
			if _, err := io.ReadFull(second, got); err != nil || string(got[8:]) != "OK" {
				t.Fatalf("the second got %q, %v", got, err)
			}
			for _, o := range others {
				endsUnheard(t, o)
			}
			r.Close()
		}
	})
}

// Of several who claim a name one after the other, on a Listener that is full, the last one
// gets it whose handshake has not timed out.
func TestReplaceOldByTheLastOnAFullListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for n := range 100 {
			end := make(chan struct{})
			r := roomForOne(t, end)
			r.join("alpha")
			late, err := r.l.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Second)
			last := r.claim("alpha")
			synctest.Wait()
			other := r.claim("other")
			if n%2 == 0 { // the one that connected first
				late.Write(frame("alpha"))
				synctest.Wait()
				last = late
			} else {
				for range 2 {
					last = r.claim("alpha")
					synctest.Wait()
				}
				late.Write(frame("alpha"))
				<-time.After(sockhub.DefaultHandshakeTimeout - time.Second)
				endsUnheard(t, late)
			}
			synctest.Wait()
			close(end)
			expect(t, last, frame("OK"))
			synctest.Wait()
			if s := r.Stats(); s.Conns != 1 || s.Connecting != 0 || s.RefusedLimit != 1 {
				t.Fatalf("%+v", s)
			}
			endsUnheard(t, other)
			late.Close()
			r.Close()
		}
	})
}

// What a peer has sent before it finished is not lost when it comes back at once, whether
// it has taken what was sent to it or not.
func TestReplaceOldOfOneThatWasNotReadToItsEnd(t *testing.T) {
	for _, queued := range []int{0, 10 << 20} {
		synctest.Test(t, func(t *testing.T) {
			r := newRoom(t, &sockhub.Options{Duplicates: sockhub.ReplaceOld}, &sockhub.ListenOptions{ConnInbound: 100})
			r.expected("w", nil)
			old := r.join("w")
			r.happened("connected w")
			if queued > 0 {
				r.conn("w").TrySend(make([]byte, queued))
			}
			for _, m := range []string{"one", "two", "three"} {
				old.Write(frame(m))
				synctest.Wait()
			}
			old.CloseWrite() // of which the reader does not hear as long as it pauses
			synctest.Wait()
			r.claim("w")
			reason := "EOF"
			if queued > 0 {
				reason = sockhub.ErrReplaced.Error()
			}
			var all []string
			for range 20 { // it looks again every 100 ms
				<-time.After(100 * time.Millisecond)
				all = append(all, r.news()...)
			}
			if d := cmp.Diff([]string{"message w one", "message w two", "message w three", "ended w", "disconnected w " + reason, "connected w"}, all); d != "" {
				t.Errorf("%d bytes queued (-want +got):\n%s", queued, d)
			}
		})
	}
}

// But it does not wait for ever for a user who reads nothing.
func TestReplaceOldOfOneThatNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{Duplicates: sockhub.ReplaceOld, StreamOver: 10}, nil)
		r.expected("w", nil)
		old := r.join("w")
		r.happened("connected w")
		old.Write(frame("a message of more than ten bytes"))
		old.CloseWrite()
		synctest.Wait()
		s := r.take()
		if len(s.Received) != 1 || s.Received[0].Stream == nil {
			t.Fatalf("%+v", s)
		}
		begun := time.Now()
		r.join("w")
		if waited := time.Since(begun).Round(100 * time.Millisecond); waited != sockhub.DefaultHandshakeTimeout/2 {
			t.Errorf("it was let in after %v", waited)
		}
		r.happened("disconnected w "+sockhub.ErrReplaced.Error(), "connected w")
	})
}

// Nor for longer than it has time.
func TestReplaceOldInAShortHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{Duplicates: sockhub.ReplaceOld, StreamOver: 10, HandshakeTimeout: 50 * time.Millisecond}, nil)
		old := r.join("w")
		old.Write(frame("a message of more than ten bytes"))
		old.CloseWrite()
		r.take()
		r.join("w")
	})
}

// The old one would wait for its user for ever, and the new one for it.
func TestReplaceOldOfOneThatIsKeptOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{Duplicates: sockhub.ReplaceOld}, &sockhub.ListenOptions{HalfOpen: true})
		r.expected("w", nil)
		old := r.join("w")
		r.happened("connected w")
		old.CloseWrite()
		r.happened("ended w")
		r.join("w")
		endsUnheard(t, old)
		r.happened("disconnected w "+sockhub.ErrReplaced.Error(), "connected w")
	})
}

// Nor does ReplaceOld wait for a peer to take what is queued for it, that has finished and
// is gone, as far as anybody knows.
func TestReplaceOldOfOneThatTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{Duplicates: sockhub.ReplaceOld}, nil)
		r.expected("w", nil)
		old := r.join("w")
		r.happened("connected w")
		if err := r.conn("w").TrySend(make([]byte, 10<<20)); err != nil {
			t.Fatal(err)
		}
		old.CloseWrite()
		r.happened("ended w")
		begun := time.Now()
		r.join("w")
		if waited := time.Since(begun); waited > 0 {
			t.Errorf("it was let in after %v", waited)
		}
		r.happened("disconnected w "+sockhub.ErrReplaced.Error(), "connected w")
	})
}

// A connection whose output has failed ends though its peer does not: after WriteTimeout
// without input.
func TestFailedWriteEndsAConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		l := &line{room: newRoom(t, nil, nil)}
		ours, peer := net.Pipe()
		defer peer.Close()
		var err error
		if l.c, err = l.ServeConn(t.Context(), failingWrites{ours, broken}, &sockhub.ListenOptions{Mode: sockhub.Anonymous}); err != nil {
			t.Fatal(err)
		}
		l.take()
		l.sent("lost")
		<-time.After(time.Second)
		if err := l.c.TrySend(nil); err != sockhub.ErrNotConnected {
			t.Errorf("a Send behind the failed one: %v", err)
		}
		for range 3 { // what the peer says is still heard
			<-time.After(sockhub.DefaultWriteTimeout * 3 / 4)
			peer.Write(frame("hear"))
			if got := l.news(); !slices.Equal(got, []string{"message  hear"}) {
				t.Errorf("%q", got)
			}
		}
		begun := time.Now()
		<-l.c.Context().Done()
		if d := l.ended(); !errors.Is(d.Err, broken) || d.Report.UnsentMessages != 1 {
			t.Errorf("ended with %v: %v", d.Err, d.Report)
		}
		if took := time.Since(begun); took < sockhub.DefaultWriteTimeout || took > sockhub.DefaultWriteTimeout*5/4 {
			t.Errorf("ended after %v, want %v", took, sockhub.DefaultWriteTimeout)
		}
	})
}

type failingWrites struct {
	net.Conn
	err error
}

func (c failingWrites) Write([]byte) (int, error) { return 0, c.err }

// It returns what Events has been told of, or will be. Until then its context ends it.
func TestServeConnWaitsForTheEndBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		r.expected("w", nil)
		r.join("w")
		r.happened("connected w")
		r.conn("w").Close()
		synctest.Wait()
		serve := func(ctx context.Context) (*sockhub.Conn, error) {
			ours, p := memnet.Pair(nil)
			t.Cleanup(func() { p.Close() })
			p.Write(frame("w"))
			return r.ServeConn(ctx, ours, nil)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if c, err := serve(ctx); c != nil || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%v, %v", c, err)
		}
		served := make(chan *sockhub.Conn, 1)
		go func() {
			c, err := serve(t.Context())
			if err != nil {
				t.Error(err)
			}
			served <- c
		}()
		r.happened("disconnected w "+sockhub.ErrClosed.Error(), "connected w")
		if c, now := <-served, r.conn("w"); c != now {
			t.Errorf("%v was served, and %v is connected", c, now)
		}
	})
}

// Those between the first and the last were answered but never reported.
func TestReplacingTheOneThatHasJustReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{Duplicates: sockhub.ReplaceOld}, nil)
		r.expected("w", nil)
		peers := []*memnet.End{r.join("w")}
		r.happened("connected w")
		for range 10 {
			peers = append(peers, r.join("w"))
		}
		last := len(peers) - 1
		for _, p := range peers[:last] {
			endsUnheard(t, p)
		}
		peers[last].Write(frame("me"))
		r.happened("disconnected w "+sockhub.ErrReplaced.Error(), "connected w", "message w me")
		if s := r.Stats(); s.Conns != 1 || s.Accepted != 11 || s.Disconnected != 10 {
			t.Errorf("%+v", s)
		}
	})
}

func TestReplaceOldOfAStrangerIsAnotherStranger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{Duplicates: sockhub.ReplaceOld}, nil)
		r.join("x")
		r.happened("unknown x")
		id := r.conn("x").ID()
		r.join("x")
		r.happened("unknown x", "disconnected x "+sockhub.ErrReplaced.Error())
		if r.conn("x").ID() == id {
			t.Error("two strangers have one ID")
		}
	})
}

func TestStrangersAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{Unexpected: sockhub.RefuseUnexpected}, nil)
		r.refused("x")
		r.expected("x", nil)
		r.join("x")
		r.happened("connected x")
		r.serve(nil, &sockhub.ListenOptions{Mode: sockhub.Anonymous}) // who has no name is none
		r.happened("unknown")
		if s := r.Stats(); s.RefusedPolicy != 1 || s.Accepted != 2 {
			t.Errorf("%+v", s)
		}
	})
}

// A connection has its place until its end was taken, in the hub and not in the
// listener.
func TestPlaceIsFreeWhenTheEndIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{MaxConns: 1}, nil)
		p := r.join("alice")
		r.refused("bob")
		r.take()
		p.Reset()
		synctest.Wait()
		r.refused("bob")
		if b := r.take(); len(b.Disconnected) != 1 {
			t.Fatalf("%q", batchText(b))
		}
		r.join("bob")
		if n := r.Stats().RefusedLimit; n != 2 {
			t.Errorf("%d refused", n)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, &sockhub.ListenOptions{MaxConns: 1})
		p := r.join("alice")
		r.refused("bob")
		p.Reset()
		synctest.Wait()
		r.join("bob")
	})
}

// Nor does it wait when that is queued only after the new one has come.
func TestReplaceOldOfOneThatIsAnsweredThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{Duplicates: sockhub.ReplaceOld}, nil)
		r.expected("w", nil)
		old := r.join("w")
		r.happened("connected w")
		c := r.conn("w")
		old.Write(frame("question"))
		old.CloseWrite()
		synctest.Wait()
		begun := time.Now()
		p := r.claim("w")
		synctest.Wait()
		if err := c.TrySend(make([]byte, 10<<20)); err != nil { // before its Ended is taken
			t.Fatal(err)
		}
		go func() {
			for range r.Events() {
			}
		}()
		expect(t, p, frame("OK"))
		if waited := time.Since(begun); waited > time.Second {
			t.Errorf("it was let in after %v", waited)
		}
	})
}

// The owner of a name goes only for one that there is a place for.
func TestReplaceOldForOneThatFindsNoPlace(t *testing.T) {
	t.Run("its listener is full", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRoom(t, &sockhub.Options{Duplicates: sockhub.ReplaceOld}, nil)
			r.expected("w", nil)
			l := memnet.Listen(nil)
			if _, err := r.Serve(l, &sockhub.ListenOptions{MaxConns: 1}); err != nil {
				t.Fatal(err)
			}
			small := &room{Hub: r.Hub, t: t, l: l}
			small.join("other")
			r.join("w")
			r.take()
			endsUnheard(t, small.claim("w"))
			r.sends(r.conn("w").ID(), nil)
		})
	})
	t.Run("its listener is full before the owner has ended", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			until := make(chan struct{})
			h := &handlerFuncs{message: func(*sockhub.Reply, []byte) { <-until }}
			r := newRoom(t, &sockhub.Options{Duplicates: sockhub.ReplaceOld}, &sockhub.ListenOptions{
				Handler: func(*sockhub.Conn) sockhub.Handler { return h },
			})
			l := memnet.Listen(nil)
			if _, err := r.Serve(l, &sockhub.ListenOptions{MaxConns: 1}); err != nil {
				t.Fatal(err)
			}
			small := &room{Hub: r.Hub, t: t, l: l}
			r.join("w").Write(frame("wait"))
			synctest.Wait()
			p := small.claim("w")
			synctest.Wait()
			endsUnheard(t, small.claim("third"))
			close(until)
			expect(t, p, frame("OK"))
			p.Close()
			synctest.Wait()
			r.take()
			small.join("third")
		})
	})
	t.Run("all come back at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			const n = 300 // of which 64 find a place before a batch is taken
			r := newRoom(t, &sockhub.Options{Duplicates: sockhub.ReplaceOld, MaxConns: n}, nil)
			var old [n]*memnet.End
			for i := range old {
				old[i] = r.join(fmt.Sprint("w", i))
			}
			r.take()
			var in, lost atomic.Int32
			var all sync.WaitGroup
			for i := range old {
				all.Go(func() {
					p, err := r.l.Dial(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					t.Cleanup(func() { p.Close() })
					p.Write(frame(fmt.Sprint("w", i)))
					p.SetReadDeadline(time.Now().Add(time.Minute))
					if _, err := io.ReadFull(p, make([]byte, 10)); err == nil {
						in.Add(1)
						return
					}
					old[i].SetReadDeadline(time.Now().Add(time.Second))
					if _, err := old[i].Read(make([]byte, 1)); err == io.EOF {
						lost.Add(1)
					}
				})
			}
			all.Wait()
			if in.Load() == 0 || lost.Load() > 0 {
				t.Errorf("%d were replaced, and %d for nothing; %+v", in.Load(), lost.Load(), r.Stats())
			}
		})
	})
}

// A name that is far too long is still a bad name.
func TestServeConnOfALongName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		ours, p := memnet.Pair(nil)
		defer p.Close()
		p.Write(frame(strings.Repeat("x", 2*sockhub.MaxNameLen)))
		if _, err := hub.ServeConn(t.Context(), ours, nil); !errors.Is(err, sockhub.ErrBadName) {
			t.Error(err)
		}
	})
}

// At MemoryLimit nobody is let in, so that nobody is to go for it either.
func TestReplaceOldAtMemoryLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{Duplicates: sockhub.ReplaceOld, MemoryLimit: 300_000, WriteTimeout: -1}, nil)
		r.join("w")
		full, _ := r.serve(stuck, nil)
		for range 31 {
			if err := full.TrySend(make([]byte, 10_000)); err != nil {
				t.Fatal(err)
			}
		}
		r.take()
		full.Close()
		synctest.Wait() // its report is not taken
		endsUnheard(t, r.claim("w"))
		if s := r.Stats(); s.RefusedLimit != 1 || s.Conns != 1 {
			t.Errorf("%+v", s)
		}
		r.sends(r.conn("w").ID(), nil)
		r.take()
		r.join("w")
	})
}

// A peer that leaves before its name was read, and comes back at once, has the name by its
// new connection, also where that was faster.
func TestReplaceOldByWhoHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, leave := range []func(*memnet.End) error{(*memnet.End).CloseWrite, (*memnet.End).Close, (*memnet.End).Reset} {
			goOn, asked := make(chan struct{}), 0
			r := newRoom(t, &sockhub.Options{Duplicates: sockhub.ReplaceOld}, &sockhub.ListenOptions{Admit: func(sockhub.Peer) error {
				if asked++; asked == 1 {
					<-goOn
				}
				return nil
			}})
			before := r.claim("alpha")
			synctest.Wait()
			leave(before)
			<-time.After(time.Millisecond)
			back := r.join("alpha")
			close(goOn)
			synctest.Wait()
			if s := r.Stats(); s.Conns != 1 || s.RefusedName != 1 || out(back) {
				t.Errorf("%+v", s)
			}
			r.Close()
		}
	})
}

// A peer that has finished sending when its name is read, and has connected before the owner
// of that, does not replace it. But it waits for the end of one that is about to end.
func TestReplaceOldByWhoHasFinishedWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn, asked := make(chan struct{}), 0
		r := newRoom(t, &sockhub.Options{Duplicates: sockhub.ReplaceOld}, &sockhub.ListenOptions{Admit: func(sockhub.Peer) error {
			if asked++; asked == 1 {
				<-goOn
			}
			return nil
		}})
		first := r.claim("w")
		first.Write(frame("of the first"))
		first.CloseWrite()
		synctest.Wait()
		<-time.After(time.Millisecond)
		second := r.join("w")
		second.Write(frame("of the second"))
		second.CloseWrite()
		synctest.Wait() // its end waits to be taken
		close(goOn)
		<-time.After(300 * time.Millisecond) // some looks at the owner
		r.happened("unknown w", "message w of the second", "ended w", "unknown w", "message w of the first", "disconnected w EOF", "ended w", "disconnected w EOF")
		if s := r.Stats(); s.RefusedName != 0 || s.Accepted != 2 {
			t.Errorf("%+v", s)
		}
	})
}

// Who came before the owner of a name does not replace it either where the name was
// registered meanwhile.
func TestExpectKeepsWhoCameFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 50 {
			ended := make(chan struct{})
			var ends []error // what comes behind the first owner's
			var first atomic.Bool
			r := &room{Hub: openHub(t, &sockhub.Options{Duplicates: sockhub.ReplaceOld}), t: t, l: memnet.Listen(stuck)}
			r.Serve(r.l, &sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler {
				return &handlerFuncs{disconnected: func(d sockhub.Disconnection) {
					if first.Swap(true) {
						ends = append(ends, d.Err)
					} else {
						<-ended
					}
				}}
			}})
			r.join("w").Close()
			synctest.Wait()
			<-time.After(time.Millisecond)
			r.claim("w") // and waits for that
			synctest.Wait()
			<-time.After(time.Millisecond)
			r.claim("w").CloseWrite() // is faster, mostly, and takes no OK
			synctest.Wait()
			close(ended)
			synctest.Wait()
			if len(ends) == 0 { // it was
				r.expected("w", nil)
				<-time.After(time.Second)
				if len(ends) > 0 {
					t.Fatal("the owner has ended:", ends)
				}
			}
			r.Close()
		}
	})
}

// Who replaces the owner of a name, and then one who was faster, asks for a place twice
// and has one.
func TestWhoReplacesTwoHasOnePlace(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			busy := make(chan struct{})
			r := newRoom(t, &sockhub.Options{Duplicates: sockhub.ReplaceOld}, &sockhub.ListenOptions{
				Handler: func(*sockhub.Conn) sockhub.Handler {
					return &handlerFuncs{message: func(*sockhub.Reply, []byte) { <-busy }}
				},
			})
			peers := []*memnet.End{r.join("w")}
			peers[0].Write(frame("x"))
			for range 3 {
				synctest.Wait()
				peers = append(peers, r.claim("w"))
			}
			r.expected("w", &sockhub.ClientOptions{Admit: func(sockhub.Peer) error { // so they come in any order
				<-time.After(time.Duration(rand.IntN(1000)) * time.Millisecond)
				return nil
			}})
			close(busy)
			<-time.After(time.Second)
			if n := r.Stats().Conns; n != 1 {
				t.Errorf("%d have the name", n)
			}
			for _, p := range peers {
				p.Close()
			}
			<-time.After(time.Minute)
			if held := r.Held(); held != "" {
				t.Error(held)
			}
		})
	}
}

// Who is forgotten again has no name any more, and takes nobody's.
func TestForgetAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		first := r.expected("w", nil)
		r.join("w")
		r.happened("connected w")
		r.conn("w").Close()
		synctest.Wait() // the Disconnected is not taken
		r.Forget(first)
		second := r.expected("w", nil)
		r.Forget(first)
		if id, ok := r.Lookup("w"); id != second || !ok {
			t.Errorf("the name is that of %d, %v; want %d", id, ok, second)
		}
	})
}

// Who follows the owner of a name may go beyond MaxConns, but not without an end: nobody
// takes the ends of the owners.
func TestFollowersAreBounded(t *testing.T) {
	const most, beyond = 100, 64
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{MaxConns: most}, nil)
		for i := range most {
			r.join(fmt.Sprint("w", i)).CloseWrite()
		}
		synctest.Wait()
		for i := range most {
			r.claim(fmt.Sprint("w", i))
		}
		synctest.Wait()
		for c := range r.Conns() {
			c.Close()
		}
		synctest.Wait()
		if n := r.Stats().Accepted; n != most+beyond {
			t.Errorf("%d were let in, want %d", n, most+beyond)
		}
	})
}

// A name that is registered while its owner is being finished, and forgotten again, leaves
// that owner alone.
func TestForgetLeavesWhoIsFinishedAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		p := r.join("w")
		r.happened("unknown w")
		c := r.conn("w")
		c.Send(t.Context(), make([]byte, 1<<20))
		c.Finish()
		synctest.Wait()
		id := r.expected("w", nil)
		if id == c.ID() {
			t.Error("who is finished was adopted")
		}
		r.Forget(id)
		if n, err := io.Copy(io.Discard, p); n != 1<<20+8 || err != nil {
			t.Errorf("%d bytes came, %v", n, err)
		}
	})
}
