package main

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/compare/server"
)

// loop is the program over Events. With handlers, nothing comes here.
func loop(mode string) {
	handle := map[string]func(sockhub.Delivery){
		server.Echo: echoBack, server.HTTP: asked, server.Stream: streamed,
		server.Fanout: fannedOut, server.Commands: commanded,
	}[mode]
	for b := range hub.Events() {
		for _, c := range b.Unknown {
			switch mode {
			case server.HTTP:
				c.SetValue(&visitor{conn: c})
			case server.Commands:
				c.SetValue(new(server.Answers))
			}
		}
		for _, d := range b.Received {
			handle(d)
		}
		b.Release()
	}
}

// back sends to whom it came from. All connections together may have no room
// left (Options.OutboundLimit): then the loop waits, for peers that read.
func back(to *sockhub.Conn, msg []byte) {
	err := to.TrySend(msg)
	if errors.Is(err, sockhub.ErrBackpressure) {
		err = to.Send(context.Background(), msg)
	}
	sent(err)
}

// echoBack sends several messages at once where several have come: that costs
// less than one by one.
func echoBack(d sockhub.Delivery) {
	if len(d.Messages) == 1 {
		back(d.Conn, d.Messages[0])
		return
	}
	_, err := d.Conn.SendMany(context.Background(), slices.Values(d.Messages))
	sent(err)
}

func streamed(d sockhub.Delivery) {
	for _, msg := range d.Messages {
		if len(msg) == 0 {
			back(d.Conn, msg)
			continue
		}
		count, m := server.Request(msg)
		sendMany(d.Conn, count, bytes.Clone(m)) // it outlives Release
	}
}

func fannedOut(d sockhub.Delivery) {
	for _, msg := range d.Messages {
		if len(msg) == 0 {
			back(d.Conn, msg)
		} else {
			broadcast(msg)
		}
	}
}

func commanded(d sockhub.Delivery) {
	a := d.Conn.Value().(*server.Answers)
	for i, msg := range d.Messages {
		switch {
		case a.Due():
			if a.Got() {
				back(d.Conn, nil)
			}
			continue
		case len(msg) > 0:
			count, _ := server.Request(msg)
			a.Expect(count)
		}
		streamed(sockhub.Delivery{Conn: d.Conn, Messages: d.Messages[i : i+1]})
	}
}
