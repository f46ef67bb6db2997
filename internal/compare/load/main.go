//go:build linux

// Command load does what c/load.c does, where there is no C compiler, and what
// that does not: TLS, and several servers. It drives
// a server, checks every byte, and prints one line of JSON. The flags, the modes
// and the bytes are the same. It needs more CPU time itself, so that servers wait
// for it and show a little more time for each message; it is fair to all of them.
package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 30 * time.Second // beyond the measured time, for what must still come

var (
	mode   = flag.String("mode", "echo", "")
	addr   = flag.String("addr", "", "")
	conns  = flag.Int("conns", 1, "")
	size   = flag.Int("size", 64, "")
	depth  = flag.Int("depth", 1, "")
	count  = flag.Int("count", 100000, "")
	flood  = flag.Int("flood", 0, "")
	rate   = flag.Float64("rate", 0, "")
	from   = flag.String("from", "", "")
	warm   = flag.Float64("warm", 0.3, "")
	dur    = flag.Float64("time", 1, "")
	pids   = flag.String("pid", "", "of the servers, separated by commas")
	secret = flag.Bool("tls", false, "")
)

// Result is what is printed.
type Result struct {
	Messages float64 `json:"messages"`
	Seconds  float64 `json:"seconds"`
	Bytes    uint64  `json:"bytes"`
	CPU      float64 `json:"cpu"`
	LoadCPU  float64 `json:"load_cpu"`
	P50      float64 `json:"p50_us"`
	P99      float64 `json:"p99_us"`
	P999     float64 `json:"p999_us"`
	Mistakes uint64  `json:"mistakes"`
	Mistake  string  `json:"mistake"`
	Lacking  int     `json:"lacking"`
}

