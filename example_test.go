package sockhub_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/sockhub/sockhub"
)

// An echo server is a loop over Events. The loop must not wait for a peer that
// does not read its answers, or all others would wait too: so it sends with
// TrySend, and ends the connection of a peer to which 4 MiB of answers
// (ConnOutbound) are under way. That is one who does not read them, or one who sends
// very fast and does not wait for them: for those, a Handler is better, as its own
// answers hold its peer back.
func Example_echoServer() {
	ctx := context.Background()
	hub, err := sockhub.New(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	l, err := hub.Listen(ctx, "tcp", "127.0.0.1:0", nil)
	if err != nil {
		log.Fatal(err)
	}
	go say(l.Addr().String(), "alice", "hello")

	for b := range hub.Events() {
		for _, c := range b.Unknown { // nobody's name was registered
			fmt.Printf("%s connected\n", c.Name())
		}
		for c, msg := range b.Messages() {
			fmt.Printf("%s says %q\n", c.Name(), msg)
			if err := c.TrySend(msg); err != nil {
				c.Close() // 4 MiB of answers to it are under way
			}
		}
		for _, d := range b.Disconnected {
			fmt.Printf("%s is gone, %d answers written: %v\n", d.Conn.Name(), d.Report.WrittenMessages, d.Err)
			hub.Close() // no more than this one, today
		}
	}
	// Output:
	// alice connected
	// alice says "hello"
	// alice is gone, 1 answers written: EOF
}

// A client dials, gives its name, and has the same loop. Here it waits for one
// answer at a time.
func ExampleHub_Dial() {
	address, stop := startEcho()
	defer stop()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	hub, err := sockhub.New(ctx, &sockhub.Options{Name: "alice"})
	if err != nil {
		log.Fatal(err)
	}
	defer hub.Close()
	conn, err := hub.Dial(ctx, "unix", address, nil) // returns when the server has let us in
	if err != nil {
		log.Fatal(err)
	}
	for _, text := range []string{"one", "two", "three"} {
		if err := conn.Send(ctx, []byte(text)); err != nil {
			log.Fatal(err)
		}
		answer, err := receive(hub)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s\n", answer)
	}
	// Output:
	// one
	// two
	// three
}

// Events is a channel, so a program waits in one select for it and whatever
// else it lives on.
func ExampleHub_Events() {
	address, stop := startEcho()
	defer stop()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	hub, err := sockhub.New(ctx, &sockhub.Options{Name: "alice"})
	if err != nil {
		log.Fatal(err)
	}
	defer hub.Close()
	conn, err := hub.Dial(ctx, "unix", address, nil)
	if err != nil {
		log.Fatal(err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for pings, pongs := 0, 0; pongs < 3; {
		select {
		case <-tick.C:
			if pings < 3 && conn.TrySend(fmt.Appendf(nil, "ping %d", pings)) == nil {
				pings++
			}
		case b, open := <-hub.Events():
			if !open {
				return // the hub was closed
			}
			for _, msg := range b.Messages() {
				fmt.Printf("%s came back\n", msg)
				pongs++
			}
		case <-ctx.Done():
			fmt.Println(context.Cause(ctx))
			return
		}
	}
	// Output:
	// ping 0 came back
	// ping 1 came back
	// ping 2 came back
}

// A relay passes what one peer says on to all the others. Broadcast waits for
// nobody: who has no room for the message is in its error.
func ExampleHub_Broadcast() {
	ctx := context.Background()
	hub, err := sockhub.New(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	l, err := hub.Listen(ctx, "tcp", "127.0.0.1:0", nil)
	if err != nil {
		log.Fatal(err)
	}
	go hear(l.Addr().String(), "bob")
	go hear(l.Addr().String(), "carol")

	room := make(map[*sockhub.Conn]bool)
	for b := range hub.Events() {
		for _, c := range b.Unknown {
			if room[c] = true; len(room) == 2 {
				go say(l.Addr().String(), "alice", "hello") // now that they listen
			}
		}
		for from, msg := range b.Messages() {
			others := func(yield func(*sockhub.Conn) bool) {
				for c := range room {
					if c != from && !yield(c) {
						return
					}
				}
			}
			n, err := hub.Broadcast(others, msg)
			fmt.Printf("%s's %q was passed on to %d others, error %v\n", from.Name(), msg, n, err)
		}
		for _, d := range b.Disconnected {
			if delete(room, d.Conn); len(room) == 0 {
				hub.Close()
			}
		}
	}
	// Unordered output:
	// alice's "hello" was passed on to 2 others, error <nil>
	// bob heard "hello"
	// carol heard "hello"
}

// Whoever has much to send makes the next piece when the one before is with
// the kernel: then no more than one is in memory for a peer, however slow that
// is and however many there are.
func ExampleConn_NotifyDrained() {
	const pieces = 100
	ctx := context.Background()
	hub, err := sockhub.New(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	l, err := hub.Listen(ctx, "tcp", "127.0.0.1:0", nil)
	if err != nil {
		log.Fatal(err)
	}
	received := make(chan int)
	go func() { received <- download(l.Addr().String()) }()

	sent := make(map[*sockhub.Conn]int)
	for b := range hub.Events() {
		for _, c := range b.Unknown {
			c.NotifyDrained() // at once, since nothing is queued
		}
		for _, c := range b.Drained {
			if sent[c] == pieces {
				c.Finish()
				continue
			}
			if err := c.TrySend(make([]byte, 64<<10)); err != nil {
				c.Close()
				continue
			}
			sent[c]++
			c.NotifyDrained()
		}
		for _, d := range b.Disconnected {
			fmt.Println("sent", d.Report.WrittenMessages, "pieces")
			hub.Close()
		}
	}
	fmt.Println("received", <-received, "bytes")
	// Output:
	// sent 100 pieces
	// received 6553600 bytes
}

// Shutdown ends the input of every connection, as if the peers had finished.
// What they had sent until then is still delivered and answered, and every
// answer that was accepted is written before its connection ends. So the loop goes
// on as before, until Events is closed.
func ExampleHub_Shutdown() {
	ctx := context.Background()
	hub, err := sockhub.New(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	l, err := hub.Listen(ctx, "tcp", "127.0.0.1:0", nil)
	if err != nil {
		log.Fatal(err)
	}
	received := make(chan int)
	go func() { received <- download(l.Addr().String()) }()

	stopped := make(chan error, 1)
	for b := range hub.Events() {
		for _, c := range b.Unknown {
			for range 1000 {
				if err := c.TrySend([]byte("something to remember")); err != nil {
					log.Fatal(err)
				}
			}
			go func() { // beside the loop, which has to go on
				ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
				defer cancel()
				stopped <- hub.Shutdown(ctx)
			}()
		}
		for _, d := range b.Disconnected {
			fmt.Println(d.Err)
			fmt.Println("accepted", d.Report.AcceptedMessages, "written", d.Report.WrittenMessages)
		}
	}
	fmt.Println("shutdown:", <-stopped)
	fmt.Println("received", <-received, "bytes")
	// Output:
	// sockhub: closed
	// accepted 1000 written 1000
	// shutdown: <nil>
	// received 21000 bytes
}

// ---- what the examples talk to ----

// startEcho runs an echo server on a Unix socket in a directory of its own.
func startEcho() (address string, stop func()) {
	dir, err := os.MkdirTemp("", "sockhub")
	if err != nil {
		log.Fatal(err)
	}
	hub, err := sockhub.New(context.Background(), nil)
	if err != nil {
		log.Fatal(err)
	}
	address = filepath.Join(dir, "echo")
	if _, err := hub.Listen(context.Background(), "unix", address, nil); err != nil {
		log.Fatal(err)
	}
	go func() {
		for b := range hub.Events() {
			for c, msg := range b.Messages() {
				if err := c.TrySend(msg); err != nil {
					c.Close()
				}
			}
		}
	}()
	return address, func() {
		hub.Close()
		os.RemoveAll(dir)
	}
}

// joinAs connects a hub of its own to a server.
func joinAs(address, name string) (*sockhub.Hub, *sockhub.Conn) {
	hub, err := sockhub.New(context.Background(), &sockhub.Options{Name: name})
	if err != nil {
		log.Fatal(err)
	}
	conn, err := hub.Dial(context.Background(), "tcp", address, nil)
	if err != nil {
		log.Fatal(err)
	}
	return hub, conn
}

// receive waits for one message.
func receive(hub *sockhub.Hub) ([]byte, error) {
	for b := range hub.Events() {
		for _, msg := range b.Messages() {
			return msg, nil
		}
		for _, d := range b.Disconnected {
			return nil, d.Err
		}
	}
	return nil, sockhub.ErrClosed
}

// say connects, says something, and leaves when that was written.
func say(address, name, text string) {
	hub, conn := joinAs(address, name)
	conn.TrySend([]byte(text))
	conn.Finish()
	receive(hub) // waits for the end
	hub.Close()
}

// hear connects, waits for one message and leaves.
func hear(address, name string) {
	hub, _ := joinAs(address, name)
	defer hub.Close()
	msg, err := receive(hub)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s heard %q\n", name, msg)
}

// download counts the bytes that come until the server has finished.
func download(address string) (size int) {
	hub, _ := joinAs(address, "alice")
	defer hub.Close()
	for b := range hub.Events() {
		for _, msg := range b.Messages() {
			size += len(msg)
		}
		if len(b.Disconnected) > 0 {
			break
		}
	}
	return size
}
