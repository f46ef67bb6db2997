package leakcheck

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// helperEnv, in the environment of this test binary, makes it a helper that
// does to the process what the variable names; see TestHelper.
const helperEnv = "SOCKHUB_LEAKCHECK_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		patience = 500 * time.Millisecond
	}
	Main(m)
}

// kept holds what the helper leaks, out of reach of the garbage collector.
var kept []any

// TestHelper is the body of the helper process, and does nothing elsewhere.
func TestHelper(t *testing.T) {
	switch what := os.Getenv(helperEnv); what {
	case "":
		t.Skip("runs in a helper process only")
	case "nothing":
	case "poller", "socket":
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if what == "poller" {
			ln.Close()
		}
		kept = append(kept, ln)
	case "signal":
		c := make(chan os.Signal, 1)
		signal.Notify(c, os.Interrupt)
		signal.Stop(c)
	case "late":
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			<-time.After(patience / 5)
			r.Close()
			w.Close()
		}()
	case "goroutine", "failure":
		go leakyFunction(make(chan int))
		if what == "failure" {
			t.Fatal("the helper fails")
		}
	case "pipe":
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
		kept = append(kept, r)
	default:
		t.Fatalf("unknown kind of helper %q", what)
	}
}

func leakyFunction(c chan int) { <-c }

func TestMainFailsThePackageOnLeaksAlone(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Skip(err)
	}
	tests := []struct {
		name, helper string
		args         []string
		linux        bool   // the others cannot see it
		code         int    // that the helper exits with
		want         string // in its output
		not          string // not in its output
	}{
		{name: "nothing left", helper: "nothing", not: "leakcheck:"},
		{name: "runtime poller started by a test", helper: "poller", not: "leakcheck:"},
		{name: "goroutine of os/signal", helper: "signal", not: "leakcheck:"},
		{name: "ends after the tests", helper: "late", not: "leakcheck:"},
		{name: "goroutine", helper: "goroutine", code: 1, want: "leakyFunction"},
		{name: "socket", helper: "socket", linux: true, code: 1, want: "-> socket:["},
		{name: "pipe", helper: "pipe", linux: true, code: 1, want: "left 0 goroutines and 1 file descriptors"},
		{name: "failing tests are not looked at", helper: "failure", code: 1, want: "the helper fails", not: "leakcheck:"},
		// No fuzz test has this name: the flag is enough.
		{name: "fuzzing is not looked at", helper: "goroutine", args: []string{"-test.fuzz=^FuzzNone$", "-test.fuzzcachedir=" + t.TempDir()}, not: "leakcheck:"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.linux && runtime.GOOS != "linux" {
				t.Skip("descriptors are compared on Linux only")
			}
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), exe, append(tt.args, "-test.run=^TestHelper$")...)
			cmd.Env = append(os.Environ(), helperEnv+"="+tt.helper)
			out, err := cmd.CombinedOutput()
			if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
				t.Skipf("cannot run a helper process here: %v", err)
			}
			if got := cmd.ProcessState.ExitCode(); got != tt.code {
				t.Errorf("exit code %d, want %d", got, tt.code)
			}
			if !bytes.Contains(out, []byte(tt.want)) {
				t.Errorf("output lacks %q", tt.want)
			}
			if tt.not != "" && bytes.Contains(out, []byte(tt.not)) {
				t.Errorf("output has %q", tt.not)
			}
			if t.Failed() {
				t.Logf("output:\n%s", out)
			}
		})
	}
}

func TestSinceKnowsADescriptorByItsTargetToo(t *testing.T) {
	before := snapshot{fds: map[fd]struct{}{{3, "pipe:[1]"}: {}, {4, "pipe:[2]"}: {}}}
	now := snapshot{fds: map[fd]struct{}{{3, "pipe:[1]"}: {}, {4, "socket:[3]"}: {}}}
	want := map[fd]struct{}{{4, "socket:[3]"}: {}}
	if diff := cmp.Diff(want, now.since(before).fds, cmp.AllowUnexported(fd{})); diff != "" {
		t.Errorf("left over (-want +got):\n%s", diff)
	}
}

func TestParseStacks(t *testing.T) {
	const dump = "goroutine 1 [running]:\nmain.main()\n\tmain.go:3 +0x1\n\n" +
		"goroutine 23 [chan receive, 2 minutes, synctest bubble 1]:\nx.f()\n\tx.go:1 +0x1\ncreated by x.g in goroutine 1\n\tx.go:2 +0x2\n\n" +
		"...additional frames elided...\n"
	want := map[int]string{
		1:  "goroutine 1 [running]:\nmain.main()\n\tmain.go:3 +0x1",
		23: "goroutine 23 [chan receive, 2 minutes, synctest bubble 1]:\nx.f()\n\tx.go:1 +0x1\ncreated by x.g in goroutine 1\n\tx.go:2 +0x2",
	}
	if diff := cmp.Diff(want, parseStacks([]byte(dump))); diff != "" {
		t.Errorf("goroutines (-want +got):\n%s", diff)
	}
}

func TestStacksOfManyGoroutinesAreNotCut(t *testing.T) {
	const n = 1000
	stop := make(chan int)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	for range n {
		wg.Go(func() { <-stop })
	}
	if got := strings.Count(string(stacks()), "created by "); got < n {
		t.Errorf("stacks of %d goroutines, want at least %d", got, n)
	}
}

func TestHarmless(t *testing.T) {
	tests := []struct {
		creator string
		want    bool
	}{
		{"runtime.ensureSigM in goroutine 1", true},
		{"testing.(*T).Run in goroutine 1", true},
		{"os/signal.Notify.func1.1 in goroutine 5", true},
		{"runtime/trace.Start in goroutine 1", false},
		{"github.com/sockhub/sockhub.New in goroutine 7", false},
	}
	for _, tt := range tests {
		stack := "goroutine 9 [select]:\nx.f()\n\tx.go:1 +0x1\ncreated by " + tt.creator + "\n\tx.go:2 +0x2"
		if got := harmless(stack); got != tt.want {
			t.Errorf("created by %s: harmless = %v, want %v", tt.creator, got, tt.want)
		}
	}
	if !harmless("goroutine 1 [running]:\nmain.main()\n\tmain.go:3 +0x1") {
		t.Error("the main goroutine is not harmless")
	}
}
