package sockhub_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
)

// What a Handler answers during a SendMany waits for its end, and takes the room that the
// SendMany waits for.
func TestSendManyGoesOnWhenAnswersHaveTakenTheRoom(t *testing.T) {
	for name, policy := range map[string]sockhub.OverflowPolicy{"wait": 0, "DropOldest": sockhub.DropOldest, "DisconnectPeer": sockhub.DisconnectPeer} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(make([]byte, 2<<20)) }}
				_, c, peer := serveHandler(t, sockhub.Anonymous, h, &sockhub.Options{ConnOutbound: 1 << 20, Overflow: policy})
				begun, answered, many := make(chan struct{}), make(chan struct{}), make(chan error, 1)
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				go io.Copy(io.Discard, peer)
				go func() {
					n, err := c.SendMany(ctx, func(yield func([]byte) bool) {
						for i := range 600 {
							if i == 300 { // a portion was handed over
								close(begun)
								<-answered
							}
							if !yield(make([]byte, 1000)) {
								return
							}
						}
					})
					if err == nil && n != 600 {
						t.Errorf("%d were accepted", n)
					}
					many <- err
				}()
				<-begun
				peer.Write(frame("go"))
				synctest.Wait()
				close(answered)
				if err := <-many; err != nil {
					t.Errorf("SendMany: %v; %+v", err, c.Stats())
				}
				synctest.Wait()
				if s := c.Stats(); s.MessagesOut != 601 || s.QueuedOut != 0 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// Answers that were accepted during a SendMany, and after the end of the output, are
// unsent in the order of their acceptance.
func TestAnswersBehindARunAreUnsentInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := make(chan struct{}), make(chan struct{})
		got := make(chan []string, 1)
		h := &handlerFuncs{
			message: func(r *sockhub.Reply, m []byte) {
				if string(m) == "second" {
					close(in)
					<-out
				}
				r.Send([]byte("answer to the " + string(m)))
			},
			disconnected: func(d sockhub.Disconnection) {
				var answers []string
				for m := range d.Report.Unsent() {
					if len(m) < 100 {
						answers = append(answers, string(m))
					}
				}
				got <- answers
			},
		}
		_, c, peer := serveHandler(t, sockhub.Anonymous, h, &sockhub.Options{ConnOutbound: 1 << 20})
		many := make(chan error, 1)
		go func() {
			_, err := c.SendMany(context.Background(), func(yield func([]byte) bool) {
				for yield(make([]byte, 1000)) {
				}
			})
			many <- err
		}()
		synctest.Wait() // it waits for room: the peer reads nothing
		peer.Write(frame("first"))
		synctest.Wait()
		for c.Stats().Paused { // until there is room for the answer to another
			peer.Read(make([]byte, 1<<10))
			synctest.Wait()
		}
		peer.Write(frame("second"))
		<-in
		c.Close()
		if err := <-many; !errors.Is(err, sockhub.ErrClosed) {
			t.Error(err)
		}
		close(out)
		if answers, want := <-got, []string{"answer to the first", "answer to the second"}; !slices.Equal(answers, want) {
			t.Errorf("unsent: %q, want %q", answers, want)
		}
	})
}

// stalling is a Framing that takes its time for one size, and then panics.
type stalling struct {
	sockhub.Framing
	size uint64
	at   chan struct{} // closed when it has begun
	on   chan struct{}
}

func (s *stalling) AppendHeader(dst []byte, n uint64) []byte {
	if n == s.size {
		close(s.at)
		<-s.on
		panic("stalling")
	}
	return s.Framing.AppendHeader(dst, n)
}

