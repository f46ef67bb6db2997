package main

import (
	"encoding/json"
	"io"
	"strings"
	"testing"
)

func TestBenchMeasures(t *testing.T) {
	t.Parallel()
	l := startListening(t, 1, "-print", "none", "-echo", "tcp://127.0.0.1:0")
	for _, args := range [][]string{{"-depth", "4"}, {"-size", "3"}, {"-rate", "2000"}, {"-size", "0"}, {"-size", "100k", "-conns", "2"}} {
		out, errs, code := finished(t, "", append([]string{"bench", "-json", "-conns", "5", "-duration", "200ms", l.at[0]}, args...)...)
		var r result
		if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 {
			t.Fatalf("%q: exit status %d, %q, %s", args, code, out, errs)
		}
		if r.Messages == 0 || r.PerSec <= 0 || r.Latency.P50 <= 0 || r.Latency.P50 > r.Latency.P99 || r.Latency.P999 > r.Latency.Max || r.Errors.Total > 0 {
			t.Errorf("%q: %s", args, out)
		}
		if args[0] == "-rate" && r.Messages != 400 {
			t.Errorf("%d messages, where 400 were due", r.Messages)
		}
	}
	out, errs, code := finished(t, "", "bench", "-conns", "2", "-duration", "50ms", l.at[0])
	if code != 0 || !strings.Contains(out, "p99.9 ") || !strings.Contains(out, "errors    0") {
		t.Errorf("exit status %d, %q, %s", code, out, errs)
	}
}

// TestBenchFails when nobody is there, and when the other side does not echo.
func TestBenchFails(t *testing.T) {
	t.Parallel()
	_, errs, code := finished(t, "", "bench", "unix://"+t.TempDir()+"/none")
	if code != 1 || !strings.Contains(errs, "connecting") {
		t.Errorf("exit status %d, %s", code, errs)
	}
	silent := startListening(t, 1, "-print", "none", "-no-stdin", "tcp://127.0.0.1:0")
	out, errs, code := finished(t, "", "bench", "-conns", "2", "-timeout", "100ms", "-duration", "100ms", silent.at[0])
	if code != 1 || !strings.Contains(errs, "nothing came back") && !strings.Contains(errs, "errors") || !strings.Contains(out, "no answer 2") {
		t.Errorf("exit status %d, %s%s", code, out, errs)
	}
	other := startListening(t, 1, "-print", "none", "-answer", "tcp://127.0.0.1:0")
	io.WriteString(other.stdin, "what?\n")
	if _, errs, code := finished(t, "", "bench", "-conns", "1", "-timeout", "100ms", "-duration", "100ms", other.at[0]); code != 1 || !strings.Contains(errs, "does the other side echo?") {
		t.Errorf("exit status %d, %s", code, errs)
	}
}
