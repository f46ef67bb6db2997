package sockhub_test

// Accept that fails, and the ends of listeners.

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sockhub/sockhub"
)

// scripted is a listener whose Accepts give what the test puts into them.
type scripted struct {
	results chan any // net.Conn or error
	closed  chan struct{}
	calls   []time.Duration // of Accept, since the listener was made; read when it is idle
	begun   time.Time
}

func newScripted() *scripted {
	return &scripted{results: make(chan any, 100), closed: make(chan struct{}), begun: time.Now()}
}

func (l *scripted) Accept() (net.Conn, error) {
	l.calls = append(l.calls, time.Since(l.begun))
	select {
	case r := <-l.results:
		if err, ok := r.(error); ok {
			return nil, err
		}
		return r.(net.Conn), nil
	case <-l.closed:
		return nil, &net.OpError{Op: "accept", Err: net.ErrClosed}
	}
}

func (l *scripted) Close() error   { close(l.closed); return nil }
func (l *scripted) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7} }

// temporary is an error as some listeners return, with nothing to compare.
type temporary struct{}

func (temporary) Error() string   { return "a passing trouble" }
func (temporary) Timeout() bool   { return true }
func (temporary) Temporary() bool { return true }

func TestAcceptBacksOffAfterErrorsAndGoesOn(t *testing.T) {
	failures := []error{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EPERM,
		temporary{}, io.EOF, io.ErrUnexpectedEOF, os.ErrDeadlineExceeded, errors.New("something"),
	}
	for _, failure := range failures {
		t.Run(failure.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := openHub(t, nil)
				inner := newScripted()
				l, err := hub.Serve(inner, &sockhub.ListenOptions{Mode: sockhub.Anonymous})
				if err != nil {
					t.Fatal(err)
				}
				early := connect(inner)
				for range 11 {
					inner.results <- &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", failure)}
				}
				late := connect(inner)
				inner.results <- failure
				again := connect(inner)

				time.AfterFunc(2*time.Second, func() { serves(t, hub, early) }) // in the middle of the errors
				for range 3 {
					synctest.Wait()
					<-time.After(4 * time.Second)
				}
				for _, c := range []net.Conn{early, late, again} {
					serves(t, hub, c)
				}

				// 5 ms, doubled up to a second, and from the beginning after a
				// success.
				want := []time.Duration{0, 0}
				at := time.Duration(0)
				for _, ms := range []time.Duration{5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000} {
					at += ms * time.Millisecond
					want = append(want, at)
				}
				want = append(want, at, at+5*time.Millisecond, at+5*time.Millisecond)
				if diff := cmp.Diff(want, inner.calls); diff != "" {
					t.Errorf("calls of Accept (-want +got):\n%s", diff)
				}
				if s := hub.Stats(); s.AcceptErrors != 12 || s.Listeners != 1 || s.Accepted != 3 {
					t.Errorf("%+v", s)
				}
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// connect lets the listener accept one end of a pipe and returns the other.
func connect(l *scripted) net.Conn {
	a, b := net.Pipe()
	l.results <- a
	return b
}

// serves checks that what the peer sends is reported.
func serves(t *testing.T, hub *sockhub.Hub, p net.Conn) {
	go p.Write(wire([]byte("still here")))
	for b := range hub.Events() {
		for range b.Messages() {
			return
		}
	}
	t.Error("nothing came")
}

func TestListenerThatWasClosedByItsOwnerIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		inner := newScripted()
		l, err := hub.Serve(inner, &sockhub.ListenOptions{Mode: sockhub.Anonymous})
		if err != nil {
			t.Fatal(err)
		}
		p := connect(inner)
		inner.results <- fmt.Errorf("wrapped: %w", net.ErrClosed)
		synctest.Wait()
		if s := hub.Stats(); s.Listeners != 0 || s.AcceptErrors != 0 || len(inner.calls) != 2 {
			t.Errorf("%d calls of Accept; %+v", len(inner.calls), s)
		}
		serves(t, hub, p)
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Close: %v", err)
		}
	})
}

func TestClosingDoesNotWaitForTheBackOff(t *testing.T) {
	for _, how := range []string{"Listener.Close", "Hub.Close", "Hub.Shutdown"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := openHub(t, nil)
				inner := newScripted()
				l, err := hub.Serve(inner, nil)
				if err != nil {
					t.Fatal(err)
				}
				for range 20 {
					inner.results <- syscall.EMFILE
				}
				<-time.After(2500 * time.Millisecond) // into a long pause
				begun := time.Now()
				switch how {
				case "Listener.Close":
					l.Close()
				case "Hub.Close":
					hub.Close()
				case "Hub.Shutdown":
					hub.Shutdown(t.Context())
				}
				if d := time.Since(begun); d > 0 {
					t.Errorf("it took %v", d)
				}
			})
		})
	}
}
