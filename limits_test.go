package sockhub_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
)

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
