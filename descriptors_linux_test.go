package sockhub_test

// A process that has no more descriptors.

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func init() { children["starve"] = childStarve }

// childStarve is childEcho in a process that may open few descriptors more than
// it has: args[0].
func childStarve(args []string) error {
	more, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return err
	}
	r.Cur = uint64(len(entries) + more)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return err
	}
	return childEcho(args[1:])
}

// figures asks a childEcho how many connections it has, and how many accepts
// have failed.
func (p *peer) figures() (conns, failed int) {
	p.t.Helper()
	p.send([]byte("STATS"))
	if _, err := fmt.Sscan(string(p.receive()), &conns, &failed); err != nil {
		p.t.Fatal(err)
	}
	return conns, failed
}

func TestProcessWithoutDescriptorsGoesOnServing(t *testing.T) {
	t.Parallel()
	const more, crowd = 12, 40
	c := startChild(t, fmt.Sprintf("starve %d tcp4 127.0.0.1:0", more))
	addr := c.line("LISTENING")
	connect := func() net.Conn {
		nc, err := net.Dial("tcp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		return nc
	}
	var old []*peer
	for i := range 3 {
		old = append(old, greet(t, connect(), fmt.Sprintf("old-%d", i)))
	}
	var waiting []net.Conn // the kernel has accepted them, the child has not
	for range crowd {
		waiting = append(waiting, connect())
	}
	for failed := 0; failed == 0; _, failed = old[0].figures() {
	}
	for k := range 50 {
		for _, p := range old {
			m := body(1, k, 1000*k)
			p.send(m)
			if string(p.receive()) != string(m) {
				t.Fatal("the echo differs")
			}
		}
	}
	// It has hung up on nobody: those that wait get their turn when others go.
	for _, nc := range waiting[:crowd-5] {
		nc.Close()
	}
	for i, nc := range waiting[crowd-5:] {
		p := greet(t, nc, fmt.Sprintf("late-%d", i))
		p.send([]byte("hello"))
		if m := p.receive(); string(m) != "hello" {
			t.Errorf("got %q", m)
		}
	}
	if conns, failed := old[0].figures(); conns != 8 || failed > 100 {
		t.Errorf("%d connections, want 8; %d failed accepts", conns, failed)
	}
	c.wait()
}
