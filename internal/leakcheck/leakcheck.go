// Package leakcheck fails a package's tests when they leave goroutines or file
// descriptors behind. A package uses it as its TestMain:
//
//	func TestMain(m *testing.M) { leakcheck.Main(m) }
//
// It compares the end of a test run with its beginning, not one test with the
// next: tests run in parallel, so that during the run nobody can tell whose a
// goroutine is. The stacks that it prints usually can.
package leakcheck

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// patience is how long leftovers may take to go away. It is a variable for
// this package's own tests.
var patience = 5 * time.Second

// Main runs the tests and exits with their code, or with 1 and a report on
// standard error when they passed and left something behind. When they failed
// it does not look: a test that stops half-way leaves things open, and the
// report would hide the failure.
//
// It does not look after a run with -test.fuzz either. The process is then a
// coordinator or a worker with pipes and shared memory of its own, and a worker
// may be stopped in the middle of an input.
func Main(m *testing.M) {
	// The runtime makes the descriptors of its poller when they are first
	// needed. Making it need them here puts them in the snapshot, so that no
	// kind of descriptor has to be excused afterwards: an epoll of our own
	// that was never closed is a leak like any other.
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
	before := take()
	code := m.Run()
	if code == 0 && !fuzzing() {
		if left := before.wait(patience); !left.empty() {
			left.report(os.Stderr)
			code = 1
		}
	}
	os.Exit(code)
}

// fuzzing reports whether the process fuzzes, or works for one that does. The
// flags are parsed by m.Run at the latest.
func fuzzing() bool {
	f := flag.Lookup("test.fuzz")
	return f != nil && f.Value.String() != ""
}

// A snapshot is what a process holds at one moment, by a key that is not used
// again for something else: goroutines by number, descriptors by number and
// target. (The kernel reuses the numbers of descriptors; sockets and pipes
// carry an inode number in their target.)
type snapshot struct {
	goroutines map[int]string // number to stack
	fds        map[fd]struct{}
}

// fd is an open descriptor and what it refers to, such as "socket:[4711]".
type fd struct {
	num    int
	target string
}

// take makes a snapshot of the calling process.
func take() snapshot {
	return snapshot{goroutines: parseStacks(stacks()), fds: openFDs()}
}

// wait returns what the process holds that it did not hold at s, as soon as
// that is nothing, or else when limit has passed.
//
// Polling with a sleep is right here, as it is not in a test. A goroutine that
// has signalled its end is still there until it returns, and so is one whose
// only remaining work is to return from a system call; the runtime tells nobody
// when it is gone, so there is nothing to wait on. The first look is at once,
// so a clean package pays nothing, and limit is paid only by one that fails.
//
// It does not run the garbage collector, which would close forgotten files
// and so hide that they were forgotten.
func (s snapshot) wait(limit time.Duration) snapshot {
	deadline := time.Now().Add(limit)
	for pause := time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		left := take().since(s)
		if left.empty() || !time.Now().Before(deadline) {
			return left
		}
		time.Sleep(pause)
	}
}

// since returns what is in s and not in before.
func (s snapshot) since(before snapshot) snapshot {
	maps.DeleteFunc(s.goroutines, func(n int, stack string) bool {
		_, old := before.goroutines[n]
		return old || harmless(stack)
	})
	maps.DeleteFunc(s.fds, func(d fd, _ struct{}) bool {
		_, old := before.fds[d]
		return old
	})
	return s
}

func (s snapshot) empty() bool { return len(s.goroutines)+len(s.fds) == 0 }

// report writes what is in s for a person to read.
func (s snapshot) report(w io.Writer) {
	fmt.Fprintf(w, "leakcheck: the tests passed, but left %d goroutines and %d file descriptors\n", len(s.goroutines), len(s.fds))
	for _, d := range slices.SortedFunc(maps.Keys(s.fds), func(a, b fd) int { return a.num - b.num }) {
		fmt.Fprintf(w, "leakcheck: file descriptor %d -> %s\n", d.num, d.target)
	}
	for _, n := range slices.Sorted(maps.Keys(s.goroutines)) {
		fmt.Fprintf(w, "\n%s\n", s.goroutines[n])
	}
}

// harmless reports whether a goroutine belongs to the runtime, the testing
// package, or to os/signal, which starts one at the first Notify and keeps it
// for the life of the process. Most of the runtime's do not show in a stack
// dump at all, unless GOTRACEBACK=system asks for them.
func harmless(stack string) bool {
	i := strings.LastIndex(stack, "\ncreated by ")
	if i < 0 {
		return true // the main goroutine, or one that the runtime made itself
	}
	creator := stack[i+len("\ncreated by "):]
	for _, p := range []string{"runtime.", "testing.", "os/signal."} {
		if strings.HasPrefix(creator, p) {
			return true
		}
	}
	return false
}

// stacks returns the stacks of all goroutines, in the format of a panic.
func stacks() []byte {
	buf := make([]byte, 64<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			return buf[:n]
		}
		buf = make([]byte, 2*len(buf)) // it was cut
	}
}

// parseStacks splits the output of runtime.Stack by goroutine. A paragraph
// without the usual first line is not a goroutine, and is passed over.
func parseStacks(dump []byte) map[int]string {
	all := make(map[int]string)
	for p := range bytes.SplitSeq(dump, []byte("\n\n")) {
		stack := string(bytes.TrimSpace(p))
		rest, ok := strings.CutPrefix(stack, "goroutine ")
		if !ok {
			continue
		}
		num, _, _ := strings.Cut(rest, " ")
		if n, err := strconv.Atoi(num); err == nil {
			all[n] = stack
		}
	}
	return all
}
