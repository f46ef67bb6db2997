package sockhub_test

// Stats and ConnStats; counters_test.go has what counts as input.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sockhub/sockhub"
)

// inBubble runs f with a hub of its own, in a bubble, whose batches are taken if it
// says so.
func inBubble(t *testing.T, o *sockhub.Options, take bool, f func(t *testing.T, hub *sockhub.Hub)) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, o)
		if take {
			go func() {
				for range hub.Events() {
				}
			}()
		}
		f(t, hub)
	})
}

// serveHalf serves one end of a pipe and returns the other.
func serveHalf(t *testing.T, hub *sockhub.Hub, o *sockhub.ListenOptions) (*sockhub.Conn, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	o.Mode = sockhub.Anonymous
	c, err := hub.ServeConn(t.Context(), ours, o)
	if err != nil {
		t.Fatal(err)
	}
	return c, theirs
}

type closesAndPanics struct{ sockhub.BaseHandler }

func (closesAndPanics) Message(r *sockhub.Reply, _ []byte) {
	r.Close()
	panic("late")
}

func TestPanicAfterCloseIsCounted(t *testing.T) {
	inBubble(t, nil, true, func(t *testing.T, hub *sockhub.Hub) {
		_, peer := serveHalf(t, hub, &sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return closesAndPanics{} }})
		peer.Write(frame("x"))
		synctest.Wait()
		if s := hub.Stats(); s.Panics != 1 || s.Disconnected != 1 {
			t.Errorf("%d panics, %d disconnected", s.Panics, s.Disconnected)
		}
	})
}

func TestDroppedIsCountedAtOnce(t *testing.T) {
	inBubble(t, &sockhub.Options{Overflow: sockhub.DropOldest, ConnOutbound: 1000}, true, func(t *testing.T, hub *sockhub.Hub) {
		c, _ := serveHalf(t, hub, &sockhub.ListenOptions{})
		for range 100 {
			c.TrySend(make([]byte, 100))
		}
		before := hub.Stats().Dropped
		c.Close()
		synctest.Wait()
		if after := hub.Stats().Dropped; before == 0 || after != before {
			t.Errorf("%d while the connection lasts, %d afterwards", before, after)
		}
	})
}

// Empty messages that were not sent are kept too, and there may be many.
func TestUnsentEmptyMessagesCountAgainstMemoryLimit(t *testing.T) {
	inBubble(t, &sockhub.Options{MemoryLimit: 1 << 20, WriteTimeout: -1}, false, func(t *testing.T, hub *sockhub.Hub) {
		c, _ := serveHalf(t, hub, &sockhub.ListenOptions{})
		n := 0
		for ; c.TrySend(nil) == nil; n++ {
		}
		c.Close()
		synctest.Wait()
		ours, _ := net.Pipe()
		if _, err := hub.ServeConn(t.Context(), ours, &sockhub.ListenOptions{Mode: sockhub.Anonymous}); !errors.Is(err, sockhub.ErrMemoryLimit) {
			t.Errorf("%d messages are kept in a report that nobody has taken; another connection: %v", n, err)
		}
	})
}

func TestLeavingDuringClassifyIsNoRefusal(t *testing.T) {
	s := newStand(t, &sockhub.Options{MaxPending: 2}, nil)
	l := s.listen("tcp4", &sockhub.ListenOptions{Classify: func(_ sockhub.Peer, first []byte) (*sockhub.ListenOptions, int, error) {
		if len(first) < 4 {
			return nil, 4, nil
		}
		// What it asks elsewhere may fail as if the peer had.
		return nil, 0, &net.OpError{Op: "dial", Err: io.EOF}
	}})
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	nobody := func() bool { return s.Stats().Connecting == 0 }

	c := dial()
	c.Write([]byte("a"))
	eventually(t, "it is there", func() bool { return s.Stats().Connecting == 1 })
	c.Close()
	eventually(t, "it has left", nobody)
	if got := s.Stats(); got.RefusedPolicy != 0 || got.RefusedLimit != 0 {
		t.Errorf("one who has left counts as refused: %+v", got)
	}
	dial().Write([]byte("abcd"))
	eventually(t, "Classify has refused", func() bool { return s.Stats().RefusedPolicy == 1 && nobody() })

	for i := range 2 {
		dial()
		eventually(t, "they wait", func() bool { return s.Stats().Connecting == i+1 })
	}
	<-time.After(1100 * time.Millisecond) // the oldest one makes room when it is older than a second
	dial()
	eventually(t, "one had to go", func() bool { got := s.Stats(); return got.RefusedLimit == 1 && got.Connecting == 2 })
	if got := s.Stats(); got.RefusedPolicy != 1 {
		t.Errorf("%+v", got)
	}
}

