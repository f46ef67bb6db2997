package sockhub

import (
	"testing"
	"testing/synctest"

	"github.com/sockhub/sockhub/internal/memnet"
)

// hears is a Handler that counts its Drained.
type hears struct {
	BaseHandler
	drained int
}

func (h *hears) Drained(*Reply) { h.drained++ }

// Who has seen that Drained is due for the hub, and tells it when a Handler has got the
// connection meanwhile, tells that.
func TestDrainedThatComesLateIsTheHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, err := New(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer hub.Close()
		ours, peer := memnet.Pair(nil)
		defer peer.Close()
		c, err := hub.ServeConn(t.Context(), ours, &ListenOptions{Mode: Anonymous})
		if err != nil {
			t.Fatal(err)
		}
		<-hub.Events()
		h := new(hears)
		if err := c.SetHandler(h); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		c.drainedForHub()
		synctest.Wait()
		select {
		case b := <-hub.Events():
			if h.drained != 1 || len(b.Drained) > 0 {
				t.Errorf("the Handler has heard %d Drained, Events %d", h.drained, len(b.Drained))
			}
		default:
			if h.drained != 1 {
				t.Errorf("the Handler has heard %d Drained", h.drained)
			}
		}
	})
}
