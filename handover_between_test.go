package sockhub_test

// What happens between a change of who has a connection and its reader's turn.

import (
	"slices"
	"testing"
	"testing/synctest"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

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
