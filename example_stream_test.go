package sockhub_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"sync"
	"sync/atomic"

	"github.com/sockhub/sockhub"
)

// In a loop over Events a message above StreamOver is read beside the loop. HalfOpen keeps
// its connection until it was answered.
func ExampleStream() {
	ctx := context.Background()
	hub, err := sockhub.New(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	l, err := hub.Listen(ctx, "tcp", "127.0.0.1:0", &sockhub.ListenOptions{
		Mode: sockhub.Anonymous, StreamOver: 1 << 20, HalfOpen: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	answer := make(chan string)
	go func() { answer <- upload(l.Addr().String(), 5<<20) }()

	for b := range hub.Events() {
		for _, c := range b.Unknown {
			c.SetValue(new(sync.WaitGroup)) // answers that are under way
		}
		for _, d := range b.Received {
			if d.Stream == nil {
				continue // only messages of up to StreamOver
			}
			d.Conn.Value().(*sync.WaitGroup).Go(func() {
				n, err := io.Copy(io.Discard, d.Stream)
				if err != nil {
					return // the connection has ended within the message
				}
				d.Conn.Send(ctx, fmt.Appendf(nil, "%d bytes have come", n))
			})
		}
		for _, c := range b.Ended {
			go func() {
				c.Value().(*sync.WaitGroup).Wait()
				c.Finish()
			}()
		}
		if len(b.Disconnected) > 0 {
			break
		}
	}
	hub.Close()
	fmt.Println(<-answer)
	// Output: 5242880 bytes have come
}

// upload sends one message, and returns the answer.
func upload(address string, size int) string {
	ctx := context.Background()
	hub, err := sockhub.New(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer hub.Close()
	c, err := hub.Dial(ctx, "tcp", address, &sockhub.DialOptions{Mode: sockhub.Anonymous})
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		if err := c.SendFrom(ctx, uint64(size), bytes.NewReader(make([]byte, size))); err != nil {
			log.Fatal(err)
		}
		c.CloseWrite()
	}()
	for b := range hub.Events() {
		for _, msg := range b.Messages() {
			return string(msg)
		}
	}
	return ""
}

// joint passes on what comes on one connection to another. Where it waits for room there,
// no more is read here.
type joint struct {
	sockhub.BaseHandler
	to    *sockhub.Conn
	ended *atomic.Int32 // directions
}

func (j joint) Message(r *sockhub.Reply, piece []byte) {
	if err := j.to.Send(r.Conn().Context(), piece); err != nil {
		r.Close()
	}
}

// Ended passes on that the peer has finished. The other direction goes on.
func (j joint) Ended(r *sockhub.Reply) {
	j.to.CloseWrite()
	if j.ended.Add(1) == 2 {
		r.Finish()
		j.to.Finish()
	}
}

func (j joint) Disconnected(sockhub.Disconnection) { j.to.Finish() }

// A proxy is two connections that are joined by their Handlers.
func ExampleHandler_proxy() {
	ctx := context.Background()
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer backend.Close()
	go func() {
		nc, err := backend.Accept()
		if err != nil {
			return
		}
		said, _ := io.ReadAll(nc) // until it has finished
		fmt.Fprintf(nc, "%s to you too", said)
		nc.Close()
	}()

	hub, err := sockhub.New(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer hub.Close()
	l, err := hub.Listen(ctx, "tcp", "127.0.0.1:0", &sockhub.ListenOptions{
		Mode: sockhub.Raw, HalfOpen: true,
		Handler: func(client *sockhub.Conn) sockhub.Handler {
			ended := new(atomic.Int32)
			// This may wait: it holds up this client alone.
			server, err := hub.Dial(ctx, "tcp", backend.Addr().String(), &sockhub.DialOptions{
				Mode: sockhub.Raw, HalfOpen: true,
				Handler: func(*sockhub.Conn) sockhub.Handler { return joint{to: client, ended: ended} },
			})
			if err != nil {
				client.Close()
				return sockhub.BaseHandler{}
			}
			return joint{to: server, ended: ended}
		},
	})
	if err != nil {
		log.Fatal(err)
	}

	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	fmt.Fprint(nc, "good morning")
	nc.(*net.TCPConn).CloseWrite()
	answer, err := io.ReadAll(nc)
	fmt.Printf("%s, %v\n", answer, err)
	// Output: good morning to you too, <nil>
}