// A TrySend that a run of somebody else's has refused hears of the run's end, though the
// run leaves nothing to write.
func TestDrainedComesAfterARunThatHasRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &stalling{sockhub.Uvarint(), 77, make(chan struct{}), make(chan struct{})}
		l := newLine(t, &sockhub.Options{WriteTimeout: -1}, nil, &sockhub.ListenOptions{Framing: f})
		go io.Copy(io.Discard, l.p)
		<-time.After(time.Minute) // now no clock runs that would find it by chance
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			defer func() { recover() }()
			l.c.SendMany(t.Context(), func(yield func([]byte) bool) {
				yield(make([]byte, 300<<10))
				yield(make([]byte, f.size)) // hands the first one over
			})
		}()
		<-f.at
		synctest.Wait()
		for l.c.Stats().QueuedOut > 0 || len(l.take().Drained) > 0 {
			synctest.Wait()
		}
		if err := l.c.TrySend([]byte("x")); !errors.Is(err, sockhub.ErrBackpressure) {
			t.Fatalf("TrySend during a run: %v", err)
		}
		close(f.on)
		<-ended
		told := 0
		for range time.Tick(time.Second) {
			select {
			case b := <-l.Events():
				told += len(b.Drained)
				continue
			default:
			}
			break
		}
		if told != 1 {
			t.Errorf("Drained came %d times", told)
		}
	})
}

// drainedOf returns how many messages were queued at each Drained of a connection whose
// Handler is called with one message.
func drainedOf(t *testing.T, message func(r *sockhub.Reply, m []byte), during func(c *sockhub.Conn)) (queued []int) {
	h := &handlerFuncs{
		message: message,
		drained: func(r *sockhub.Reply) { queued = append(queued, r.Conn().Stats().QueuedMessages) },
	}
	_, c, peer := serveHandler(t, sockhub.Anonymous, h, nil)
	peer.Write(frame("go"))
	synctest.Wait()
	during(c)
	synctest.Wait()
	go io.Copy(io.Discard, peer)
	synctest.Wait()
	return queued
}

func TestDrainedWaitsForWhatIsAnsweredAfterFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		queued := drainedOf(t, func(r *sockhub.Reply, m []byte) {
			r.Send([]byte("first"))
			r.Flush()
			r.Send(make([]byte, 1<<20)) // more than the transport takes
		}, func(*sockhub.Conn) {})
		if !slices.Equal(queued, []int{0}) {
			t.Errorf("messages queued at each Drained: %v", queued)
		}
	})
}

func TestDrainedWaitsForTheAnswerOfTheCallUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		on := make(chan struct{})
		queued := drainedOf(t, func(r *sockhub.Reply, m []byte) {
			<-on
			r.Send(make([]byte, 1<<20))
		}, func(c *sockhub.Conn) {
			c.Send(t.Context(), []byte("of another's")) // is written, which is for Drained to tell
			synctest.Wait()
			close(on)
		})
		if !slices.Equal(queued, []int{0}) {
			t.Errorf("messages queued at each Drained: %v", queued)
		}
	})
}

// The slot for a message larger than what the budget has left is free again when what
// is queued fits without it, though something always is.
func TestExemptSlotIsFreeWhenItIsNotNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, err := sockhub.New(context.Background(), &sockhub.Options{OutboundLimit: 1 << 20, MaxConns: 64})
		if err != nil {
			t.Fatal(err)
		}
		defer hub.Close()
		go func() {
			for range hub.Events() {
			}
		}()
		ours, peers := attachMany(t, hub, 2)
		large, small := make([]byte, 3<<20), make([]byte, 1000)
		if err := ours[0].TrySend(large); err != nil {
			t.Fatal(err)
		}
		for range 200 {
			if err := ours[0].TrySend(small); err != nil {
				t.Fatal(err)
			}
		}
		sent := make(chan error, 1)
		go func() { sent <- ours[1].Send(t.Context(), large) }()
		go io.Copy(io.Discard, peers[1])
		synctest.Wait()
		if n := ours[1].Stats().QueuedMessages; n != 0 {
			t.Fatalf("two messages of 3 MiB within 1 MiB: %d of the second connection", n)
		}
		for ours[0].Stats().QueuedMessages > 100 {
			io.CopyN(io.Discard, peers[0], 4<<10)
			synctest.Wait()
		}
		select {
		case err := <-sent:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Errorf("it waits, and there are %+v", ours[0].Stats())
		}
		go io.Copy(io.Discard, peers[0])
		synctest.Wait()
	})
}
