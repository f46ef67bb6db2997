package main

import (
	"bytes"
	"errors"
	"math"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestEndpoints(t *testing.T) {
	for _, tt := range []struct{ in, network, address, out string }{
		{"tcp://127.0.0.1:7000", "tcp", "127.0.0.1:7000", "tcp://127.0.0.1:7000"},
		{"tcp4://:0", "tcp4", ":0", "tcp4://:0"},
		{"tcp6://[::1]:7000", "tcp6", "[::1]:7000", "tcp6://[::1]:7000"},
		{"tcp:localhost:7000", "tcp", "localhost:7000", "tcp://localhost:7000"},
		{"localhost:7000", "tcp", "localhost:7000", "tcp://localhost:7000"},
		{":7000", "tcp", ":7000", "tcp://:7000"},
		{"[::1]:7000", "tcp", "[::1]:7000", "tcp://[::1]:7000"},
		{"udp://127.0.0.1:7000", "udp", "127.0.0.1:7000", "udp://127.0.0.1:7000"},
		{"unix:///run/hub.sock", "unix", "/run/hub.sock", "unix:///run/hub.sock"},
		{"unix:/run/hub.sock", "unix", "/run/hub.sock", "unix:///run/hub.sock"},
		{"unix:hub.sock", "unix", "hub.sock", "unix:hub.sock"},
		{"unix:@hub", "unix", "@hub", "unix:@hub"},
		{"@hub", "unix", "@hub", "unix:@hub"},
		{"./hub.sock", "unix", "./hub.sock", "unix:./hub.sock"},
		{"/run/hub:1", "unix", "/run/hub:1", "unix:///run/hub:1"},
		{"tls+tcp://example.org:443", "tcp", "example.org:443", "tls+tcp://example.org:443"},
		{"tls://example.org:443", "tcp", "example.org:443", "tls+tcp://example.org:443"},
		{"tls+unix:@hub", "unix", "@hub", "tls+unix:@hub"},
	} {
		got, err := parseEndpoint(tt.in)
		if err != nil || got.network != tt.network || got.address != tt.address || got.String() != tt.out {
			t.Errorf("%s: %+v (%s), %v", tt.in, got, got, err)
		}
		if again, err := parseEndpoint(got.String()); err != nil || again != got {
			t.Errorf("%s: parsed again: %+v, %v", tt.in, again, err)
		}
	}
	for _, in := range []string{"", "7000", "tcp://", "tcp://host", "unix:", "unix://", "http://host:80", "tls+udp://:1", "tls+unixgram:x"} {
		if got, err := parseEndpoint(in); err == nil {
			t.Errorf("%q: %+v", in, got)
		}
	}
}

func TestByteSizes(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "7": 7, "4k": 4 << 10, "1M": 1 << 20, "2GiB": 2 << 30, "3KB": 3 << 10, "64B": 64} {
		var b byteSize
		if err := b.Set(in); err != nil || int64(b) != want {
			t.Errorf("%s: %d, %v", in, b, err)
		}
	}
	for _, in := range []string{"", "k", "-1", "1T", "1kM", "9999999999G", "1.5M"} {
		var b byteSize
		if err := b.Set(in); err == nil {
			t.Errorf("%q: %d", in, b)
		}
	}
	for n, want := range map[byteSize]string{0: "0", 1000: "1000", 1 << 10: "1k", 64 << 20: "64M", 5 << 40: "5120G"} {
		if got := n.String(); got != want {
			t.Errorf("%d: %s", int64(n), got)
		}
	}
}

// TestHistogram: every duration is found again to within one part in 128.
func TestHistogram(t *testing.T) {
	for d := time.Duration(1); d > 0 && d < math.MaxInt64/3; d = d*3/2 + 1 {
		if got := middle(bucketOf(uint64(d))); math.Abs(float64(got-d)) > float64(d)/128 {
			t.Errorf("%d became %d", d, got)
		}
	}
	if b := bucketOf(math.MaxInt64); b >= buckets {
		t.Errorf("bucket %d of %d", b, buckets)
	}
	h := new(histogram)
	if got := h.quantiles(0.5); got[0] != 0 {
		t.Errorf("of nothing: %v", got)
	}
	for i := range 1000 {
		h.add(time.Duration(i+1) * time.Millisecond)
	}
	for i, got := range h.quantiles(0.5, 0.99, 1) {
		want := []time.Duration{500, 990, 1000}[i] * time.Millisecond
		if (got - want).Abs() > want/100 {
			t.Errorf("%v instead of %v", got, want)
		}
	}
}

func TestMicros(t *testing.T) {
	for us, want := range map[float64]string{0: "0 µs", 12.34: "12.3 µs", 999: "999 µs", 1500: "1.5 ms", 2.5e6: "2.5 s"} {
		if got := micros(us); got != want {
			t.Errorf("%s instead of %s", got, want)
		}
	}
}

// gate is a writer that waits until it is let.
type gate struct {
	open chan struct{}
	bytes.Buffer
	writes int
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.open
	g.writes++
	return g.Buffer.Write(p)
}

// TestOutputGathers what is written while a write is under way, and keeps each
// whole.
func TestOutputGathers(t *testing.T) {
	g := &gate{open: make(chan struct{})}
	o := newOutput(g)
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			for range 100 {
				o.Write([]byte(strings.Repeat(string(rune('0'+i)), 10) + "\n"))
			}
		})
	}
	wg.Wait()
	close(g.open)
	if err := o.close(); err != nil {
		t.Fatal(err)
	}
	if g.writes > 2 {
		t.Errorf("%d writes", g.writes)
	}
	lines := strings.Split(strings.TrimSpace(g.String()), "\n")
	if len(lines) != 1000 {
		t.Errorf("%d lines", len(lines))
	}
	for _, line := range lines {
		if strings.Trim(line, line[:1]) != "" || len(line) != 10 {
			t.Fatalf("a line is %q", line)
		}
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, os.ErrClosed }

// TestOutputThatFails holds nobody up, and says so in the end.
func TestOutputThatFails(t *testing.T) {
	o := newOutput(broken{})
	for range 10 {
		o.Write(make([]byte, maxGathered))
	}
	<-o.failed
	if err := o.close(); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}

func TestColoursAreForTerminalsAlone(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, stream := range []any{null, &bytes.Buffer{}, nil} {
		if isTerminal(stream) || coloursFor(stream) != (colours{}) {
			t.Errorf("%T is taken for a terminal", stream)
		}
	}
}
