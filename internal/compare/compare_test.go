package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sockhub/sockhub/internal/compare/server"
)

var built struct { // by TestMain
	kits map[string]*kit
	err  error
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "compare")
	if err != nil {
		panic(err)
	}
	built.kits, built.err = buildKits(dir)
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// buildKits builds the servers with the load in Go, and, where there is a C
// compiler, all that with the load in C.
func buildKits(dir string) (map[string]*kit, error) {
	if err := supported(); err != nil {
		return nil, err
	}
	compilers := map[string]string{"load in Go": ""}
	if cc := compiler(); cc != "" {
		compilers["load in C"] = cc
	}
	kits := map[string]*kit{}
	for name, cc := range compilers {
		sub, err := os.MkdirTemp(dir, "")
		if err != nil {
			return nil, err
		}
		k, err := buildAll(context.Background(), sub, cc, contenders)
		if err != nil {
			return nil, err
		}
		kits[name] = k
	}
	return kits, nil
}

func kits(t *testing.T) map[string]*kit {
	if supported() != nil {
		t.Skip(supported())
	}
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.kits
}

// briefly does every kind of work for a moment.
func briefly() []workload {
	return []workload{
		{name: "echo", mode: server.Echo, size: 64, conns: 5, depth: 1},
		{name: "echo over a Unix socket", mode: server.Echo, size: 700, conns: 3, depth: 16, unix: true},
		{name: "echo of large messages", mode: server.Echo, size: 300000, conns: 3, depth: 1},
		{name: "stream", mode: server.Stream, size: 9, conns: 2, depth: 1, count: 5000},
		{name: "commands", mode: server.Commands, size: 32, conns: 2, depth: 1, count: 5000},
		{name: "fan-out", mode: server.Fanout, size: 100, conns: 5, depth: 4},
		{name: "http", mode: server.HTTP, size: 100, conns: 5, depth: 3},
		{name: "http, large", mode: server.HTTP, size: 1000000, conns: 3, depth: 1},
		{name: "idle", mode: server.Echo, load: loadIdle, size: 64, conns: 20, depth: 1},
		{name: "idle, and more", mode: server.Echo, load: loadIdle, size: 64, conns: 10, depth: 1, more: 10},
		{name: "at a rate", mode: server.Echo, size: 64, conns: 5, depth: 1, share: .1, rate: 2000},
		{name: "echo over TLS", mode: server.Echo, size: 300, conns: 5, depth: 2, tls: true, servers: encrypted},
		{name: "several on one port", mode: server.Echo, size: 64, conns: 20, depth: 1, procs: 3, onePort: true, servers: shared},
		{name: "several on a port each", mode: server.Echo, size: 64, conns: 20, depth: 1, procs: 3, servers: shared},
		{name: "beside a flood", mode: server.Echo, size: 64, conns: 5, depth: 1, flood: 1000},
	}
}

func TestEveryServerAnswersEveryByte(t *testing.T) {
	s, err := newSetup("B")
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range kits(t) {
		b := &bench{kit: k, time: 20 * time.Millisecond}
		for _, w := range briefly() {
			if w.load == "" {
				w.load = w.mode
			}
			for _, c := range (&plan{cs: pick("", k.withC)}).of(w) {
				r := b.measure(t.Context(), c, w, s)
				if r.Error != "" {
					t.Errorf("%s, %s, %s: %s", c.name, w.name, name, r.Error)
				} else if w.load != loadIdle && (r.Messages == 0 || r.Cost <= 0) {
					t.Errorf("%s, %s, %s: nothing was measured: %+v", c.name, w.name, name, r)
				}
			}
		}
	}
}

func TestPinnedServerIsMeasured(t *testing.T) {
	s, err := newSetup("A")
	if err != nil {
		t.Skip(err)
	}
	for _, k := range kits(t) {
		b := &bench{kit: k, time: 20 * time.Millisecond}
		w := briefly()[0]
		w.load = w.mode
		if r := b.measure(t.Context(), pick("handler", false)[0], w, s); r.Error != "" || r.Cost == 0 {
			t.Errorf("%+v", r)
		}
	}
}

