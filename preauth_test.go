package sockhub_test

// What peers can do before they are admitted, and how much of it.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
	"github.com/sockhub/sockhub/internal/nofile"
)

// from connects a peer that has an IP address and sends these bytes.
func (r *room) from(ip string, first []byte) *memnet.End {
	r.t.Helper()
	p, err := r.l.DialFrom(r.t.Context(), &net.TCPAddr{IP: net.ParseIP(ip), Port: 1})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { p.Close() })
	p.Write(first)
	synctest.Wait()
	return p
}

// sevenBytes are all but the last of a header.
var sevenBytes = make([]byte, 7)

// out reports whether the hub has ended the peer's connection.
func out(p *memnet.End) bool {
	p.SetReadDeadline(time.Now().Add(1))
	_, err := p.Read(make([]byte, 1))
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// One source that opens more connections than there are places, all within a second, keeps
// nobody out: it had each place that came of age itself.
func TestOneSourceKeepsNobodyOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{MaxPending: 8, MaxPendingPerSource: 4}, nil)
		slow := r.from("10.0.0.2", sevenBytes)
		for i := range 100 {
			r.from("10.0.0.1", sevenBytes)
			<-time.After(10 * time.Millisecond)
			if i > 20 {
				expect(t, r.from("10.0.0.3", frame(fmt.Sprint("w", i))), frame("OK"))
			}
		}
		if out(slow) {
			t.Error("a light source had to make room")
		}
	})
}

func TestFullTableOfHandshakesGivesUpTheOldestOfTheHeaviestSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{MaxPending: 8}, nil)
		light := r.from("10.0.0.2", sevenBytes)
		var heavy []*memnet.End
		for range 7 {
			heavy = append(heavy, r.from("10.0.0.1", sevenBytes))
			<-time.After(10 * time.Millisecond)
		}
		// All are younger than a second: there is no place for a newcomer.
		if p := r.from("10.0.0.3", frame("early")); !out(p) {
			t.Error("somebody young made room")
		}
		if s := r.Stats(); s.Connecting != 8 || s.RefusedLimit != 1 {
			t.Errorf("%+v", s)
		}
		<-time.After(time.Second)
		p := r.from("10.0.0.3", frame("late"))
		expect(t, p, frame("OK"))
		for i, h := range heavy {
			if out(h) != (i == 0) {
				t.Errorf("handshake %d of the heaviest: ended is %v", i, i != 0)
			}
		}
		if out(light) {
			t.Error("the lightest source had to make room")
		}
		// The place of who was let in is free: the next comes without.
		expect(t, r.from("10.0.0.1", frame("heavy and honest")), frame("OK"))
		if s := r.Stats(); s.Connecting != 7 || s.RefusedLimit != 2 || s.Conns != 2 {
			t.Errorf("%+v", s)
		}
		<-time.After(sockhub.DefaultHandshakeTimeout)
		synctest.Wait()
		if s := r.Stats(); s.Connecting != 0 || s.HandshakeTimeouts != 7 || s.Conns != 2 {
			t.Errorf("%+v", s)
		}
	})
}

func TestHandshakeDeadlineIsNotExtendedByProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		begun := time.Now()
		p := r.from("10.0.0.1", nil)
		var sender sync.WaitGroup
		defer sender.Wait()
		sender.Go(func() {
			for _, b := range frame(strings.Repeat("x", 100)) {
				if _, err := p.Write([]byte{b}); err != nil {
					return
				}
				<-time.After(time.Second)
			}
		})
		endsUnheard(t, p)
		if d := time.Since(begun); d != sockhub.DefaultHandshakeTimeout {
			t.Errorf("ended after %v", d)
		}
		synctest.Wait()
		if s := r.Stats(); s.HandshakeTimeouts != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestNamesThatCannotBeAreRefusedByTheirLength(t *testing.T) {
	for _, n := range []uint64{0, sockhub.MaxNameLen + 1, 1 << 31, 1 << 40, 1 << 63, 1<<64 - 1} {
		synctest.Test(t, func(t *testing.T) {
			r := newRoom(t, nil, nil)
			begun := time.Now()
			endsUnheard(t, r.from("10.0.0.1", binary.LittleEndian.AppendUint64(nil, n)))
			if d := time.Since(begun); d != 0 {
				t.Errorf("length %d is refused after %v", n, d)
			}
			synctest.Wait()
			if s := r.Stats(); s.RefusedName != 1 {
				t.Errorf("length %d: %+v", n, s)
			}
		})
	}
}

