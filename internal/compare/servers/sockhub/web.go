package main

import (
	"context"
	"errors"
	"sync"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/compare/server"
)

// answerer sends answers of these sizes, now or later, and in order.
type answerer interface{ put(size int) }

// answer answers the requests in p and returns what is left, the beginning of
// another one.
func answer(a answerer, p []byte) (rest []byte) {
	for {
		n, size := server.NextRequest(p)
		if n == 0 {
			return p
		}
		p = p[n:]
		a.put(size)
	}
}

// head makes the head of an answer. It is not used again, since it is the hub's
// from now on.
func head(size int) []byte { return server.AppendHead(make([]byte, 0, server.MaxHead), size) }

// webHandler answers requests, several at a time and in pieces too. Answers for
// which the queue has no room are sent when it is empty.
type webHandler struct {
	sockhub.BaseHandler
	reply *sockhub.Reply // of the call
	late  []int          // sizes of these answers, in order
}

func (h *webHandler) Message(r *sockhub.Reply, p []byte) {
	h.reply = r
	if rest := answer(h, p); len(rest) > 0 {
		r.Unread(rest)
	}
}

func (h *webHandler) put(size int) {
	if len(h.late) > 0 || h.reply.SendParts(head(size), server.Text(size)) != nil {
		h.late = append(h.late, size)
	}
}

func (h *webHandler) Drained(r *sockhub.Reply) {
	for len(h.late) > 0 && r.SendParts(head(h.late[0]), server.Text(h.late[0])) == nil {
		h.late = h.late[1:]
	}
}

// visitor is one connection of the loop over Events, which does not wait: answers
// for which there is no room are sent by a goroutine that does. The room that all
// connections share may be what is missing, so that to wait until this one's
// queue is empty would not do.
type visitor struct {
	conn *sockhub.Conn
	rest []byte // of a piece of input, until the rest comes; a handler gives it back with Unread

	mu   sync.Mutex
	late []int // sizes; the goroutine lives as long as there are any
}

// now is a context that has ended: a send that would wait for room is refused.
var now = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

func asked(d sockhub.Delivery) {
	v := d.Conn.Value().(*visitor)
	for _, p := range d.Messages {
		if len(v.rest) > 0 {
			v.rest = append(v.rest, p...)
			p = v.rest
		}
		v.rest = append(v.rest[:0], answer(v, p)...)
	}
}

func (v *visitor) put(size int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.late) > 0 {
		v.late = append(v.late, size)
		return
	}
	err := v.conn.SendParts(now, head(size), server.Text(size))
	if errors.Is(err, context.Canceled) {
		v.late = append(v.late, size)
		go v.catchUp()
		return
	}
	sent(err)
}

// catchUp sends what is late, waiting for room.
func (v *visitor) catchUp() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for len(v.late) > 0 {
		size := v.late[0]
		v.mu.Unlock()
		err := v.conn.SendParts(context.Background(), head(size), server.Text(size))
		sent(err)
		v.mu.Lock()
		v.late = v.late[1:]
		if err != nil {
			v.late = nil // the connection has ended
		}
	}
}
