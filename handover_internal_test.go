package sockhub

import (
	"encoding/binary"
	"io"
	"runtime"
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

// reads is a Handler that reads Streams.
type reads struct {
	BaseHandler
	bytes int64
}

func (h *reads) Stream(_ *Reply, s *Stream) { h.bytes, _ = io.Copy(io.Discard, s) }

// A Stream that was to be Events' for a moment is the Handler's that is set just before it is.
func TestStreamOnItsWayToEventsIsTheNextHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, err := New(t.Context(), &Options{StreamOver: 1000})
		if err != nil {
			t.Fatal(err)
		}
		defer hub.Close()
		ours, peer := memnet.Pair(&memnet.Options{Unix: true})
		defer peer.Close()
		before := &blocks{entered: make(chan struct{}), goOn: make(chan struct{})}
		c, err := hub.ServeConn(t.Context(), ours, &ListenOptions{Mode: Anonymous, Handler: func(*Conn) Handler { return before }})
		if err != nil {
			t.Fatal(err)
		}
		header := LengthPrefix(8, binary.LittleEndian)
		wire := append(header.AppendHeader(nil, 1), 'x')
		peer.Write(append(header.AppendHeader(wire, 2000), make([]byte, 2000)...))
		<-before.entered
		c.SetHandler(nil)
		hub.fan.mu.Lock()
		close(before.goOn)
		for handled := true; handled; { // from then on the reader waits for fan.mu
			runtime.Gosched()
			c.mu.Lock()
			handled = c.out.handled
			c.mu.Unlock()
		}
		next := new(reads)
		c.SetHandler(next)
		hub.fan.mu.Unlock()
		synctest.Wait()
		if next.bytes != 2000 {
			t.Errorf("it has read %d bytes", next.bytes)
		}
	})
}

// blocks is a Handler whose only call takes its time.
type blocks struct {
	BaseHandler
	entered, goOn chan struct{}
}

func (h *blocks) Message(*Reply, []byte) {
	close(h.entered)
	<-h.goOn
}
