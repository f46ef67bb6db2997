package sockhub_test

// Tests that need another process run this test binary as one.

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
)

// childEnv, in the environment of this test binary, names what it is to do as
// a child process of a test; see TestChild.
const childEnv = "SOCKHUB_TEST_CHILD"

// children are the programs that this test binary can be.
var children = map[string]func(args []string) error{
	"echo":    childEcho,
	"hold":    childHold,
	"stutter": childStutter,
}

// TestChild is the body of a child process, and does nothing elsewhere.
func TestChild(t *testing.T) {
	role, ok := os.LookupEnv(childEnv)
	if !ok {
		return
	}
	words := strings.Split(role, " ")
	// What hangs ends with its parent, which closes our input then.
	if err := children[words[0]](words[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// child is a running child process.
type child struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Scanner
	done  chan struct{} // closed when it has ended
	err   error         // of its end
}

// startChild runs this test binary as the given child, under the command given
// by wrap, if any. It ends at the latest with the test.
func startChild(t *testing.T, role string, wrap ...string) *child {
	t.Helper()
	return startChildWith(t, role, nil, wrap...)
}

// startChildWith is startChild of a child that inherits files, as descriptors
// from 3 on.
func startChildWith(t *testing.T, role string, files []*os.File, wrap ...string) *child {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Skip(err)
	}
	args := append(wrap, exe, "-test.run=^TestChild$")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	// The race detector sleeps at the end of a process, unless told not to.
	cmd.Env = append(os.Environ(), childEnv+"="+role, "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, files
	c := &child{t: t, cmd: cmd, done: make(chan struct{})}
	if c.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	// A pipe of our own: exec's is closed by Wait.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = w
	c.out = bufio.NewScanner(r)
	err = cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		cancel()
		t.Skipf("cannot run a child process here: %v", err)
	}
	go func() {
		defer close(c.done)
		c.err = cmd.Wait()
	}()
	t.Cleanup(func() {
		c.stdin.Close()
		select {
		case <-c.done:
		case <-time.After(5 * time.Second):
		}
		cancel()
		<-c.done
		r.Close()
	})
	return c
}

// line reads the child's next line, which begins with the word, and returns
// the rest of it.
func (c *child) line(word string) string {
	c.t.Helper()
	if !c.out.Scan() {
		<-c.done
		c.t.Fatalf("the child ended (%v) instead of saying %s", c.err, word)
	}
	rest, ok := strings.CutPrefix(c.out.Text(), word)
	if !ok {
		c.t.Fatalf("the child says %q instead of %s", c.out.Text(), word)
	}
	return strings.TrimSpace(rest)
}

// wait waits for the child's end.
func (c *child) wait() {
	c.t.Helper()
	c.stdin.Close()
	<-c.done
	if c.err != nil {
		c.t.Fatalf("the child: %v", c.err)
	}
}

// childEcho is a hub that listens on the given network and address, echoes
// named peers until its input ends, and answers the message STATS with its
// figures of accepting. A third argument makes it share its port.
func childEcho(args []string) error {
	hub, err := sockhub.New(context.Background(), &sockhub.Options{MaxConns: 10000})
	if err != nil {
		return err
	}
	defer hub.Close()
	o := &sockhub.ListenOptions{ReusePort: len(args) > 2}
	l, err := hub.Listen(context.Background(), args[0], args[1], o)
	if err != nil {
		return err
	}
	fmt.Println("LISTENING", l.Addr())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		hub.Close()
	}()
	for b := range hub.Events() {
		for c, m := range b.Messages() {
			if string(m) == "STATS" {
				s := hub.Stats()
				m = fmt.Appendf(nil, "%d %d", s.Conns, s.AcceptErrors)
			}
			c.TrySend(m)
		}
	}
	return nil
}

// childHold dials the given network and address under the given name, says
// so, and holds the connection until it is killed or its input ends.
func childHold(args []string) error {
	hub, err := sockhub.New(context.Background(), nil)
	if err != nil {
		return err
	}
	defer hub.Close()
	c, err := hub.Dial(context.Background(), args[0], args[1], &sockhub.DialOptions{Name: args[2]})
	if err != nil {
		return err
	}
	if err := c.Send(context.Background(), []byte("here")); err != nil {
		return err
	}
	fmt.Println("HOLDING")
	io.Copy(io.Discard, os.Stdin)
	return errors.New("not killed")
}
