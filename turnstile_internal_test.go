package sockhub

// The turnstile, which bounds how many readers for Events have memory to read into.

import (
	"encoding/binary"
	"runtime"
	"testing"
	"testing/synctest"

	"github.com/sockhub/sockhub/internal/memnet"
)

// leavingFraming ends the goroutine that asks it about a header.
type leavingFraming struct{ Framing }

func (leavingFraming) Header([]byte) (int, uint64, error) { runtime.Goexit(); return 0, 0, nil }

// Nobody stays inside, however a turn ends; and a Handler, which may wait, is never there.
func TestNobodyStaysInsideTheTurnstile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, err := New(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer hub.Close()
		go func() {
			for range hub.Events() {
			}
		}()
		waiting, proceed := 0, make(chan struct{})
		for _, o := range []ListenOptions{
			{},
			{Framing: leavingFraming{LengthPrefix(8, binary.LittleEndian)}},
			{Handler: func(*Conn) Handler { return calling{f: func() { waiting++; <-proceed }} }},
		} {
			for range 3 {
				o.Mode = Anonymous
				ours, theirs := memnet.Pair(nil)
				defer theirs.Close()
				if _, err := hub.ServeConn(t.Context(), ours, &o); err != nil {
					t.Fatal(err)
				}
				theirs.Write([]byte("\x01\x00\x00\x00\x00\x00\x00\x00x"))
				synctest.Wait()
			}
		}
		if n := hub.turnstile.Len(); n != 0 || waiting != 3 || hub.Stats().Conns != 6 {
			t.Errorf("%d are inside; %d Handlers wait; %+v", n, waiting, hub.Stats())
		}
		close(proceed)
	})
}

// calling is a Handler that calls f for each message.
type calling struct {
	BaseHandler
	f func()
}

func (h calling) Message(*Reply, []byte) { h.f() }
