package sockhub_test

// What is answered during a SendMany; writer_test.go has SendMany itself.

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
