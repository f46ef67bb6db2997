package sockhub_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/sockhub/sockhub"
)

// Workers have names, and rules say from where each name may come: here, by
// the listener and by the address. Whoever comes from elsewhere is refused, and
// so is a second one of the same name.
func ExampleHub_Expect() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	hub, err := sockhub.New(ctx, &sockhub.Options{
		Admit:      sockhub.Loopback(),       // this applies to all
		Unexpected: sockhub.RefuseUnexpected, // and there are no others than those below
	})
	if err != nil {
		log.Fatal(err)
	}
	hall, err := hub.Listen(ctx, "tcp", "127.0.0.1:0", &sockhub.ListenOptions{Tag: "hall"})
	if err != nil {
		log.Fatal(err)
	}
	office, err := hub.Listen(ctx, "tcp", "127.0.0.1:0", &sockhub.ListenOptions{Tag: "office"})
	if err != nil {
		log.Fatal(err)
	}
	for name, rule := range map[string]sockhub.Rule{
		"press":   sockhub.Tag("hall"),
		"printer": sockhub.Any(sockhub.Tag("hall"), sockhub.Tag("office")),
	} {
		if _, err := hub.Expect(name, &sockhub.ClientOptions{Admit: rule}); err != nil {
			log.Fatal(err)
		}
	}

	go func() {
		workers, err := sockhub.New(ctx, nil)
		if err != nil {
			log.Fatal(err)
		}
		for _, try := range []struct {
			at   *sockhub.Listener
			name string
		}{{hall, "press"}, {office, "press"}, {office, "printer"}, {hall, "printer"}, {hall, "lathe"}} {
			_, err := workers.Dial(ctx, "tcp", try.at.Addr().String(), &sockhub.DialOptions{Name: try.name})
			if errors.Is(err, sockhub.ErrRefused) { // it does not say why
				fmt.Println(try.name, "is refused")
			} else {
				fmt.Println(try.name, "is let in, error", err)
			}
		}
		workers.Close()
		hub.Shutdown(ctx)
	}()
	connected := 0
	for b := range hub.Events() {
		connected += len(b.Connected)
	}
	fmt.Println(connected, "workers were connected")
	// Output:
	// press is let in, error <nil>
	// press is refused
	// printer is let in, error <nil>
	// printer is refused
	// lathe is refused
	// 2 workers were connected
}

// addition is a command, and sum its answer. How they are encoded is between
// the two programs; a message is bytes.
type addition struct{ A, B int }
type sum struct {
	Of addition
	Is int
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		log.Fatal(err)
	}
	return b
}

// adder is the program of a worker: it answers each command, in the Handler of
// its one connection.
type adder struct{ sockhub.BaseHandler }

// Message answers one command.
func (adder) Message(r *sockhub.Reply, msg []byte) {
	var a addition
	if err := json.Unmarshal(msg, &a); err != nil {
		r.Close() // what talks to us like that is no manager
		return
	}
	if err := r.Send(encode(sum{a, a.A + a.B})); err != nil {
		r.Close()
	}
}

