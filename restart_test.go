//go:build unix

package sockhub_test

// A listening socket that is handed to another process.

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
)

func init() { children["inherit"] = childInherit }

// childInherit is a hub that listens on the socket that it has inherited as its
// fourth descriptor, and echoes until its input ends.
func childInherit([]string) error {
	file := os.NewFile(3, "listener")
	l, err := net.FileListener(file)
	file.Close()
	if err != nil {
		return err
	}
	hub, err := sockhub.New(context.Background(), &sockhub.Options{HandshakeTimeout: patience})
	if err != nil {
		return err
	}
	defer hub.Close()
	if _, err := hub.Serve(l, nil); err != nil {
		return err
	}
	fmt.Println("LISTENING")
	go func() {
		io.Copy(io.Discard, os.Stdin)
		hub.Close()
	}()
	for b := range hub.Events() {
		for c, m := range b.Messages() {
			c.TrySend(m)
		}
	}
	return nil
}

// A new process inherits the listening socket and begins to accept; the old one
// stops accepting, serves those that it has until they leave, and is gone. Under
// load nobody is refused, and nobody misses an answer.
func TestHotRestartRefusesNobodyAndLosesNothing(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			network, at := address(t, kind)
			inner, err := net.Listen(network, at)
			if err != nil {
				t.Fatal(err)
			}
			if l, ok := inner.(*net.UnixListener); ok {
				l.SetUnlinkOnClose(false) // it is the new process's too
			}
			file, err := inner.(interface{ File() (*os.File, error) }).File()
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			old := newStand(t, &sockhub.Options{HandshakeTimeout: patience}, echo) // on a busy machine too
			if _, err := old.Serve(inner, nil); err != nil {
				t.Fatal(err)
			}

			var (
				stop, served atomic.Int64
				one          = make(chan struct{}, 1) // was served
				clients      sync.WaitGroup
			)
			for i := range 8 {
				clients.Go(func() {
					for n := 0; stop.Load() == 0; n++ {
						begun := time.Now()
						if err := session(network, inner.Addr().String(), fmt.Sprint("client ", i, " ", n)); err != nil {
							t.Errorf("client %d, its connection %d, after %v: %v", i, n, time.Since(begun), err)
							return
						}
						served.Add(1)
						select {
						case one <- struct{}{}:
						default:
						}
					}
				})
			}
			more := func() { // until many more were served
				t.Helper()
				late := soon(t).Done()
				for n := served.Load() + 50; served.Load() < n; {
					select {
					case <-one:
					case <-late:
						stop.Store(1)
						t.Fatal("nobody is served")
					}
				}
			}
			more()
			next := startChildWith(t, "inherit", []*os.File{file})
			next.line("LISTENING")
			more() // by both
			// Not the Listener, whose Close ends handshakes under way.
			if err := inner.Close(); err != nil {
				t.Error(err)
			}
			old.until("the last connection of the old process", func() bool {
				s := old.Stats()
				return s.Listeners+s.Connecting+s.Conns == 0
			})
			if err := old.Shutdown(soon(t)); err != nil {
				t.Error(err)
			}
			accepted := old.Stats().Accepted
			more() // by the new one
			stop.Store(1)
			clients.Wait()
			if n := uint64(served.Load()); accepted == 0 || accepted >= n {
				t.Errorf("the old process has served %d of %d", accepted, n)
			}
			next.wait()
		})
	}
}

// session is one client's: it connects, says its name, and asks ten times.
func session(network, address, name string) error {
	nc, err := net.Dial(network, address)
	if err != nil {
		return err
	}
	defer nc.Close()
	ask := func(m, want []byte) error {
		if _, err := nc.Write(wire(m)); err != nil {
			return err
		}
		got := make([]byte, 8+len(want))
		if _, err := io.ReadFull(nc, got); err != nil {
			return err
		}
		if !bytes.Equal(got, wire(want)) {
			return fmt.Errorf("%q came, want %q", got, want)
		}
		return nil
	}
	if err := ask([]byte(name), []byte("OK")); err != nil {
		return fmt.Errorf("the handshake: %w", err)
	}
	for k := range 10 {
		m := body(k, k, 100*k)
		if err := ask(m, m); err != nil {
			return fmt.Errorf("message %d: %w", k, err)
		}
	}
	return nil
}
