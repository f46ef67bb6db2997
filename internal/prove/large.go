package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sockhub/sockhub"
)

// Two processes send each other one message of 16 GiB at the same time, and
// compare every byte that comes with what it has to be.

func init() { roles["giant"] = giantPeer }

func giant(p *proof) {
	size := uint64(p.n(16<<10)) << 20
	hub, err := sockhub.New(context.Background(), &sockhub.Options{StreamOver: 1 << 20})
	p.must(err)
	defer hub.Close()
	l, err := hub.Listen(context.Background(), "tcp4", "127.0.0.1:0", &sockhub.ListenOptions{Mode: sockhub.Anonymous})
	p.must(err)
	other := p.start(nil, "giant", l.Addr(), size)
	defer other.end()
	var done atomic.Uint64
	over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(5 * time.Second):
				p.say("%d of %d MiB received", done.Load()>>20, size>>20)
			}
		}
	}()
	begun := time.Now()
	p.must(exchange(hub, nil, size, &done))
	took := time.Since(begun)
	ours, theirs := peak(), other.line("PEAK ", time.Minute)
	if ours == 0 {
		p.skip("no /proc/self/status here")
	}
	their, err := strconv.ParseInt(strings.TrimSpace(theirs), 10, 64)
	p.must(err)
	p.measured("%.2f GiB each way at once in %v, every byte compared; peak memory %s and %s",
		float64(size)/(1<<30), took.Round(time.Second), mib(ours), mib(their))
	p.check(max(ours, their) < 64<<20, "more than 64 MiB")
}

// giantPeer is the other process.
func giantPeer(args []string, quit <-chan struct{}) error {
	size, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	hub, err := sockhub.New(context.Background(), &sockhub.Options{StreamOver: 1 << 20})
	if err != nil {
		return err
	}
	defer hub.Close()
	c, err := hub.Dial(context.Background(), "tcp4", args[0], &sockhub.DialOptions{Mode: sockhub.Anonymous})
	if err != nil {
		return err
	}
	if err := exchange(hub, c, size, new(atomic.Uint64)); err != nil {
		return err
	}
	fmt.Println("PEAK", peak())
	<-quit
	return nil
}

// exchange sends a peer a message, and receives one: the peer that was dialed, or
// else the one that comes.
func exchange(hub *sockhub.Hub, dialed *sockhub.Conn, size uint64, done *atomic.Uint64) error {
	sent, came := make(chan error, 1), make(chan error, 1)
	send := func(c *sockhub.Conn) { sent <- c.SendFrom(context.Background(), size, &pattern{}) }
	if dialed != nil {
		go send(dialed)
	}
	for both := 0; both < 2; {
		select {
		case err := <-sent:
			if both++; err != nil {
				return fmt.Errorf("sending: %w", err)
			}
		case err := <-came:
			if both++; err != nil {
				return fmt.Errorf("receiving: %w", err)
			}
		case b, ok := <-hub.Events():
			if !ok {
				return errors.New("the hub is closed")
			}
			for _, c := range b.Unknown {
				go send(c)
			}
			for _, d := range b.Received {
				s := d.Stream
				if s == nil {
					return errors.New("a message that is no stream")
				}
				if s.Size() != size {
					return fmt.Errorf("a message of %d bytes", s.Size())
				}
				go func() {
					n, err := io.CopyBuffer(&pattern{done: done}, onlyReader{s}, make([]byte, 64<<10))
					if err == nil && uint64(n) != size {
						err = fmt.Errorf("%d bytes", n)
					}
					came <- err
				}()
			}
			for _, d := range b.Disconnected {
				return d.Err
			}
		}
	}
	return nil
}

type onlyReader struct{ io.Reader }

// pattern is bytes that repeat with a prime period, so that no two chunks are
// alike. As a Writer it compares.
type pattern struct {
	at   int
	done *atomic.Uint64
}

const period = 65521

var twice = func() []byte {
	b := make([]byte, 2*period)
	for i := range b {
		b[i] = byte(i % period * 7 / 3)
	}
	return b
}()

func (r *pattern) next(n int) []byte {
	b := twice[r.at : r.at+min(n, period)]
	r.at = (r.at + len(b)) % period
	return b
}

func (r *pattern) Read(p []byte) (int, error) { return copy(p, r.next(len(p))), nil }

func (r *pattern) Write(p []byte) (n int, err error) {
	for n < len(p) {
		want := r.next(len(p) - n)
		if !bytes.Equal(p[n:n+len(want)], want) {
			return n, fmt.Errorf("a wrong byte within %d of byte %d", len(want), r.done.Load())
		}
		n += len(want)
		r.done.Add(uint64(len(want)))
	}
	return n, nil
}

// peak is the most memory in RAM that this process ever had, 0 if the system
// does not tell.
func peak() int64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	var kb int64
	fmt.Sscan(rest, &kb)
	return kb << 10
}
