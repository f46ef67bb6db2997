// Command netpoll is the server on github.com/cloudwego/netpoll: linked buffers
// that are not copied, and a pooled goroutine for each connection that has
// input.
package main

import (
	"context"
	"encoding/binary"
	"io"
	"sync"

	"github.com/cloudwego/netpoll"

	"github.com/sockhub/sockhub/internal/compare/server"
)

func main() {
	mode, network, address := server.Start()
	serve := map[string]netpoll.OnRequest{
		server.Echo: echo, server.HTTP: http, server.Stream: stream,
		server.Fanout: fanout, server.Commands: commands,
	}[mode]
	netpoll.SetLoggerOutput(io.Discard) // it tells of every peer that resets its connection
	l, err := netpoll.CreateListener(network, address)
	server.Check(err)
	loop, err := netpoll.NewEventLoop(serve, netpoll.WithOnConnect(join), netpoll.WithOnDisconnect(leave))
	server.Check(err)
	server.Ready(l.Addr())
	server.Check(loop.Serve(l))
}

// each calls f with one message after another until there is no further one, or
// only the beginning of its header.
func each(c netpoll.Connection, f func(body []byte) error) error {
	for r := c.Reader(); ; {
		head, err := r.Next(server.HeaderLen)
		if err != nil {
			return err
		}
		body, err := r.Next(server.BodyLen(head))
		if err != nil {
			return err
		}
		if err := f(body); err != nil {
			return err
		}
		if r.Len() < server.HeaderLen {
			return r.Release()
		}
	}
}

func put(w netpoll.Writer, body []byte) error {
	p, err := w.Malloc(server.HeaderLen + len(body))
	if err != nil {
		return err
	}
	binary.LittleEndian.PutUint64(p, uint64(len(body)))
	copy(p[server.HeaderLen:], body)
	return nil
}

func echo(_ context.Context, c netpoll.Connection) error {
	w := c.Writer()
	if err := each(c, func(body []byte) error { return put(w, body) }); err != nil {
		return err
	}
	return w.Flush()
}

// repeat sends a message again and again, and flushes often enough for all of
// them not to lie in memory.
func repeat(w netpoll.Writer, count int, msg []byte) error {
	for i := range count {
		if err := put(w, msg); err != nil {
			return err
		}
		if i%1024 == 1023 {
			if err := w.Flush(); err != nil {
				return err
			}
		}
	}
	return w.Flush()
}

func stream(_ context.Context, c netpoll.Connection) error {
	w := c.Writer()
	return each(c, func(body []byte) error {
		if len(body) == 0 {
			return repeat(w, 1, nil)
		}
		count, msg := server.Request(body)
		return repeat(w, count, msg)
	})
}

// commands writes them all before it reads the first answer: what comes
// meanwhile waits in the connection's input buffer.
func commands(ctx context.Context, c netpoll.Connection) error {
	a := ctx.Value(answers{}).(*server.Answers)
	w := c.Writer()
	return each(c, func(body []byte) error {
		switch {
		case a.Due():
			if !a.Got() {
				return nil
			}
			return repeat(w, 1, nil)
		case len(body) == 0:
			return repeat(w, 1, nil)
		}
		count, msg := server.Request(body)
		a.Expect(count)
		return repeat(w, count, msg)
	})
}

func http(_ context.Context, c netpoll.Connection) error {
	r, w := c.Reader(), c.Writer()
	var buf [server.MaxHead]byte
	for r.Len() > 0 {
		in, err := r.Peek(r.Len())
		if err != nil {
			return err
		}
		used := 0
		for {
			n, size := server.NextRequest(in[used:])
			if n == 0 {
				break
			}
			used += n
			head := server.AppendHead(buf[:0], size)
			p, err := w.Malloc(len(head))
			if err != nil {
				return err
			}
			copy(p, head)
			w.WriteBinary(server.Text(size))
		}
		if used == 0 { // wait for the rest
			if _, err := r.Peek(len(in) + 1); err != nil {
				return err
			}
			continue
		}
		if err := r.Skip(used); err != nil {
			return err
		}
		if err := r.Release(); err != nil {
			return err
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// ---- connections ----

type answers struct{} // key of a connection's *server.Answers

var (
	mu      sync.Mutex
	members = map[netpoll.Connection]struct{}{}
)

func join(ctx context.Context, c netpoll.Connection) context.Context {
	mu.Lock()
	defer mu.Unlock()
	members[c] = struct{}{}
	return context.WithValue(ctx, answers{}, new(server.Answers))
}

func leave(_ context.Context, c netpoll.Connection) {
	mu.Lock()
	defer mu.Unlock()
	delete(members, c)
}

// fanout writes from the connection on which the message came.
func fanout(_ context.Context, c netpoll.Connection) error {
	return each(c, func(body []byte) error {
		mu.Lock()
		defer mu.Unlock()
		if len(body) == 0 {
			return repeat(c.Writer(), 1, nil)
		}
		for m := range members {
			if err := repeat(m.Writer(), 1, body); err != nil {
				server.Complain(err)
			}
		}
		return nil
	})
}
