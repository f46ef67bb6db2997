package sockhub

import (
	"testing"

	"github.com/sockhub/sockhub/internal/transport"
	"github.com/sockhub/sockhub/internal/watch"
)

// pendingAsked tells whether Conn.mu was held when it was asked.
type pendingAsked struct {
	transport.Conn
	c    *Conn
	held bool
}

func (p *pendingAsked) Pending() bool {
	if p.held = !p.c.mu.TryLock(); !p.held {
		p.c.mu.Unlock()
	}
	return false
}

// A look at a connection goes on while its reader ends it: nothing may be asked of a
// transport that is closed. What ends it takes mu before.
func TestCheckAsksForWhatIsPendingBeforeClose(t *testing.T) {
	c := &Conn{hub: &Hub{watch: watch.New()}, set: &settings{}, doubtful: true}
	p := &pendingAsked{c: c}
	c.t, c.mu.c = p, c
	c.check(c.hub.watch.Now() + doubt)
	if !p.held || c.doubtful {
		t.Errorf("asked with mu held: %v; still in doubt: %v", p.held, c.doubtful)
	}
	p.held = false
	c.closeErr, c.doubtful = ErrClosed, true
	c.check(c.hub.watch.Now() + doubt)
	if p.held {
		t.Error("asked behind the end")
	}
}
