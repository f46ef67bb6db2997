package main

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"
)

// process is a peer process: this program once more, with the hidden command.
type process struct {
	cmd    *exec.Cmd
	pipes  []*pipe       // our ends, in the order of the routes that are pipes
	exited chan struct{} // closed when it has ended
	err    error         // of its end; valid when exited is closed
}

// startPeer starts a process that makes the given connections. For those that
// are pipes it fills in the descriptors: the first are standard input and
// output, further ones are inherited beside these, which not every system can
// do. The process is killed when ctx ends.
func startPeer(ctx context.Context, routes []route, stderr io.Writer) (_ *process, err error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.CommandContext(ctx, exe), exited: make(chan struct{})}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
		if err != nil {
			for _, own := range p.pipes {
				own.Close()
			}
		}
	}()
	for i := range routes {
		if routes[i].Network != "pipe" {
			continue
		}
		in, toPeer, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		theirs = append(theirs, in)
		p.pipes = append(p.pipes, &pipe{in: in, out: toPeer})
		fromPeer, out, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		theirs = append(theirs, out)
		p.pipes[len(p.pipes)-1].in = fromPeer
		if len(theirs) == 2 {
			p.cmd.Stdin, p.cmd.Stdout = in, out
			routes[i].In, routes[i].Out = 0, 1
		} else {
			routes[i].In = 3 + len(p.cmd.ExtraFiles)
			routes[i].Out = routes[i].In + 1
			p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, in, out)
		}
	}
	arg, err := json.Marshal(routes)
	if err != nil {
		return nil, err
	}
	p.cmd.Args = append(p.cmd.Args, peerCommand, string(arg))
	p.cmd.Stderr = stderr
	p.cmd.WaitDelay = time.Second
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// id is its number.
func (p *process) id() int { return p.cmd.Process.Pid }

// kill ends it without giving it a chance, and waits for that.
func (p *process) kill() {
	p.cmd.Process.Kill() // an error means that it has ended
	<-p.exited
}

// wait waits until it has ended by itself.
func (p *process) wait(ctx context.Context) error {
	select {
	case <-p.exited:
		return p.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// shared is a writer for several processes at a time.
type shared struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *shared) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}
