package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// setup says what runs where.
type setup struct {
	name      string
	procs     int // GOMAXPROCS of the server
	srv, load int // CPUs; -1: any
}

func newSetup(name string) (setup, error) {
	switch name {
	case "A":
		srv, load, err := twoCPUs()
		return setup{"A", 1, srv, load}, err
	case "B":
		return setup{"B", 2, -1, -1}, nil
	}
	return setup{}, fmt.Errorf("no setup %q: A pins the server and the load to a CPU each, B pins nothing", name)
}

// child is a process that ends when its input does, and prints lines.
type child struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Scanner
	stderr bytes.Buffer // safe to read after wait
}

// startChild starts a program on a CPU. ctx ends it.
func startChild(ctx context.Context, cpu int, env []string, name string, args ...string) (*child, error) {
	c := &child{cmd: exec.CommandContext(ctx, name, args...)}
	c.cmd.Env = append(os.Environ(), env...)
	c.cmd.Stderr = &c.stderr
	c.cmd.WaitDelay = time.Second
	in, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.in, c.out = in, bufio.NewScanner(out)
	return c, startOn(cpu, c.cmd)
}

// line is what it prints next.
func (c *child) line() (string, error) {
	if c.out.Scan() {
		return c.out.Text(), nil
	}
	return "", c.end(errors.New("ended without an answer"))
}

// end lets it end, by itself or not, and returns err with what it complained of.
func (c *child) end(err error) error {
	c.in.Close()
	e := c.cmd.Wait()
	if err == nil {
		err = e
	}
	if msg := strings.TrimSpace(c.stderr.String()); msg != "" {
		err = errors.Join(err, fmt.Errorf("%s: %s", filepath.Base(c.cmd.Path), msg[:min(len(msg), 300)]))
	}
	return err
}

// serve starts the servers of a workload, mostly one, and returns where they
// listen, in the form that loads understand.
func (k *kit) serve(ctx context.Context, c contender, w workload, s setup) (srvs []*child, addr string, err error) {
	var ports []string
	at := ""
	for range max(1, w.procs) {
		srv, port, err := k.serveOne(ctx, c, w, s, at)
		if err != nil {
			return nil, "", errors.Join(err, endAll(srvs))
		}
		srvs = append(srvs, srv)
		if w.onePort {
			at = port
		}
		if at == "" || len(ports) == 0 {
			ports = append(ports, port)
		}
	}
	return srvs, strings.Join(ports, ","), nil
}

func endAll(srvs []*child) (err error) {
	for _, srv := range srvs {
		err = errors.Join(err, srv.end(nil))
	}
	return err
}

// serveOne starts a server at an address, or anywhere for "".
func (k *kit) serveOne(ctx context.Context, c contender, w workload, s setup, addr string) (srv *child, at string, err error) {
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	if w.unix {
		addr = "unix:" + filepath.Join(k.dir, "socket")
		os.Remove(filepath.Join(k.dir, "socket")) // of a server that was killed
	}
	args := append([]string{"-mode", w.mode, "-addr", addr}, c.args...)
	if w.tls {
		args = append(args, "-tls")
	}
	if w.onePort {
		args = append(args, "-reuseport")
	}
	srv, err = startChild(ctx, s.srv, []string{fmt.Sprint("GOMAXPROCS=", s.procs)}, k.path(c.program), args...)
	if err != nil {
		return nil, "", err
	}
	text, err := srv.line()
	if err != nil {
		return nil, "", err
	}
	at, ok := strings.CutPrefix(text, "ready ")
	switch {
	case !ok:
		return nil, "", srv.end(fmt.Errorf("the server said %q", text))
	case w.unix:
		at = addr
	}
	return srv, at, nil
}

// free makes a server return the memory that it does not use.
func (c *child) free() error {
	if _, err := io.WriteString(c.in, "free\n"); err != nil {
		return c.end(err)
	}
	_, err := c.line()
	return err
}
