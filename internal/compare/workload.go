package main

import (
	"strconv"
	"time"
)

// workload is one thing that all servers are made to do.
type workload struct {
	name  string
	group string // a plot each
	mode  string // of the server
	load  string // of the load: mostly the same
	size  int    // bytes of a body
	conns int
	depth int // messages in flight on each connection
	count int // messages of a round
	unix  bool
	tls   bool
	quick bool // part of a quick run

	setup   string   // the only one that it is measured in; "": all
	servers []string // that do it; nil: all that have the mode
	share   float64  // the load sends at a rate: this share of what the server named secondary can do
	rate    float64  // that, when it is known; messages per second
	flood   int      // messages in flight on the first connection
	procs   int      // server processes; 0: one
	onePort bool     // they listen on the same port, else each on its own
	more    int      // idle: connections that are added; their memory counts, and not that of the first
}

const (
	loadIdle = "idle" // connections that do nothing
	loadWrk  = "wrk"  // http load by wrk, which does not compare bytes
)

// args are the load's arguments.
func (w workload) args() []string {
	args := []string{
		"-mode", w.load, "-size", strconv.Itoa(w.size), "-conns", strconv.Itoa(w.conns),
		"-depth", strconv.Itoa(w.depth), "-count", strconv.Itoa(w.count), "-flood", strconv.Itoa(w.flood),
	}
	if w.tls {
		args = append(args, "-tls")
	}
	return args
}

// program is the load's: that in Go does what that in C cannot.
func (w workload) program() string {
	if w.tls || w.procs > 1 {
		return loadInGo
	}
	return loadInC
}

// slowest tells that a workload is about the slowest messages: what they take is
// then its cost.
func (w workload) slowest() bool { return w.share > 0 || w.flood > 0 }

// takes is about how long one run of it takes beside its measured time.
func (w workload) takes() time.Duration {
	t := 300 * time.Millisecond // to start the server, connect, and end
	if w.load == loadIdle {
		t += time.Second
	}
	if w.more > 0 {
		t += time.Second
	}
	return t + 2*time.Nanosecond*time.Duration(w.conns*w.size) // to get through a few times, at least
}

// unit is that of what a message, or an idle connection, costs.
func (w workload) unit() string {
	if w.load == loadIdle {
		return "B/conn"
	}
	if w.slowest() {
		return "p99 µs"
	}
	return "µs/msg"
}