// A manager sends a command to a worker once, and then many from an iterator. What
// that yields is queued in portions of up to 256 KiB, and it is asked for more only
// when there was room in the queue for the portion before: a million commands take
// no more memory than the queue may, 4 MiB, and one portion. SendMany waits for that
// room, so it runs beside the loop that receives the answers.
func ExampleHub_SendMany() {
	const many = 10_000
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	hub, err := sockhub.New(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer hub.Close()
	l, err := hub.Listen(ctx, "tcp", "127.0.0.1:0", nil)
	if err != nil {
		log.Fatal(err)
	}
	worker, err := hub.Expect("adder", nil)
	if err != nil {
		log.Fatal(err)
	}
	workers, err := sockhub.New(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer workers.Close()
	_, err = workers.Dial(ctx, "tcp", l.Addr().String(), &sockhub.DialOptions{
		Name: "adder", Handler: func(*sockhub.Conn) sockhub.Handler { return adder{} },
	})
	if err != nil {
		log.Fatal(err)
	}

	// A worker knows that it is in a moment before the hub has it in a batch.
	for b := range hub.Events() {
		if len(b.Connected) > 0 {
			break
		}
	}

	// Once.
	if err := hub.Send(ctx, worker, encode(addition{17, 25})); err != nil {
		log.Fatal(err)
	}
	answer, err := receive(hub)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", answer)

	// Many times.
	var commands iter.Seq[[]byte] = func(yield func([]byte) bool) {
		for i := range many {
			if !yield(encode(addition{i, i + 1})) {
				return
			}
		}
	}
	go func() {
		n, err := hub.SendMany(ctx, worker, commands)
		if err != nil {
			log.Fatalf("%d were accepted: %v", n, err)
		}
	}()
	answers, right := 0, 0
	for b := range hub.Events() {
		for _, msg := range b.Messages() {
			var s sum
			if err := json.Unmarshal(msg, &s); err == nil && s.Of.A == answers && s.Is == 2*answers+1 {
				right++ // and in order
			}
			answers++
		}
		if answers == many {
			break
		}
	}
	fmt.Println(answers, "answers,", right, "of them right")
	// Output:
	// {"Of":{"A":17,"B":25},"Is":42}
	// 10000 answers, 10000 of them right
}

// A worker dies, and what was queued for it and not sent goes to another. The
// report tells these apart from the jobs that were sent: of those nobody knows
// whether they were done, unless they were answered.
func ExampleReport_Unsent() {
	const jobs = 100
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	dir, err := os.MkdirTemp("", "sockhub")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	address := filepath.Join(dir, "jobs")
	hub, err := sockhub.New(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := hub.Listen(ctx, "unix", address, nil); err != nil {
		log.Fatal(err)
	}
	first, err := hub.Expect("first", nil)
	if err != nil {
		log.Fatal(err)
	}
	second, err := hub.Expect("second", nil)
	if err != nil {
		log.Fatal(err)
	}
	die := make(chan struct{})
	go lazyWorker(address, "first", die)
	go worker(address, "second")

	ready, moved, done := 0, 0, 0
	for b := range hub.Events() {
		if ready += len(b.Connected); len(b.Connected) > 0 && ready == 2 {
			for i := range jobs {
				if err := hub.TrySend(first, fmt.Appendf(nil, "job %d %16384s", i, "")); err != nil {
					log.Fatal(err)
				}
			}
			close(die)
		}
		for c := range b.Messages() {
			if done++; done == moved {
				fmt.Println(c.Name(), "has done them all")
				c.Finish()
			}
		}
		for _, d := range b.Disconnected {
			if d.Conn.ID() != first {
				hub.Close()
				continue
			}
			r := d.Report
			unsent := slices.Collect(r.Unsent())
			if r.Cut { // a part of a job does no harm
				unsent = append([][]byte{r.CutMessage()}, unsent...)
			}
			fmt.Println("some were not sent:", len(unsent) > 0)
			fmt.Println("unaccounted for:", r.AcceptedMessages-r.WrittenMessages-uint64(len(unsent)))
			for _, job := range unsent {
				if err := hub.TrySend(second, job); err != nil {
					log.Fatal(err)
				}
				moved++
			}
		}
	}
	// Output:
	// some were not sent: true
	// unaccounted for: 0
	// second has done them all
}

// lazyWorker gets in, does nothing, and dies.
func lazyWorker(address, name string, die <-chan struct{}) {
	nc, err := net.Dial("unix", address)
	if err != nil {
		log.Fatal(err)
	}
	nc.Write(wire([]byte(name)))
	<-die
	nc.Close()
}

// worker answers every job until its manager finishes.
func worker(address, name string) {
	hub, err := sockhub.New(context.Background(), &sockhub.Options{Name: name})
	if err != nil {
		log.Fatal(err)
	}
	defer hub.Close()
	if _, err := hub.Dial(context.Background(), "unix", address, nil); err != nil {
		log.Fatal(err)
	}
	for b := range hub.Events() {
		for c := range b.Messages() {
			if err := c.TrySend([]byte("done")); err != nil {
				return
			}
		}
		if len(b.Disconnected) > 0 {
			return
		}
	}
}
