//go:build linux

package sockhub_test

// Which system calls are made, as strace sees them.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
)

func init() {
	children["burst"] = childBurst
	children["large"] = childLarge
}

// straced runs a child under strace, and skips the test where that cannot be.
func straced(t *testing.T, role string, options ...string) (c *child, log func() []string) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("no strace here")
	}
	file := filepath.Join(t.TempDir(), "trace")
	if out, err := exec.Command(strace, "-o", file, "true").CombinedOutput(); err != nil {
		t.Skipf("strace cannot trace here: %v: %s", err, out)
	}
	c = startChild(t, role, append([]string{strace, "-f", "-y", "-s", "16", "-o", file}, options...)...)
	return c, func() []string {
		t.Helper()
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSpace(string(b)), "\n")
	}
}

func TestFailingAcceptsAreTriedAgain(t *testing.T) {
	for _, errno := range []string{"EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EPROTO"} {
		for _, kind := range []string{"tcp4 127.0.0.1:0", "unix"} {
			t.Run(errno+"/"+kind, func(t *testing.T) {
				t.Parallel()
				if kind == "unix" {
					network, addr := address(t, kind)
					kind = network + " " + addr
				}
				c, log := straced(t, "echo "+kind, "-e", "trace=accept4", "-e", "inject=accept4:error="+errno+":when=1..3")
				addr := c.line("LISTENING")
				nc, err := net.Dial(strings.Fields(kind)[0], addr)
				if err != nil {
					t.Fatal(err)
				}
				p := greet(t, nc, "p")
				p.send([]byte("hello"))
				if m := p.receive(); string(m) != "hello" {
					t.Errorf("got %q", m)
				}
				conns, failed := p.figures()
				p.Close()
				c.wait()
				injected, before := 0, 0 // in all, and before the connection was accepted
				for _, line := range log() {
					switch {
					case strings.Contains(line, "(INJECTED)"):
						injected++
					case strings.Contains(line, " = ") && !strings.Contains(line, " = -1 ") && !strings.Contains(line, " = ?"):
						before = injected
					}
				}
				// strace counts for each thread by itself, so that there may be
				// more than three, also after we have asked.
				if conns != 1 || before < 3 || failed < before || failed > injected {
					t.Errorf("%d connections; counted %d injected errors, of %d and %d more", conns, failed, before, injected-before)
				}
			})
		}
	}
}

// childBurst dials the network and address, sends 1,000 messages of 9 bytes in
// one run, and finishes.
func childBurst(args []string) error {
	return childDial(args, func(hub *sockhub.Hub, c *sockhub.Conn) error {
		n, err := c.SendMany(context.Background(), slices.Values(slices.Repeat([][]byte{[]byte("123456789")}, 1000)))
		if err != nil || n != 1000 {
			return fmt.Errorf("SendMany accepted %d, %v", n, err)
		}
		return nil
	})
}

// childLarge sends 20 messages of 64 KiB, each when the one before was
// answered.
func childLarge(args []string) error {
	return childDial(args, func(hub *sockhub.Hub, c *sockhub.Conn) error {
		for range 20 {
			if err := c.Send(context.Background(), make([]byte, 64<<10)); err != nil {
				return err
			}
			for answered := false; !answered; {
				b, ok := <-hub.Events()
				if !ok {
					return errors.New("the hub is closed")
				}
				for range b.Messages() {
					answered = true
				}
			}
		}
		return nil
	})
}

func childDial(args []string, talk func(*sockhub.Hub, *sockhub.Conn) error) error {
	hub, err := sockhub.New(context.Background(), nil)
	if err != nil {
		return err
	}
	defer hub.Close()
	c, err := hub.Dial(context.Background(), args[0], args[1], &sockhub.DialOptions{Mode: sockhub.Anonymous})
	if err != nil {
		return err
	}
	if err := talk(hub, c); err != nil {
		return err
	}
	return hub.Shutdown(context.Background())
}

// sendCall is a call that wrote to a socket: on one line, or begun in one and
// resumed in another, which says what came of it.
var sendCall = regexp.MustCompile(`(?:(?:write|writev|sendmsg|sendto)\((\d+)<(?:TCP|UNIX|socket)|<\.\.\. (?:write|writev|sendmsg|sendto) resumed>).*= (\d+)$`)

// sends are the sizes of the writes to sockets in a log of strace.
func sends(lines []string) (sizes []int) {
	unfinished := make(map[string]bool) // threads in a write to a socket
	for _, line := range lines {
		thread, _, _ := strings.Cut(line, " ")
		if strings.Contains(line, "<unfinished ...>") {
			unfinished[thread] = strings.Contains(line, "<socket:")
			continue
		}
		m := sendCall.FindStringSubmatch(line)
		if m == nil || strings.Contains(line, "resumed>") && !unfinished[thread] {
			continue
		}
		n, err := strconv.Atoi(m[2])
		if err != nil {
			panic(err)
		}
		sizes = append(sizes, n)
	}
	return sizes
}

// tracedSends runs a child that sends, and returns the sizes of its writes.
// answer is called with its connection.
func tracedSends(t *testing.T, role, kind string, answer func(*peer)) []int {
	t.Helper()
	network, addr := address(t, kind)
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, log := straced(t, fmt.Sprintf("%s %s %s", role, network, l.Addr()), "-e", "trace=write,writev,sendmsg,sendto")
	l.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(patience))
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	p := greet(t, nc, "")
	answer(p)
	p.Close()
	c.wait()
	return sends(log())
}

func TestSmallMessagesLeaveInFewSystemCalls(t *testing.T) {
	for _, kind := range []string{"tcp4", "unix"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			got := tracedSends(t, "burst", kind, func(p *peer) {
				for range 1000 {
					if m := p.receive(); string(m) != "123456789" {
						t.Fatalf("got %q", m)
					}
				}
				p.atEnd()
			})
			total := 0
			for _, n := range got {
				total += n
			}
			if total != 1000*17 || len(got) > 4 {
				t.Errorf("%d bytes in %d calls: %v; want %d in at most 4", total, len(got), got, 1000*17)
			}
		})
	}
}

func TestHeaderAndBodyLeaveInOneSystemCall(t *testing.T) {
	for _, kind := range []string{"tcp4", "unix"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			got := tracedSends(t, "large", kind, func(p *peer) {
				for range 20 {
					if m := p.receive(); len(m) != 64<<10 {
						t.Fatalf("got %d bytes", len(m))
					}
					p.send([]byte("next"))
				}
				if _, err := io.Copy(io.Discard, p); err != nil {
					t.Error(err)
				}
			})
			if want := slices.Repeat([]int{8 + 64<<10}, 20); !slices.Equal(got, want) {
				t.Errorf("the calls wrote %v", got)
			}
		})
	}
}