// Requests that come in pieces, and several in one piece, some of them with
// answers that do not fit into any buffer.
func TestHTTPRequestsSplitAndPipelined(t *testing.T) {
	sizes := []int{5, 70000, 0, 3, 2000000, 17000, 100, 11680000, 1}
	var requests []byte
	for _, n := range sizes {
		requests = append(requests, "GET /"+strconv.Itoa(n)+" HTTP/1.1\r\nHost: compare\r\n\r\n"...)
	}
	s, err := newSetup("B")
	if err != nil {
		t.Fatal(err)
	}
	w := workload{mode: server.HTTP}
	for _, k := range kits(t) {
		for _, c := range (&plan{cs: pick("", k.withC)}).of(w) {
			srvs, addr, err := k.serve(t.Context(), c, w, s)
			if err != nil {
				t.Fatal(c.name, err)
			}
			for _, pieces := range []int{1, len(requests)} {
				if err := ask(addr, requests, pieces, sizes); err != nil {
					t.Errorf("%s, in %d pieces: %v", c.name, pieces, err)
				}
			}
			if err := endAll(srvs); err != nil {
				t.Error(c.name, err)
			}
		}
	}
}

// ask sends requests in so many pieces and compares the answers.
func ask(addr string, requests []byte, pieces int, sizes []int) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	go func() {
		for i := range pieces {
			c.Write(requests[i*len(requests)/pieces : (i+1)*len(requests)/pieces])
		}
	}()
	r := bufio.NewReader(c)
	for _, size := range sizes {
		answer, err := http.ReadResponse(r, nil)
		if err != nil {
			return fmt.Errorf("of %d bytes: %w", size, err)
		}
		body, err := io.ReadAll(answer.Body)
		if err != nil || !bytes.Equal(body, server.Text(size)) {
			return fmt.Errorf("of %d bytes: got %d, %v", size, len(body), err)
		}
	}
	return nil
}

func TestMistakesAreFound(t *testing.T) {
	const at = 100000 // the byte that is damaged, of all that come
	for name, k := range kits(t) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan struct{})
		go func() {
			defer close(served)
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			total, b := 0, make([]byte, 4096)
			for {
				n, err := c.Read(b)
				if err != nil {
					return
				}
				if total <= at && at < total+n {
					b[at-total] ^= 1
				}
				total += n
				c.Write(b[:n])
			}
		}()
		// Of each 1008 bytes the first 8 are the length, which may not be at.
		w := workload{mode: server.Echo, load: server.Echo, size: 1000, conns: 1, depth: 1}
		b := &bench{kit: k, time: 300 * time.Millisecond}
		var r record
		s, _ := newSetup("B")
		if _, err := b.drive(t.Context(), &r, []int{os.Getpid()}, l.Addr().String(), w, s); err == nil || !strings.Contains(err.Error(), "1 mistakes") {
			t.Errorf("%s: %v, after %v messages", name, err, r.Messages)
		}
		l.Close()
		<-served
	}
}

func TestRatiosAreToTheRunBeside(t *testing.T) {
	var records []record
	for rep, costs := range [][2]float64{{1, 2}, {10, 12}, {2, 6}} {
		records = append(records,
			record{Setup: "A", Workload: "w", Server: yardstick, Rep: rep, Cost: costs[0]},
			record{Setup: "A", Workload: "w", Server: "handler", Rep: rep, Cost: costs[1]})
	}
	c := summarize(records, yardstick)[0].cells["handler"]
	if c.ratio != 2 || math.Abs(c.least-1.2) > 1e-9 || c.most != 3 || c.cost != 6 || c.runs != 3 {
		t.Errorf("%+v", c)
	}
}

func TestRatiosWithoutTheReferenceAreToPackageNet(t *testing.T) {
	records := []record{
		{Setup: "A", Workload: "v", Server: yardstick, Cost: 1},
		{Setup: "A", Workload: "w", Server: secondary, Cost: 2},
		{Setup: "A", Workload: "w", Server: "handler", Cost: 3},
	}
	if c := summarize(records, yardstick)[1].cells["handler"]; c.ratio != 1.5 {
		t.Errorf("%+v", c)
	}
}

func TestLatencyAtARateCountsFromWhenItWasDue(t *testing.T) {
	for name, k := range kits(t) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan struct{})
		const pause = 50 * time.Millisecond
		go func() { // it sends back all at once, now and then
			defer close(served)
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			for tick, b := time.Tick(pause), make([]byte, 1<<20); ; {
				n, err := c.Read(b)
				if err != nil {
					return
				}
				c.Write(b[:n])
				if n > server.HeaderLen { // not the first
					<-tick
				}
			}
		}()
		w := workload{mode: server.Echo, load: server.Echo, size: 64, conns: 1, depth: 1, share: 1, rate: 2000}
		b := &bench{kit: k, warm: pause, time: 4 * pause}
		var r record
		s, _ := newSetup("B")
		if _, err := b.drive(t.Context(), &r, []int{os.Getpid()}, l.Addr().String(), w, s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// Who sent only after an answer would have seen most of them at once.
		if p := float64(pause.Microseconds()); r.P50 < p/5 || r.P99 < p/2 || r.Messages < 100 {
			t.Errorf("%s: %v messages, p50 %v µs, p99 %v µs", name, r.Messages, r.P50, r.P99)
		}
		l.Close()
		<-served
	}
}

