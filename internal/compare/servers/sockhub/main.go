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
	share  = flag.Bool("reuseport", false, "on a port that other processes may listen on")
	reuse  = flag.Bool("reuse", false, "with ReuseBuffers")
)

var hub *sockhub.Hub

func main() {
	mode, network, address := server.Start()
	var err error
	hub, err = sockhub.New(context.Background(), &sockhub.Options{ReuseBuffers: *reuse})
	server.Check(err)
	o := &sockhub.ListenOptions{Mode: sockhub.Anonymous, TLS: server.TLS, ReusePort: *share}
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
// measures does so in the middle of everything. It is inlined, since it is called
// for every message.
func sent(err error) {
	if err != nil {
		complain(err)
	}
}

func complain(err error) {
	gone := errors.Is(err, sockhub.ErrNotConnected) || errors.Is(err, sockhub.ErrUnknownID)
	if !gone || errors.Is(err, sockhub.ErrBackpressure) { // a Broadcast's is several
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
func sendMany(to *sockhub.Conn, count int, msg []byte) {
	go func() {
		_, err := to.SendMany(context.Background(), repeated(count, msg))
		sent(err)
	}()
}

// broadcast sends a message to everybody.
func broadcast(msg []byte) {
	_, err := hub.Broadcast(hub.Conns(), msg)
	sent(err)
}
