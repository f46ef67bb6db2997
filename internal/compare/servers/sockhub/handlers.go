package main

import (
	"bytes"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/compare/server"
)

var handlers = map[string]func(*sockhub.Conn) sockhub.Handler{
	server.Echo:     func(*sockhub.Conn) sockhub.Handler { return echo{} },
	server.HTTP:     func(*sockhub.Conn) sockhub.Handler { return new(webHandler) },
	server.Stream:   func(*sockhub.Conn) sockhub.Handler { return stream{} },
	server.Fanout:   func(*sockhub.Conn) sockhub.Handler { return fanout{} },
	server.Commands: func(*sockhub.Conn) sockhub.Handler { return new(commands) },
}

// send answers with one message, which is the first of its call and so is never
// refused for want of room.
func send(r *sockhub.Reply, msg []byte) { sent(r.Send(msg)) }

type echo struct{ sockhub.BaseHandler }

func (echo) Message(r *sockhub.Reply, msg []byte) { send(r, msg) }

type stream struct{ sockhub.BaseHandler }

func (stream) Message(r *sockhub.Reply, msg []byte) {
	if len(msg) == 0 {
		send(r, msg)
		return
	}
	count, m := server.Request(msg)
	sendMany(r.Conn(), count, bytes.Clone(m)) // it outlives this call
}

type fanout struct{ sockhub.BaseHandler }

func (fanout) Message(r *sockhub.Reply, msg []byte) {
	if len(msg) == 0 {
		send(r, msg)
		return
	}
	broadcast(msg)
}

// commands belongs to one connection, since it counts the answers.
type commands struct {
	stream
	answers server.Answers
}

func (h *commands) Message(r *sockhub.Reply, msg []byte) {
	switch {
	case h.answers.Due():
		if h.answers.Got() {
			send(r, nil)
		}
		return
	case len(msg) > 0:
		count, _ := server.Request(msg)
		h.answers.Expect(count)
	}
	h.stream.Message(r, msg)
}