func TestThePaceIsThatOfABusyServer(t *testing.T) {
	s, err := newSetup("B")
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range kits(t) {
		p := &plan{b: &bench{kit: k, time: 200 * time.Millisecond}}
		w := workload{mode: server.Echo, load: server.Echo, size: 64, conns: 5, depth: 1, share: .5}
		w.rate = 200 // that of the run before
		if got, err := p.pace(t.Context(), w, s); err != nil || got < 2*w.rate {
			t.Errorf("%s: half of what the server can do is %v messages/s, after it was sent %v: %v", name, got, w.rate, err)
		}
	}
}

func TestStepsThatAreTooSteep(t *testing.T) {
	even := []float64{1, 1, 1, 1, 1, 1, 1}
	for _, test := range []struct {
		name    string
		c, base []float64
		want    []int
	}{
		{"flat", even, nil, nil},
		{"doubling all the time", []float64{1, 2, 4, 8, 16}, nil, nil},
		{"turning from flat to doubling", []float64{1, 1, 1.3, 2.2, 4, 8}, nil, nil},
		{"an edge", []float64{1, 1, 1, 3, 3, 3, 3}, even, []int{3}},
		{"the machine's edge", []float64{1, 1, 1, 3, 3, 3, 3}, []float64{1, 1, 1, 2.5, 2.5, 2.5, 2.5}, nil},
		{"an edge at the end", []float64{1, 2, 4, 8, 30}, nil, []int{4}},
		{"what failed is compared with nothing", []float64{1, 0, 3, 3}, nil, nil},
	} {
		x := []float64{1, 2, 4, 8, 16, 32, 64}
		if got := steps(x, test.c, test.base); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
	if got := steps([]float64{1, 2, 1000}, []float64{1, 1, 9}, nil); got != nil {
		t.Errorf("more than twice as much was taken for a step: %v", got)
	}
}

func TestQuotedFiguresAreOfWorkloadsThatExist(t *testing.T) {
	exists := map[string]bool{}
	for _, w := range workloads() {
		exists["A "+w.name], exists["B "+w.name] = true, true
	}
	for key := range quoted {
		if !exists[key] {
			t.Errorf("%q", key)
		}
	}
}

func TestResultsAreReadPrintedAndDrawn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "results")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	j := &journal{file: f}
	j.write(map[string]any{"machine": "one of ours"})
	for _, c := range contenders {
		for rep := range 3 {
			j.add(record{Setup: "A", Workload: "stream 1000000 of 9B", Group: "many", Unit: "µs/msg", Server: c.name, Rep: rep, Cost: float64(len(c.name) + rep)})
		}
	}
	j.add(record{Setup: "A", Workload: "stream 1000000 of 9B", Group: "many", Server: "events", Error: "broken"})
	for i, cost := range []float64{1, 1, 1, 12.3, 12.3} {
		j.add(record{Setup: "A", Workload: fmt.Sprintf("grow to %d bytes", 1<<i), Group: groupSizes, Server: "handler", Cost: cost})
	}
	j.add(record{Setup: "A", Workload: "tail", Group: groupTail, Server: yardstick, Cost: 1, P99: 1, P999: 77})
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	records, err := load(file)
	if err != nil || len(records) != len(j.records) {
		t.Fatal(len(records), err)
	}
	rows := summarize(records, yardstick)
	var out bytes.Buffer
	printAll(&out, rows, yardstick)
	printRow(&out, rows[0])
	for _, want := range []string{"gnet*", "346", "1.00", "broken", "!", "12.3<", "77.0"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	dir := t.TempDir()
	if err := drawAll(dir, rows, yardstick); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"a-many.svg": "netpoll", "a-grow-sizes.svg": "handler"} {
		svg, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || !bytes.Contains(svg, []byte(want)) {
			t.Error(file, len(svg), err)
		}
	}
}
