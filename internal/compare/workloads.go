package main

import (
	"fmt"
	"os/exec"
	"slices"

	"github.com/sockhub/sockhub/internal/compare/server"
)

// The groups of workloads, which are drawn on a plot each.
const (
	groupEcho  = "echo"
	groupMany  = "many"
	groupHTTP  = "http"
	groupUnix  = "unix"
	groupTLS   = "tls"
	groupPorts = "ports" // several processes
	groupIdle  = "idle"
	groupTail  = "tail"  // latency at a rate
	groupFair  = "fair"  // latency beside a peer that floods
	groupLarge = "large" // CPUs and memory while there are large answers
	groupConns = "grow-conns"
	groupSizes = "grow-sizes"
)

// workloads returns all of them. A name is a key of quoted, behind a setup.
func workloads() []workload {
	all := slices.Concat(echoes(), rounds(), web(), secret(), several(), quiet(), hard(), growing())
	for i := range all {
		w := &all[i]
		w.depth = max(w.depth, 1)
		if w.load == "" {
			w.load = w.mode
		}
	}
	return all
}

func echo(group string, size, conns, depth int, quick bool) workload {
	name := fmt.Sprintf("%s %dB x%d", group, size, conns)
	if depth > 1 {
		name += fmt.Sprint(" depth ", depth)
	}
	return workload{name: name, group: group, mode: server.Echo, size: size, conns: conns, depth: depth, unix: group == groupUnix, quick: quick}
}

func echoes() (ws []workload) {
	for _, size := range []int{64, 1 << 10, 16 << 10, 256 << 10, 1 << 20} {
		for _, conns := range []int{1, 50, 200, 1000} {
			quick := conns == 50 && (size == 64 || size == 16<<10 || size == 1<<20) || conns == 1000 && size == 64
			ws = append(ws, echo(groupEcho, size, conns, 1, quick))
		}
	}
	return append(ws,
		echo(groupEcho, 64, 50, 64, true),
		echo(groupEcho, 512, 50, 64, false),
		echo(groupUnix, 64, 50, 1, true),
		echo(groupUnix, 64, 1000, 1, false),
		echo(groupUnix, 16<<10, 50, 1, false),
		echo(groupUnix, 64, 50, 64, false))
}

func rounds() []workload {
	return []workload{
		{name: "stream 1000000 of 9B", group: groupMany, mode: server.Stream, size: 9, conns: 1, count: 1000000, quick: true},
		{name: "commands 100000 of 32B", group: groupMany, mode: server.Commands, size: 32, conns: 1, count: 100000, quick: true},
		{name: "fan-out 100B x1000", group: groupMany, mode: server.Fanout, size: 100, conns: 1000, quick: true},
		{name: "fan-out 4096B x1000", group: groupMany, mode: server.Fanout, size: 4096, conns: 1000},
		{name: "fan-out 100B x1000 deep", group: groupMany, mode: server.Fanout, size: 100, conns: 1000, depth: 16},
	}
}

func web() (ws []workload) {
	loads := []string{""} // our own
	if _, err := exec.LookPath("wrk"); err == nil {
		loads = append(loads, loadWrk)
	}
	for _, load := range loads {
		add := func(size, conns int, quick bool) {
			w := workload{name: fmt.Sprintf("http /%d x%d", size, conns), group: groupHTTP, mode: server.HTTP, load: load, size: size, conns: conns, quick: quick}
			if load == loadWrk {
				w.name, w.quick = w.name+" wrk", false // it measures a second at least
			}
			ws = append(ws, w)
		}
		for _, size := range []int{1, 100, 1024, 10240, 102400, 1 << 20, 1460000, 8760000, 11680000} {
			add(size, 200, size == 100 || size == 1<<20)
		}
		for _, conns := range []int{1, 10, 50, 1000} {
			add(100, conns, false)
		}
		add(1<<20, 1000, false)
	}
	return ws
}

// encrypted are the servers that have TLS.
var encrypted = []string{"handler+r", "handler", "events+r", "events", secondary, "net 64K"}

// secret are echoes over TLS.
func secret() (ws []workload) {
	for _, size := range []int{64, 16 << 10, 1 << 20} {
		w := echo(groupTLS, size, 50, 1, size == 64)
		w.tls, w.servers = true, encrypted
		ws = append(ws, w)
	}
	w := echo(groupTLS, 64, 50, 64, false)
	w.tls, w.servers = true, encrypted
	return append(ws, w)
}

// shared are the servers that can listen where another process does.
var shared = []string{"handler+r", "events+r"}

// several are 1, 2 and 4 processes on one port, and on a port each. What counts
// is the CPU time of all.
func several() (ws []workload) {
	for _, n := range []int{1, 2, 4} {
		for _, one := range []bool{true, false} {
			where := "a port each"
			if one {
				where = "one port"
			}
			ws = append(ws, workload{name: fmt.Sprintf("ports 64B x200, %d processes, %s", n, where), group: groupPorts,
				mode: server.Echo, size: 64, conns: 200, procs: n, onePort: one, servers: shared, quick: n == 2})
		}
	}
	return ws
}

// quiet are connections without traffic.
func quiet() []workload {
	return []workload{
		{name: "idle x10000", group: groupIdle, mode: server.Echo, load: loadIdle, size: 64, conns: 10000, quick: true},
		{name: "idle x10000 to 18000", group: groupIdle, mode: server.Echo, load: loadIdle, size: 64, conns: 10000, more: 8000, setup: "A"},
	}
}

// few are the servers that are compared where all would take too long.
var few = []string{yardstick, "handler+r", "handler", "events+r", "events", secondary, "net 64K"}

// hard is what throughput does not show.
func hard() []workload {
	ws := []workload{
		{name: "tail 64B x1000 at 50%", group: groupTail, mode: server.Echo, size: 64, conns: 1000, share: .5, servers: few},
		{name: "tail 64B x1000 at 80%", group: groupTail, mode: server.Echo, size: 64, conns: 1000, share: .8, servers: few, quick: true},
		{name: "fair 64B x100", group: groupFair, mode: server.Echo, size: 64, conns: 101, flood: 4096, servers: few, quick: true},
	}
	for _, mb := range []int{2, 4, 6, 8, 10, 12} {
		ws = append(ws, workload{name: fmt.Sprintf("large http %dMB x50", mb), group: groupLarge, mode: server.HTTP, size: mb * 1e6, conns: 50, setup: "A", quick: mb == 8})
	}
	for _, mb := range []int{2, 12} {
		ws = append(ws, workload{name: fmt.Sprintf("large echo %dMB x50", mb), group: groupLarge, mode: server.Echo, size: mb * 1e6, conns: 50, setup: "A"})
	}
	return ws
}

// growing doubles the connections, and the size of messages.
func growing() (ws []workload) {
	add := func(group, name string, size, conns int) {
		ws = append(ws, workload{name: name, group: group, mode: server.Echo, size: size, conns: conns, setup: "A",
			servers: []string{yardstick, "handler+r", "events+r", secondary}})
	}
	for n := 1; n <= 8192; n *= 2 {
		add(groupConns, fmt.Sprintf("grow to %d connections", n), 64, n)
	}
	add(groupConns, "grow to 10000 connections", 64, 10000)
	for n := 1; n <= 64<<20; n *= 2 {
		add(groupSizes, fmt.Sprintf("grow to %d bytes", n), n, 4)
	}
	return ws
}