// What a peer sends behind its name stays in the kernel until it is let in.
func TestLittleIsReadBeforeTheNameIsAccepted(t *testing.T) {
	const most = 1 << 10
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		r.join("w").CloseWrite() // its end is not taken, so that the name is busy
		synctest.Wait()
		p := r.from("10.0.0.1", nil)
		p.SetWriteDeadline(time.Now().Add(time.Second))
		n, _ := p.Write(append(frame("w"), make([]byte, 1<<20)...))
		if read := n - memnet.DefaultBuffer; read > most {
			t.Errorf("%d bytes were read of a peer that is not let in", read)
		}
		if s := r.Stats(); s.Connecting != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// Who waits for Listeners, Connecting and Conns to be nothing has waited for all.
func TestClassifiedOnesAreConnecting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, &sockhub.ListenOptions{Classify: func(_ sockhub.Peer, first []byte) (*sockhub.ListenOptions, int, error) {
			if len(first) == 0 {
				return nil, 1, nil
			}
			return &sockhub.ListenOptions{Mode: sockhub.Anonymous}, 0, nil
		}})
		p := r.from("10.0.0.1", nil)
		if s := r.Stats(); s.Listeners != 1 || s.Connecting != 1 || s.Conns != 0 {
			t.Errorf("%+v", s)
		}
		p.Write([]byte("x"))
		synctest.Wait()
		if s := r.Stats(); s.Listeners != 1 || s.Connecting != 0 || s.Conns != 1 {
			t.Errorf("%+v", s)
		}
		r.l.Close()
		synctest.Wait()
		if s := r.Stats(); s.Listeners != 0 || s.Conns != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// Listener.Close ends the handshakes also where its user has closed the net.Listener before.
func TestListenerCloseEndsHandshakesOfAClosedListener(t *testing.T) {
	for name, lo := range map[string]*sockhub.ListenOptions{
		"in the handshake": nil,
		"in Classify":      {Classify: func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) { return nil, 8, nil }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRoom(t, nil, nil)
				inner := memnet.Listen(nil)
				l, err := r.Serve(inner, lo)
				if err != nil {
					t.Fatal(err)
				}
				p, err := inner.Dial(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				synctest.Wait()
				inner.Close()
				synctest.Wait()
				if s := r.Stats(); s.Listeners != 1 || s.Connecting != 1 {
					t.Fatalf("%d listeners, %d in their handshake", s.Listeners, s.Connecting)
				}
				if err := l.Close(); err != sockhub.ErrClosed {
					t.Error(err)
				}
				if synctest.Wait(); r.Stats().Connecting != 0 || !out(p) {
					t.Error("the handshake goes on")
				}
			})
		})
	}
}

// ---- many ----

func TestThousandNamedClientsOfOneAddressGetInWithinTwoSeconds(t *testing.T) {
	const n = 1000
	if nofile.Limit() < 3*n {
		t.Skip("the process may not open enough descriptors")
	}
	s := newStand(t, nil, nil)
	l := s.listen("tcp4", nil)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-start
			nc, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { nc.Close() })
			nc.SetDeadline(time.Now().Add(patience))
			nc.Write(wire(fmt.Appendf(nil, "worker-%d", i)))
			answer := make([]byte, 10)
			if _, err := io.ReadFull(nc, answer); err != nil || string(answer[8:]) != "OK" {
				t.Errorf("worker %d: %q, %v", i, answer, err)
			}
		})
	}
	begun := time.Now()
	close(start)
	wg.Wait()
	d := time.Since(begun)
	if t.Log(d); d > 2*time.Second {
		t.Errorf("it took %v", d)
	}
	if st := s.Stats(); st.Accepted != n || st.RefusedLimit != 0 {
		t.Errorf("%+v", st)
	}
}

