package main

import (
	"fmt"
	"os/exec"
	"strconv"
	"time"

	"github.com/sockhub/sockhub/internal/compare/server"
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
	quick bool // part of a quick run
}

const (
	loadIdle = "idle" // connections that do nothing
	loadWrk  = "wrk"  // http load by wrk, which does not compare bytes
)

// args are the load's arguments.
func (w workload) args() []string {
	return []string{
		"-mode", w.load, "-size", strconv.Itoa(w.size), "-conns", strconv.Itoa(w.conns),
		"-depth", strconv.Itoa(w.depth), "-count", strconv.Itoa(w.count),
	}
}

// takes is about how long one run of it takes beside its measured time.
func (w workload) takes() time.Duration {
	t := 300 * time.Millisecond // to start the server, connect, and end
	if w.load == loadIdle {
		t += time.Second
	}
	return t + 2*time.Nanosecond*time.Duration(w.conns*w.size) // to get through a few times, at least
}

// unit is what a message, or an idle connection, costs.
func (w workload) unit() string {
	if w.load == loadIdle {
		return "B/conn"
	}
	return "µs/msg"
}

// workloads returns all of them. A name is a key of quoted, behind a setup.
func workloads() []workload {
	var ws []workload
	add := func(w workload) {
		w.depth = max(w.depth, 1)
		if w.load == "" {
			w.load = w.mode
		}
		ws = append(ws, w)
	}
	echo := func(group string, size, conns, depth int, unix, quick bool) {
		name := fmt.Sprintf("%s %dB x%d", group, size, conns)
		if depth > 1 {
			name += fmt.Sprint(" depth ", depth)
		}
		add(workload{name: name, group: group, mode: server.Echo, size: size, conns: conns, depth: depth, unix: unix, quick: quick})
	}
	for _, size := range []int{64, 1 << 10, 16 << 10, 256 << 10, 1 << 20} {
		for _, conns := range []int{1, 50, 200, 1000} {
			quick := conns == 50 && (size == 64 || size == 16<<10 || size == 1<<20) || conns == 1000 && size == 64
			echo("echo", size, conns, 1, false, quick)
		}
	}
	echo("echo", 64, 50, 64, false, true)
	echo("echo", 512, 50, 64, false, false)
	add(workload{name: "stream 1000000 of 9B", group: "many", mode: server.Stream, size: 9, conns: 1, count: 1000000, quick: true})
	add(workload{name: "commands 100000 of 32B", group: "many", mode: server.Commands, size: 32, conns: 1, count: 100000, quick: true})
	add(workload{name: "fan-out 100B x1000", group: "many", mode: server.Fanout, size: 100, conns: 1000, quick: true})
	add(workload{name: "fan-out 4096B x1000", group: "many", mode: server.Fanout, size: 4096, conns: 1000})
	add(workload{name: "fan-out 100B x1000 deep", group: "many", mode: server.Fanout, size: 100, conns: 1000, depth: 16})

	web := func(load string, size, conns int, quick bool) {
		name := fmt.Sprintf("http /%d x%d", size, conns)
		if load == loadWrk {
			name += " wrk"
		}
		add(workload{name: name, group: "http", mode: server.HTTP, load: load, size: size, conns: conns, quick: quick})
	}
	for _, size := range []int{1, 100, 1024, 10240, 102400, 1 << 20, 1460000, 8760000, 11680000} {
		web("", size, 200, size == 100 || size == 1<<20)
	}
	for _, conns := range []int{1, 10, 50, 1000} {
		web("", 100, conns, false)
	}
	web("", 1<<20, 1000, false)
	if _, err := exec.LookPath("wrk"); err == nil {
		for _, size := range []int{100, 10240, 1 << 20} {
			web(loadWrk, size, 200, false)
		}
	}
	echo("unix", 64, 50, 1, true, true)
	echo("unix", 64, 1000, 1, true, false)
	echo("unix", 16<<10, 50, 1, true, false)
	echo("unix", 64, 50, 64, true, false)
	add(workload{name: "idle x10000", group: "idle", mode: server.Echo, load: loadIdle, size: 64, conns: 10000, quick: true})
	return ws
}
