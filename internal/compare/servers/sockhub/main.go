// Command sockhub is the server on sockhub, written as its documentation
// recommends: with handlers, or with one loop over Events.
package main

import (
	"context"
	"errors"
	"flag"
	"iter"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/compare/server"
)

var (
	events = flag.Bool("events", false, "answer in a loop over Events, not in handlers")
	reuse  = flag.Bool("reuse", false, "with ReuseBuffers")
)

var hub *sockhub.Hub

func main() {
	mode, network, address := server.Start()
	var err error
	hub, err = sockhub.New(context.Background(), &sockhub.Options{ReuseBuffers: *reuse})
	server.Check(err)
	o := &sockhub.ListenOptions{Mode: sockhub.Anonymous}
	if mode == server.HTTP {
		o.Mode = sockhub.Raw
	}
	if !*events {
		o.Handler = handlers[mode]
	}
	l, err := hub.Listen(context.Background(), network, address, o)
	server.Check(err)
	server.Ready(l.Addr())
	loop(mode)
}

// ---- what both ways share ----

// sent complains of an answer that was not sent, unless its peer has left: who
// measures does so in the middle of everything.
func sent(err error) {
	gone := errors.Is(err, sockhub.ErrNotConnected) || errors.Is(err, sockhub.ErrUnknownID)
	if err != nil && (!gone || errors.Is(err, sockhub.ErrBackpressure)) { // a Broadcast's is several
		server.Complain(err)
	}
}

// repeated is a message, again and again.
func repeated(count int, msg []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for range count {
			if !yield(msg) {
				return
			}
		}
	}
}

// sendMany sends a message again and again from a goroutine of its own, since it
// waits for room: a loop over Events would have to wait with it, and a handler
// could not read the answers.
func sendMany(to sockhub.ID, count int, msg []byte) {
	go func() {
		_, err := hub.SendMany(context.Background(), to, repeated(count, msg))
		sent(err)
	}()
}

// broadcast sends a message to everybody.
func broadcast(msg []byte) {
	_, err := hub.Broadcast(hub.Conns(), msg)
	sent(err)
}

// web answers the requests of one raw connection. Answers for which its queue
// has no room are sent when it is empty.
type web struct {
	reply *sockhub.Reply // of the handler's call, or
	conn  *sockhub.Conn  // that the loop over Events answers on
	late  []int          // sizes of these answers, in order
}

// full is a context that has ended: a send that would wait for room is refused.
var full = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// put sends an answer, or nothing. The head is not used again, since it is the
// hub's from now on.
func (w *web) put(size int) error {
	head := server.AppendHead(make([]byte, 0, server.MaxHead), size)
	if w.reply != nil {
		return w.reply.SendParts(head, server.Text(size))
	}
	return w.conn.SendParts(full, head, server.Text(size))
}

// answer answers the requests in p and returns what is left, the beginning of
// another one.
func (w *web) answer(p []byte) (rest []byte) {
	for {
		n, size := server.NextRequest(p)
		if n == 0 {
			return p
		}
		p = p[n:]
		if len(w.late) > 0 || w.put(size) != nil {
			w.late = append(w.late, size)
		}
	}
}

// drained sends what was late, as far as there is room now.
func (w *web) drained() {
	for len(w.late) > 0 && w.put(w.late[0]) == nil {
		w.late = w.late[1:]
	}
}