func main() {
	flag.Parse()
	l := &load{}
	addrs := strings.Split(*addr, ",")
	for i := range *conns {
		c, err := dial(i, addrs[i%len(addrs)])
		if err == nil && *mode != "http" {
			err = c.ping()
		}
		check(err)
		l.conns = append(l.conns, c)
	}
	switch *mode {
	case "idle":
		fmt.Println("ready")
		for b := make([]byte, 64); ; {
			if _, err := os.Stdin.Read(b); err != nil {
				return
			}
		}
	case "echo", "http":
		if *rate > 0 {
			l.paced()
		} else {
			l.steady()
		}
	default:
		l.rounds()
	}
	check(json.NewEncoder(os.Stdout).Encode(l.result))
	if l.result.Mistakes > 0 {
		os.Exit(1)
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// ---- figures ----

var (
	measuring atomic.Bool
	mistakes  atomic.Uint64
	mistake   atomic.Pointer[string] // the first
)

func wrong(c *conn, what string) {
	s := fmt.Sprintf("connection %d, message %d: %s", c.index, c.got.Load(), what)
	mistake.CompareAndSwap(nil, &s)
	if mistakes.Add(1) > 1000 {
		check(errors.New(s + "; and many more"))
	}
}

// serverCPU is the CPU time of the servers.
func serverCPU() (sum float64) {
	for s := range strings.SplitSeq(*pids, ",") {
		pid, err := strconv.Atoi(s)
		check(err)
		sum += cpu(pid)
	}
	return sum
}

// cpu is the CPU time of a process, or of this one for 0.
func cpu(pid int) float64 {
	id := int32(unix.CLOCK_PROCESS_CPUTIME_ID)
	if pid != 0 {
		id = ^int32(pid)<<3 | 2 // as clock_getcpuclockid(3) makes it
	}
	var t unix.Timespec
	check(unix.ClockGettime(id, &t))
	return float64(t.Nano()) / 1e9
}

type load struct {
	conns  []*conn
	result Result

	// At the beginning of the measured time.
	began       time.Time
	server, own float64
	msgs, bytes uint64
}

func (l *load) totals() (msgs, bytes uint64) {
	for _, c := range l.conns {
		msgs += c.got.Load()
		bytes += c.bytes.Load()
	}
	return msgs, bytes
}

func (l *load) begin() {
	l.msgs, l.bytes = l.totals()
	for _, c := range l.conns {
		c.before = c.got.Load()
	}
	l.began, l.own = time.Now(), cpu(0)
	if *pids != "" {
		l.server = serverCPU()
	}
	measuring.Store(true)
}

// lacking counts the connections that got no whole message in the measured time.
func (l *load) lacking() (n int) {
	for _, c := range l.conns {
		if c.got.Load() == c.before {
			n++
		}
	}
	return n
}

func (l *load) end(latencies []time.Duration) {
	r := &l.result
	measuring.Store(false)
	if *pids != "" {
		r.CPU = serverCPU() - l.server
	}
	r.LoadCPU = cpu(0) - l.own
	r.Seconds = time.Since(l.began).Seconds()
	msgs, bytes := l.totals()
	r.Messages, r.Bytes = float64(msgs-l.msgs), bytes-l.bytes
	if *size >= 65536 {
		r.Messages = max(r.Messages, float64(r.Bytes)/float64(*size+8))
	}
	r.Lacking = l.lacking()
	slices.Sort(latencies)
	if n := len(latencies); n > 0 {
		r.P50 = float64(latencies[n/2]) / 1e3
		r.P99 = float64(latencies[n*99/100]) / 1e3
		r.P999 = float64(latencies[n*999/1000]) / 1e3
	}
	if r.Mistakes = mistakes.Load(); r.Mistakes > 0 {
		r.Mistake = *mistake.Load()
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// steady measures connections that are always busy.
func (l *load) steady() {
	for _, c := range l.conns {
		if *mode == "http" {
			go func() { check(c.requests()) }()
		} else {
			go func() { check(c.echo()) }()
		}
	}
	time.Sleep(seconds(*warm))
	l.await(0)
	l.begin()
	time.Sleep(seconds(*dur))
	l.await(3 * uint64(*conns)) // what lies in sockets' buffers at the ends is then a small part
	l.end(nil)
	l.percentiles()
}

// percentiles are those of what the connections have counted.
func (l *load) percentiles() {
	var all []time.Duration
	for _, c := range l.conns {
		c.mu.Lock()
		all = append(all, c.latencies...)
		c.mu.Unlock()
	}
	p := &load{}
	p.end(all)
	l.result.P50, l.result.P99, l.result.P999 = p.result.P50, p.result.P99, p.result.P999
}

// await returns when every connection has got something and all together have
// got enough, or when it takes too long.
func (l *load) await(enough uint64) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if msgs, _ := l.totals(); l.lacking() == 0 && msgs-l.msgs >= enough {
			return
		}
	}
}

// rounds measures from between two rounds to between two others.
func (l *load) rounds() {
	time.AfterFunc(seconds(*warm+*dur)+patience, func() { check(errors.New("a round does not end")) })
	var took []time.Duration
	start := time.Now()
	for measured := false; ; {
		if t := time.Since(start); !measured && t >= seconds(*warm) {
			measured = true
			l.begin()
			took = nil
		} else if measured && time.Since(l.began) >= seconds(*dur) {
			break
		}
		began := time.Now()
		var wg sync.WaitGroup
		for _, c := range l.conns {
			wg.Go(func() { check(c.round()) })
		}
		wg.Wait()
		took = append(took, time.Since(began))
	}
	l.end(took)
}

// dial connects.
func dial(index int, address string) (*conn, error) {
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	var d net.Dialer
	if *from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(*from)}
		d.Control = func(_, _ string, c syscall.RawConn) error { // see come_from in c/load.c
			return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1) })
		}
	}
	nc, err := d.Dial(network, address)
	if err != nil {
		return nil, err
	}
	if t, ok := nc.(*net.TCPConn); ok {
		// A reset at the end: thousands of connections in TIME_WAIT would be in
		// the way of the next run.
		t.SetLinger(0)
	}
	if *secret {
		nc = tls.Client(nc, &tls.Config{InsecureSkipVerify: true}) // what it costs is the question, not who it is
	}
	return newConn(nc, index), nil
}
