package sockhub_test

// Readers that have moved to a new stack (see Conn.serve).

import (
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
)

// TestReaderThatRestedGoesOn lets a connection fall silent for all lengths of
// time, after which its reader may just be handing over to another.
func TestReaderThatRestedGoesOn(t *testing.T) {
	for _, handled := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newRoom(t, nil, nil)
			lo := &sockhub.ListenOptions{}
			if handled {
				lo.Handler = func(*sockhub.Conn) sockhub.Handler {
					return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(m) }}
				}
			}
			c, p := r.serve(nil, lo)
			go func() {
				for b := range r.Events() {
					for _, m := range b.Messages() {
						c.TrySend(m)
					}
				}
			}()
			gaps := []time.Duration{0, time.Second, 199 * time.Millisecond, 200 * time.Millisecond, 201 * time.Millisecond, 400 * time.Millisecond, time.Hour, 0}
			for range 300 {
				gaps = append(gaps, rand.N([]time.Duration{time.Millisecond, time.Second, 20 * time.Second}[rand.IntN(3)]))
			}
			for i, gap := range gaps {
				sleepFor(gap)
				m := frame(fmt.Sprint(i))
				p.Write(m[:4])
				if i%3 == 0 {
					sleepFor(min(gap, 20*time.Second)) // less than FrameTimeout
				}
				p.Write(m[4:])
				got := make([]byte, len(m))
				if _, err := io.ReadFull(p, got); err != nil || string(got) != string(m) {
					t.Fatalf("%q came back as %q, %v", m, got, err)
				}
			}
			c.Finish()
			<-c.Context().Done()
			r.Close()
		})
	}
}