func TestPacketThatIsTooLongCountsAsProtocolError(t *testing.T) {
	s := newStand(t, nil, nil)
	path := filepath.Join(t.TempDir(), "s")
	if _, err := s.Listen(t.Context(), "unixpacket", path, &sockhub.ListenOptions{MaxMessage: 100}); err != nil {
		t.Skip(err)
	}
	c, err := net.Dial("unixpacket", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write(make([]byte, 101))
	if d := s.end(s.first()); !errors.Is(d.Err, sockhub.ErrMessageTooLarge) {
		t.Error(d.Err)
	}
	eventually(t, "it is counted", func() bool { return s.Stats().ProtocolErrors == 1 })
}

func TestNamePacketThatIsTooLongCountsAsBadName(t *testing.T) {
	for _, size := range []int{sockhub.MaxNameLen + 1, 1001} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			s := newStand(t, nil, nil)
			path := filepath.Join(t.TempDir(), "s")
			if _, err := s.Listen(t.Context(), "unixpacket", path, &sockhub.ListenOptions{Mode: sockhub.Named, MaxMessage: 1000}); err != nil {
				t.Skip(err)
			}
			c, err := net.Dial("unixpacket", path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.Write(make([]byte, size))
			eventually(t, "it is counted", func() bool { return s.Stats().RefusedName == 1 })
		})
	}
}

func TestDialEndsWithTheCauseOfItsContext(t *testing.T) {
	s := newStand(t, nil, nil)
	cause := errors.New("cause")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := s.Dial(ctx, "tcp", "127.0.0.1:9", &sockhub.DialOptions{Name: "x"}); !errors.Is(err, cause) {
		t.Error(err)
	}
}

// A message that was cut is the report's, and not queued any more.
func TestNothingIsQueuedAfterTheEnd(t *testing.T) {
	s := newStand(t, nil, nil)
	s.readers = true
	l := s.listen("tcp", &sockhub.ListenOptions{Mode: sockhub.Anonymous})
	dialHub(t, l, "")
	c := s.first()
	r, w := io.Pipe()
	done := async(func() (int, error) { return 0, c.SendFrom(soon(t), 1<<40, r) })
	w.Write(make([]byte, 300_000))
	eventually(t, "a part is written", func() bool { return c.Stats().QueuedMessages == 1 })
	c.Close()
	w.CloseWithError(io.ErrClosedPipe)
	<-done
	s.end(c)
	if n := c.Stats().QueuedMessages; n != 0 {
		t.Errorf("%d messages are queued", n)
	}
}

// What was cut is in the report, and not queued any more: it was counted as both, if its
// sender had given it up.
func TestStatsAfterTheEndOfACutMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, nil, nil, nil)
		r, w := io.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		done := async(func() (int, error) { return 0, l.c.SendFrom(ctx, 1<<20, r) })
		go w.Write(make([]byte, 400_000))
		io.ReadFull(l.p, make([]byte, 1000)) // it has begun
		synctest.Wait()
		cancel() // within it
		w.CloseWithError(net.ErrClosed)
		if res := <-done; res.err == nil {
			t.Error("SendFrom has sent all")
		}
		for range 3 {
			l.take()
		}
		if st := l.c.Stats(); st.QueuedMessages != 0 || st.QueuedOut != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// What a connection has done is in its figures and in those of the hub, there also when it
