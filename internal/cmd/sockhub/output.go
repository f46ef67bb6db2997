package main

import (
	"io"
	"os"
	"sync"
)

// output is standard output for many goroutines: what they write comes out
// whole, in the order in which it was written. While one write is under way,
// what follows is gathered for the next one, so that the number of system calls
// falls as the load rises, and nothing waits for a timer.
type output struct {
	w      io.Writer
	failed chan struct{} // closed by the writing goroutine when w has failed
	done   chan struct{} // closed by it at its end

	mu      sync.Mutex
	changed sync.Cond // of all that follows
	buf     []byte    // not yet with w
	closed  bool
	err     error // of w
}

// maxGathered is how much waits for a slow reader of our output before those
// who write have to wait, and in the end their peers.
const maxGathered = 1 << 20

func newOutput(w io.Writer) *output {
	o := &output{w: w, failed: make(chan struct{}), done: make(chan struct{})}
	o.changed.L = &o.mu
	go o.copy()
	return o
}

// Write never fails: whoever needs to know waits for failed, or asks close.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.buf) > maxGathered && o.err == nil {
		o.changed.Wait()
	}
	if o.err == nil {
		o.buf = append(o.buf, p...)
		o.changed.Broadcast()
	}
	return len(p), nil
}

// copy is the writing goroutine.
func (o *output) copy() {
	defer close(o.done)
	var taken []byte
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		for len(o.buf) == 0 && !o.closed {
			o.changed.Wait()
		}
		if len(o.buf) == 0 {
			return
		}
		taken, o.buf = o.buf, taken[:0]
		o.changed.Broadcast() // there is room
		o.mu.Unlock()
		_, err := o.w.Write(taken)
		o.mu.Lock()
		if err != nil {
			o.err = err
			close(o.failed)
			o.changed.Broadcast()
			return
		}
	}
}

// close waits until everything is written, and returns the error that kept it
// from being.
func (o *output) close() error {
	o.mu.Lock()
	o.closed = true
	o.changed.Broadcast()
	o.mu.Unlock()
	<-o.done
	return o.err
}

// colours are the escape sequences for what is printed in colour: all empty
// where there is to be none.
type colours struct{ good, bad, dim, end string }

// coloursFor is about colours on the given stream: on a terminal that has them,
// unless the user does not want them (see no-color.org).
func coloursFor(stream any) colours {
	if os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" || !isTerminal(stream) {
		return colours{}
	}
	return colours{good: "\x1b[32m", bad: "\x1b[31m", dim: "\x1b[2m", end: "\x1b[0m"}
}
