package sockhub_test

// What happens between a change of who has a connection and its reader's turn.

import (
	"bytes"
	"context"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// Who waits until Events may hear of it does not keep the budget's token meanwhile.
func TestWhoWaitsForEventsKeepsNoToken(t *testing.T) {
	for _, order := range []string{"the token comes first", "SetHandler comes first"} {
		t.Run(order, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := &sockhub.Options{Budget: sockhub.NewBudget(2<<20, 0, 0), MaxMessage: 900_000, FrameTimeout: 30 * time.Second}
				hub, other := openHub(t, o), openHub(t, o)
				got := make(map[string]int)
				handler := func(name string) sockhub.Handler {
					return &handlerFuncs{message: func(_ *sockhub.Reply, m []byte) { got[name] = len(m) }}
				}
				l := memnet.Listen(nil)
				conns := make(chan *sockhub.Conn, 2)
				var h sockhub.Handler
				if _, err := hub.Serve(l, &sockhub.ListenOptions{Handler: func(c *sockhub.Conn) sockhub.Handler { conns <- c; return h }}); err != nil {
					t.Fatal(err)
				}
				if _, err := hub.Expect("bob", nil); err != nil {
					t.Fatal(err)
				}
				join := func() (*sockhub.Conn, *memnet.End) {
					p, err := l.Dial(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					p.Write(frame("bob"))
					go io.Copy(io.Discard, p)
					return <-conns, p
				}
				before, _ := join()
				synctest.Wait()
				<-hub.Events()
				before.Close()
				synctest.Wait() // its end waits in Events
				h = handler("bob")
				bob, p := join()
				serve := func(name string, handled bool) (*sockhub.Conn, *memnet.End) {
					return serveMemory(t, other, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler {
						if !handled {
							return nil
						}
						return handler(name)
					}})
				}
				zeros := func(size int) []byte { return frame(string(make([]byte, size))) }
				_, first := serve("first", false)
				last, plast := serve("last", true)
				_, full := serve("full", false)
				little, some, more := zeros(12_000), zeros(200_000), zeros(300_000)
				p.Write(some[:100_000])
				first.Write(little[:10_000])
				plast.Write(more[:100_000])
				synctest.Wait()
				go full.Write(bytes.Repeat(zeros(1000), 1200))
				synctest.Wait()
				tail := some[100_000:]
				if order == "the token comes first" {
					tail = tail[:1000]
				}
				for _, more := range []func(){
					func() { first.Write(little[10_000:10_001]) },
					func() { p.Write(tail) },
					func() { plast.Write(more[100_000:]) },
				} {
					go more()
					synctest.Wait()
				}
				if !bob.Stats().Paused || !last.Stats().Paused {
					t.Fatal("InboundLimit is not reached")
				}
				give := func() {
					bob.SetHandler(nil)
					synctest.Wait()
				}
				if order == "SetHandler comes first" {
					give()
				}
				first.Write(little[10_001:])
				synctest.Wait()
				if order == "the token comes first" {
					give()
				}
				<-time.After(time.Hour)
				if got["last"] != 300_000 {
					t.Error("others wait")
				}
				if err := context.Cause(bob.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// The end of the input is for who gets the connection, if it comes behind SetHandler.
func TestEndBehindSetHandlerIsTheNextHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		entered, goOn := make(chan struct{}), make(chan struct{})
		var told []string
		before := &handlerFuncs{
			message: func(*sockhub.Reply, []byte) { close(entered); <-goOn },
			ended:   func(*sockhub.Reply) { told = append(told, "before") },
		}
		c, p := serveMemory(t, hub, &memnet.Options{Unix: true}, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return before }})
		p.Write(frame("x"))
		<-entered
		c.SetHandler(&handlerFuncs{ended: func(*sockhub.Reply) { told = append(told, "next") }})
		p.CloseWrite()
		close(goOn)
		synctest.Wait()
		if !slices.Equal(told, []string{"next"}) {
			t.Errorf("told: %v", told)
		}
	})
}
