package sockhub_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"strings"
	"sync"

	"github.com/sockhub/sockhub"
)

// conversation is a Handler with a state of its own for each connection.
type conversation struct {
	sockhub.BaseHandler
	more int // messages that Drained still has to send
	done chan struct{}
}

func (h *conversation) Message(r *sockhub.Reply, msg []byte) {
	if string(msg) == "close" {
		r.Finish() // after everything that was sent
		return
	}
	h.more = 2
	r.SendParts(msg, []byte("1234"))
}

// Drained is called when all output is with the kernel: the moment to make more
// of a long answer.
func (h *conversation) Drained(r *sockhub.Reply) {
	if h.more > 0 {
		h.more--
		r.Send(fmt.Appendf(nil, "and %d more", h.more))
	}
}

func (h *conversation) Disconnected(d sockhub.Disconnection) {
	fmt.Printf("%s is gone: %v\n", d.Conn.Name(), d.Err)
	close(h.done)
}

// A Handler answers on the connection's own goroutine: the fastest way.
func ExampleHandler() {
	ctx := context.Background()
	hub, err := sockhub.New(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer hub.Close()
	done := make(chan struct{})
	l, err := hub.Listen(ctx, "tcp", "127.0.0.1:0", &sockhub.ListenOptions{
		Handler: func(c *sockhub.Conn) sockhub.Handler { return &conversation{done: done} },
	})
	if err != nil {
		log.Fatal(err)
	}

	client, c := joinAs(l.Addr().String(), "alice")
	defer client.Close()
	c.TrySend([]byte("data"))
	for n := 0; n < 3; {
		for _, msg := range (<-client.Events()).Messages() {
			fmt.Printf("%s\n", msg)
			n++
		}
	}
	c.TrySend([]byte("close"))
	<-done
	// Output:
	// data1234
	// and 1 more
	// and 0 more
	// alice is gone: sockhub: closed
}

// pool is a Handler that has its messages answered by other goroutines.
type pool struct {
	sockhub.BaseHandler
	jobs    chan<- job
	pending sync.WaitGroup // of this connection
}

type job struct {
	c    *sockhub.Conn
	msg  []byte
	done func()
}

// Message hands the message on. When all workers are busy it waits, and so does
// this peer alone.
func (p *pool) Message(r *sockhub.Reply, msg []byte) {
	p.pending.Add(1)
	p.jobs <- job{r.Conn(), msg, p.pending.Done}
}

// Ended: the peer has finished, but not all its answers are sent. With HalfOpen
// the connection is ours to finish.
func (p *pool) Ended(r *sockhub.Reply) {
	c := r.Conn()
	go func() {
		p.pending.Wait()
		c.Finish()
	}()
}

// Messages that take long are given to workers, which answer by Conn.Send.
func ExampleHandler_workers() {
	ctx := context.Background()
	hub, err := sockhub.New(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer hub.Close()
	jobs := make(chan job)
	defer close(jobs)
	for range 4 {
		go func() {
			for j := range jobs {
				j.c.Send(ctx, []byte(strings.ToUpper(string(j.msg))))
				j.done()
			}
		}()
	}
	l, err := hub.Listen(ctx, "tcp", "127.0.0.1:0", &sockhub.ListenOptions{
		Mode: sockhub.Anonymous, HalfOpen: true,
		Handler: func(*sockhub.Conn) sockhub.Handler { return &pool{jobs: jobs} },
	})
	if err != nil {
		log.Fatal(err)
	}

	client, err := sockhub.New(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	c, err := client.Dial(ctx, "tcp", l.Addr().String(), &sockhub.DialOptions{Mode: sockhub.Anonymous})
	if err != nil {
		log.Fatal(err)
	}
	for range 100 {
		c.TrySend([]byte("work"))
	}
	c.CloseWrite() // all questions are asked; the answers still come
	answers := 0
	for b := range client.Events() {
		for _, msg := range b.Messages() {
			if string(msg) == "WORK" {
				answers++
			}
		}
		if len(b.Disconnected) > 0 {
			break
		}
	}
	fmt.Println(answers, "answers")
	// Output: 100 answers
}

// With ReuseBuffers a message is passed on without a copy that would be left to
// the garbage collector: the hub keeps what it needs after Release.
func ExampleBatch_Release() {
	ctx := context.Background()
	hub, err := sockhub.New(ctx, &sockhub.Options{ReuseBuffers: true})
	if err != nil {
		log.Fatal(err)
	}
	defer hub.Close()
	l, err := hub.Listen(ctx, "tcp", "127.0.0.1:0", nil)
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for b := range hub.Events() {
			for from, msg := range b.Messages() {
				line := fmt.Appendf(nil, "%s: %s", from.Name(), msg)
				hub.Broadcast(hub.Conns(), line) // who is too slow for it misses it
			}
			b.Release()
		}
	}()

	var clients []*sockhub.Hub
	var conns []*sockhub.Conn
	for _, name := range []string{"alice", "bob"} {
		client, c := joinAs(l.Addr().String(), name)
		defer client.Close()
		clients, conns = append(clients, client), append(conns, c)
	}
	conns[0].TrySend([]byte("hello"))
	for _, client := range clients {
		msg, err := receive(client)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s\n", msg)
	}
	// Output:
	// alice: hello
	// alice: hello
}

// One port for clients that give a name and for plain lines of text.
func ExampleListenOptions_classify() {
	ctx := context.Background()
	hub, err := sockhub.New(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer hub.Close()
	text := &sockhub.ListenOptions{Mode: sockhub.Raw, Tag: "text"}
	l, err := hub.Listen(ctx, "tcp", "127.0.0.1:0", &sockhub.ListenOptions{
		Tag: "named",
		Classify: func(p sockhub.Peer, first []byte) (*sockhub.ListenOptions, int, error) {
			switch {
			case len(first) < 8:
				return nil, 8, nil // the length of a name, or eight letters
			case first[7] != 0:
				return text, 0, nil
			}
			return nil, 0, nil
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
	fmt.Fprintln(nc, "a line of text")
	b := <-hub.Events()
	fmt.Println(b.Unknown[0].Peer().Tag, b.Unknown[0].Raw())
	// Output: text true
}
