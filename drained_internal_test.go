package sockhub

// Handlers that have their Drained from BaseHandler, and are spared the calls.

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
)

// plain has its Drained from BaseHandler.
type plain struct{ BaseHandler }

func (*plain) Message(r *Reply, m []byte) { r.Send(m) }

// passing passes each Drained on, having counted it.
type passing struct {
	plain
	drained int
}

func (p *passing) Drained(r *Reply) {
	p.drained++
	p.plain.Drained(r)
}

// Who has its Drained from BaseHandler is not woken for it; who only passes it
// on there is, each time.
func TestDrainedOfBaseHandlerIsNotCalledAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, err := New(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer hub.Close()
		ours, theirs := net.Pipe()
		go io.Copy(io.Discard, theirs)
		var h Handler = &plain{}
		c, err := hub.ServeConn(t.Context(), ours, &ListenOptions{Mode: Anonymous, Handler: func(*Conn) Handler { return h }})
		if err != nil {
			t.Fatal(err)
		}
		deaf := func() bool {
			synctest.Wait()
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.out.deaf
		}
		send := func(n int) {
			t.Helper()
			for range n {
				if err := c.Send(t.Context(), []byte("x")); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
			}
		}
		if send(1); !deaf() {
			t.Error("the reader will be woken for a Drained that does nothing")
		}

		p := &passing{}
		if c.SetHandler(p); deaf() || p.drained != 0 {
			t.Error("what the Handler before did not want to hear is due:", p.drained)
		}
		if send(3); deaf() || p.drained != 3 {
			t.Errorf("%d Drained after 3 messages", p.drained)
		}
	})
}

// The writer may have written the last byte after the reader has looked whether Drained is
// due, and before the reader looks whether all is done.
func TestFinishWaitsForADrainedThatHasJustBecomeDue(t *testing.T) {
	c := &Conn{handler: &passing{}, input: ended}
	c.out.finish = ErrClosed
	c.out.drained = true
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.advanceEndLocked(false) {
		t.Error("over, and Drained was not called")
	}
	c.out.drained = false // it was taken
	if !c.advanceEndLocked(false) {
		t.Error("not over")
	}
}

// Shutdown, or room for answers, may come after the reader has looked whether it is to
// deliver what was read, and before it ends the input.
func TestShutdownEndsTheInputBehindWhatWaited(t *testing.T) {
	c := &Conn{handler: &passing{}, endRead: true}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.advanceEndLocked(false); c.input != reading {
		t.Error("ended, though Shutdown has just come")
	}
	c.resume = true
	if c.advanceEndLocked(true); c.input != reading {
		t.Error("ended, though there has just come room")
	}
	c.resume = false
	if c.advanceEndLocked(true); c.input != shut {
		t.Error("not ended")
	}
}
