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