// childStutter connects so many times to the given network and address, sends
// seven bytes on each connection, says so, and holds those that are not ended.
func childStutter(args []string) error {
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	var d net.Dialer
	for range n {
		nc, err := d.DialContext(context.Background(), args[0], args[1])
		if err != nil {
			return err
		}
		defer nc.Close()
		nc.Write(sevenBytes) // it may have been ended already
	}
	fmt.Println("STUTTERED")
	io.Copy(io.Discard, os.Stdin)
	return nil
}

// stutterers is how many of them this machine allows, up to the 10,000 that
// the package promises to stand.
func stutterers(t *testing.T) int {
	n := min(10_000, nofile.Limit()-500)
	if testing.Short() {
		n = min(n, 2000)
	}
	if n < 1500 { // more than MaxPending
		t.Skip("the process may not open enough descriptors")
	}
	return n
}

// namedByClassify has every connection classified, after one byte, as a Named one.
var namedByClassify = &sockhub.ListenOptions{Classify: func(_ sockhub.Peer, first []byte) (*sockhub.ListenOptions, int, error) {
	if len(first) == 0 {
		return nil, 1, nil
	}
	return &sockhub.ListenOptions{Mode: sockhub.Named}, 0, nil
}}

// Who found no place among those under way was counted, and not logged.
func TestRefusalByMaxPendingIsLogged(t *testing.T) {
	for name, lo := range map[string]*sockhub.ListenOptions{"named": nil, "classified": namedByClassify} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				r := newRoom(t, &sockhub.Options{MaxPending: 1, Logger: slog.New(slog.NewTextHandler(&log, nil))}, lo)
				r.from("10.0.0.1", nil)
				if s := log.String(); strings.Contains(s, "refused") {
					t.Errorf("too early: %s", s)
				}
				if p := r.from("10.0.0.2", nil); !out(p) {
					t.Error("the second was let in")
				}
				synctest.Wait()
				if n := r.Stats().RefusedLimit; n != 1 {
					t.Errorf("RefusedLimit is %d", n)
				}
				if s := log.String(); strings.Count(s, "connection refused") != 1 || !strings.Contains(s, "10.0.0.2") || strings.Contains(s, "10.0.0.1") {
					t.Errorf("the log is %q", s)
				}
			})
		})
	}
}

// A handshake is as old as its connection, also if it was classified late: it began to age
// anew, and kept its place from those who came later.
func TestHandshakesAgeThroughClassify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{MaxPending: 1}, namedByClassify)
		begun := time.Now()
		old := r.from("10.0.0.1", nil)
		sleepFor(600 * time.Millisecond)
		old.Write(sevenBytes) // classified, and no name
		sleepFor(300 * time.Millisecond)
		if p := r.from("10.0.0.2", frame("early")); !out(p) {
			t.Error("a handshake of 0.9 s made room")
		}
		sleepFor(300 * time.Millisecond)
		expect(t, r.from("10.0.0.2", frame("late")), frame("OK"))
		if !out(old) {
			t.Errorf("a handshake of %v has kept its place", time.Since(begun))
		}
		synctest.Wait()
		if s := r.Stats(); s.RefusedLimit != 2 || s.Connecting != 0 || s.Conns != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// The time that a handshake may take does not begin anew either.
func TestHandshakeTimeoutIncludesClassify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{HandshakeTimeout: 2 * time.Second}, namedByClassify)
		begun := time.Now()
		p := r.from("10.0.0.1", nil)
		sleepFor(1500 * time.Millisecond)
		p.Write(sevenBytes)
		endsUnheard(t, p)
		if d := time.Since(begun); d < 2*time.Second || d > 2200*time.Millisecond {
			t.Errorf("it ended after %v", d)
		}
		synctest.Wait()
		if s := r.Stats(); s.HandshakeTimeouts != 1 || s.Connecting != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// A place is free when its handshake is over, however it ended: none is lost on the way