// has ended.
func TestStatsOfAnExchange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		<-time.After(time.Second)
		made := time.Now()
		c, p := r.serve(nil, nil)
		if s := c.Stats(); !s.Since.Equal(made) || !s.LastRead.Equal(made) || !s.LastWrite.IsZero() {
			t.Errorf("at first: %+v", s)
		}
		<-time.After(time.Second)
		read := time.Now()
		p.Write(frames("", "three", "and more"))
		synctest.Wait()
		<-time.After(time.Second)
		written := time.Now()
		for _, m := range []string{"seven", ""} {
			if err := c.TrySend([]byte(m)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		<-time.After(time.Second)
		want := sockhub.ConnStats{
			MessagesIn: 3, BytesIn: 13, MessagesOut: 2, BytesOut: 5, QueuedIn: 13 + 3*sockhub.MessageCharge,
			Since: made, LastRead: read, LastWrite: written,
		}
		late := cmpopts.EquateApproxTime(100 * time.Millisecond)
		if d := cmp.Diff(want, c.Stats(), late); d != "" {
			t.Errorf("the connection (-want +got):\n%s", d)
		}
		ofHub := sockhub.Stats{
			Conns: 1, Listeners: 1, Accepted: 1, MessagesIn: 3, BytesIn: 13, MessagesOut: 2, BytesOut: 5, Batches: 1, QueuedIn: want.QueuedIn,
		}
		if d := cmp.Diff(ofHub, r.Stats()); d != "" {
			t.Errorf("the hub (-want +got):\n%s", d)
		}
		p.CloseWrite()
		if d := r.endOf(c); d.Err != io.EOF {
			t.Error(d.Err)
		}
		got := r.Stats()
		ofHub.Conns, ofHub.Disconnected, ofHub.QueuedIn, ofHub.Batches = 0, 1, 0, got.Batches
		if d := cmp.Diff(ofHub, got); d != "" {
			t.Errorf("the hub, when the connection has ended (-want +got):\n%s", d)
		}
	})
}

// Input that no Framing can read is a protocol error, as one that is too large is.
func TestInputThatIsNoMessageIsAProtocolError(t *testing.T) {
	inBubble(t, nil, true, func(t *testing.T, hub *sockhub.Hub) {
		_, peer := serveHalf(t, hub, &sockhub.ListenOptions{Framing: sockhub.Uvarint()})
		peer.Write(bytes.Repeat([]byte{0xff}, 10))
		synctest.Wait()
		if s := hub.Stats(); s.ProtocolErrors != 1 || s.Disconnected != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// slowLog is a slog.Handler that takes its time for one record.
type slowLog struct {
	slog.Handler
	end chan struct{}
}

// Enabled implements slog.Handler.
func (slowLog) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (l slowLog) Handle(context.Context, slog.Record) error {
	<-l.end
	return nil
}

// After Close nothing is logged, so who has a log may close it.
func TestCloseWaitsForTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := slowLog{slog.DiscardHandler, make(chan struct{})}
		r := newRoom(t, &sockhub.Options{Logger: slog.New(log), Admit: sockhub.Nobody()}, nil)
		endsUnheard(t, r.claim("w"))
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			r.Close()
		}()
		select {
		case <-closed:
			t.Error("Close has returned, and one is still logging")
		case <-time.After(time.Second):
		}
		close(log.end)
		<-closed
	})
}

// What has no event of its own is logged: who is refused and what is dialed again at Info,
// Accept that fails at Warn.
func TestLevelsOfTheLog(t *testing.T) {
	for level, logged := range map[slog.Level][]string{
		slog.LevelInfo:     {"connection refused", "dial failed", "accept failed"},
		slog.LevelInfo + 1: {"accept failed"},
		slog.LevelWarn + 1: nil,
	} {
		synctest.Test(t, func(t *testing.T) {
			var log bytes.Buffer
			r := newRoom(t, &sockhub.Options{Name: "w", Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: level})), Admit: sockhub.Nobody()}, nil)
			endsUnheard(t, r.claim("w"))
			r.l.AcceptError(io.ErrNoProgress)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			r.Dial(ctx, "unix", "no such directory/s", &sockhub.DialOptions{Reconnect: &sockhub.Backoff{Min: time.Hour, Max: time.Hour}})
			r.Close()
			var got []string
			for _, what := range []string{"connection refused", "dial failed", "accept failed"} {
				if bytes.Contains(log.Bytes(), []byte(what)) {
					got = append(got, what)
				}
			}
			if d := cmp.Diff(logged, got); d != "" {
				t.Errorf("at level %v (-want +got):\n%s", level, d)
			}
		})
	}
}
