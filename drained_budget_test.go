package sockhub_test

import (
	"bytes"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
)

// A Handler that always has something more to send when it is told Drained gets the rest of a
// message by the budget's token all the same.
func TestDrainedThatAlwaysAnswersKeepsNoMessageBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 500 // calls
		hub := openHub(t, &sockhub.Options{Budget: sockhub.NewBudget(2<<20, 0, 0), MaxMessage: 900_000})
		calls, at := 0, -1
		handler := &handlerFuncs{
			message: func(*sockhub.Reply, []byte) { at = calls },
			drained: func(r *sockhub.Reply) {
				<-time.After(time.Millisecond) // by then all others have done what they can
				if calls++; at < 0 && calls < most {
					r.Send([]byte("more"))
				}
			},
		}
		c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return handler }})
		_, full := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		some := frame(string(make([]byte, 200_000)))
		p.Write(some[:100_000])
		synctest.Wait()
		go full.Write(bytes.Repeat(frame(string(make([]byte, 1000))), 2000))
		synctest.Wait()
		go p.Write(some[100_000:])
		go io.Copy(io.Discard, p)
		c.NotifyDrained()
		<-time.After(time.Second)
		if at < 0 || at > most/2 {
			t.Errorf("the message came at call %d of %d", at, calls)
		}
	})
}

// NotifyDrained behind SetHandler does not wait for room in the budget, where a TrySend to the
// empty queue was refused between them; that there is some again is told too.
func TestNotifyDrainedBehindSetHandlerWaitsForNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{OutboundLimit: 1 << 20, MaxMessage: 400_000, MaxConns: 8, WriteTimeout: -1})
		entered, goOn := make(chan struct{}), make(chan struct{})
		before := &handlerFuncs{message: func(*sockhub.Reply, []byte) { close(entered); <-goOn }}
		c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return before }})
		go io.Copy(io.Discard, p)
		var full []*sockhub.Conn // by them the budget is
		large := make([]byte, 300_000)
		for range 3 {
			f, _ := serveMemory(t, hub, stuck, sockhub.ListenOptions{})
			for f.TrySend(large) == nil {
			}
			full = append(full, f)
		}
		p.Write(frame("x"))
		<-entered
		told := 0
		c.SetHandler(&handlerFuncs{drained: func(*sockhub.Reply) { told++ }})
		if err := c.TrySend(large); err != sockhub.ErrBackpressure {
			t.Error(err)
		}
		c.NotifyDrained()
		close(goOn)
		synctest.Wait()
		if told != 1 {
			t.Errorf("told %d times, want 1", told)
		}
		for _, f := range full {
			f.Close()
		}
		synctest.Wait()
		if told != 2 {
			t.Errorf("told %d times when there is room, want 2", told)
		}
	})
}
