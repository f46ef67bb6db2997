package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"
)

// roles are what a further process can be: see runRole. Each has the arguments
// behind its name, says on standard output what its row wants to know, and ends
// when quit is closed, which happens at the end of its input: so none outlives
// its row, even one that was killed.
var roles = map[string]func(args []string, quit <-chan struct{}) error{}

func runRole(name string, args []string) int {
	quit := make(chan struct{})
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			goes <- struct{}{}
		}
		close(quit)
		time.Sleep(20 * time.Second) // a role that does not hear ends all the same
		os.Exit(3)
	}()
	role := roles[name]
	if role == nil {
		fmt.Fprintln(os.Stderr, "prove: no such role:", name)
		return 2
	}
	if err := role(args, quit); err != nil {
		fmt.Fprintf(os.Stderr, "prove: %s: %v\n", name, err)
		return 1
	}
	return 0
}

// peer is such a process.
type peer struct {
	p     *proof
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines chan string // what it says; closed at its end
}

// start starts a peer. wrap, if any, is a command that runs it.
func (p *proof) start(wrap []string, role string, args ...any) *peer {
	exe, err := os.Executable()
	p.must(err)
	line := append(append([]string{}, wrap...), exe, "-as", role)
	for _, a := range args {
		line = append(line, fmt.Sprint(a))
	}
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	p.must(err)
	stdout, err := cmd.StdoutPipe()
	p.must(err)
	p.must(cmd.Start())
	c := &peer{p, role, cmd, stdin, make(chan string, 100)}
	go func() {
		defer close(c.lines)
		for in := bufio.NewScanner(stdout); in.Scan(); {
			c.lines <- in.Text()
		}
	}()
	return c
}

// line waits for the peer's next line that begins with the word, and returns
// the rest. Other lines are shown.
func (c *peer) line(word string, limit time.Duration) string {
	rest, ok := c.lineWithin(word, limit)
	if !ok {
		c.p.fail("%s did not say %s within %v", c.name, word, limit)
		panic(stop{})
	}
	return rest
}

// lineWithin is line where it may be that none comes.
func (c *peer) lineWithin(word string, limit time.Duration) (rest string, ok bool) {
	late := time.After(limit)
	for {
		select {
		case text, ok := <-c.lines:
			if !ok {
				c.p.fail("%s ended instead of saying %s", c.name, word)
				panic(stop{})
			}
			if rest, ok := strings.CutPrefix(text, word); ok {
				return strings.TrimSpace(rest), true
			}
			c.p.say("%s: %s", c.name, text)
		case <-late:
			return "", false
		}
	}
}

// end closes the peer's input and waits for it.
func (c *peer) end() error {
	c.stdin.Close()
	for range c.lines {
	}
	return c.cmd.Wait()
}

// dialFrom connects from an address of this machine.
func dialFrom(ctx context.Context, network, from, to string) (net.Conn, error) {
	var d net.Dialer
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	return d.DialContext(ctx, network, to)
}

// frame is a message as it is sent.
func frame(msg string) []byte {
	return append(binary.LittleEndian.AppendUint64(nil, uint64(len(msg))), msg...)
}

// receive reads one message of at most len(buf) bytes.
func receive(r io.Reader, buf []byte) ([]byte, error) {
	var header [8]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint64(header[:])
	if n > uint64(len(buf)) {
		return nil, fmt.Errorf("a message of %d bytes", n)
	}
	_, err := io.ReadFull(r, buf[:n])
	return buf[:n], err
}

// greet gives a name and waits for OK.
func greet(c net.Conn, name string) error {
	if _, err := c.Write(frame(name)); err != nil {
		return err
	}
	var buf [8]byte
	msg, err := receive(c, buf[:])
	if err == nil && string(msg) != "OK" {
		err = errors.New("the answer to the name is " + string(msg))
	}
	return err
}

// goes gets a value for each line that this process reads.
var goes = make(chan struct{}, 10)

// awaitGo waits for a line from the row.
func awaitGo(quit <-chan struct{}) {
	select {
	case <-goes:
	case <-quit:
	}
}