// from Classify to the handshake.
func TestPlacesOfClassifiedOnesAreFreedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{MaxPending: 2, HandshakeTimeout: time.Second}, namedByClassify)
		for range 5 {
			r.from("10.0.0.1", nil).Close()                   // before Classify
			r.from("10.0.0.1", sevenBytes).Close()            // within its name
			r.from("10.0.0.1", frame(string(sevenBytes[:0]))) // a bad name
			r.from("10.0.0.1", nil)
			sleepFor(1100 * time.Millisecond) // too late
			synctest.Wait()
			if s := r.Stats(); s.Connecting != 0 || s.RefusedLimit != 0 {
				t.Fatalf("%+v", s)
			}
		}
		expect(t, r.from("10.0.0.1", frame("bob")), frame("OK"))
	})
}

// A log of JSON says who was refused, as one of text does.
func TestRefusalsAreLoggedInJSON(t *testing.T) {
	for name, lo := range map[string]*sockhub.ListenOptions{"named": nil, "classified": namedByClassify} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				r := newRoom(t, &sockhub.Options{MaxPending: 1, Logger: slog.New(slog.NewJSONHandler(&log, nil))}, lo)
				r.from("10.0.0.1", nil)
				if p := r.from("10.0.0.2", nil); !out(p) {
					t.Error("the second was let in")
				}
				<-time.After(sockhub.DefaultHandshakeTimeout)
				synctest.Wait()
				for _, who := range []string{"10.0.0.1", "10.0.0.2"} {
					if n := strings.Count(log.String(), `"peer":"`+who); n != 1 {
						t.Errorf("%s stands %d times in %s", who, n, &log)
					}
				}
			})
		})
	}
}

// Classify may ask for 1 KiB, and for more than it has seen: who asks for another number is
// not asked again, and the peer is refused.
func TestClassifyMaySeeOneKiB(t *testing.T) {
	for more, served := range map[int]bool{1024: true, 1025: false, 3: false} {
		synctest.Test(t, func(t *testing.T) {
			r := newRoom(t, nil, &sockhub.ListenOptions{Classify: func(_ sockhub.Peer, first []byte) (*sockhub.ListenOptions, int, error) {
				switch {
				case len(first) == 0:
					return nil, 10, nil
				case len(first) < more || more < 10:
					return nil, more, nil
				}
				return nil, 0, nil
			}})
			p := r.from("10.0.0.1", frames("w", string(make([]byte, 2000))))
			if served {
				expect(t, p, frame("OK"))
			} else {
				endsUnheard(t, p)
			}
			if s := r.Stats(); served != (s.RefusedPolicy == 0) || s.Connecting != 0 {
				t.Errorf("%d bytes: %+v", more, s)
			}
		})
	}
}

// Who asks for what he has seen would be asked again and again.
func TestClassifyThatAsksForWhatItHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		r := newRoom(t, nil, &sockhub.ListenOptions{Classify: func(_ sockhub.Peer, first []byte) (*sockhub.ListenOptions, int, error) {
			if asked++; asked > 5 {
				return nil, 0, nil
			}
			return nil, max(1, len(first)), nil
		}})
		endsUnheard(t, r.from("10.0.0.1", []byte("x")))
		if asked != 2 {
			t.Errorf("asked %d times", asked)
		}
	})
}

// The handshakes that a listener's end ends are its own.
func TestCloseOfAListenerEndsItsOwnHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, namedByClassify)
		other := memnet.Listen(nil)
		l, err := r.Serve(other, namedByClassify)
		if err != nil {
			t.Fatal(err)
		}
		plain := memnet.Listen(nil)
		if _, err := r.Serve(plain, nil); err != nil {
			t.Fatal(err)
		}
		p := r.from("10.0.0.1", nil)
		named, err := plain.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer named.Close()
		q, err := other.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer q.Close()
		synctest.Wait()
		if s := r.Stats(); s.Connecting != 3 {
			t.Fatalf("%+v", s)
		}
		l.Close()
		endsUnheard(t, q)
		p.Write(frame("bob"))
		expect(t, p, frame("OK"))
		named.Write(frame("eve"))
		expect(t, named, frame("OK"))
	})
}
