package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sockhub/sockhub"
)

func init() { roles["echo"] = echoServer }

// echoServer listens on the given network and address, echoes what named peers
// send, and answers the message CPU with the milliseconds that the process has
// used, of all its threads.
func echoServer(args []string, quit <-chan struct{}) error {
	hub, err := sockhub.New(context.Background(), &sockhub.Options{MaxConns: 1000})
	if err != nil {
		return err
	}
	l, err := hub.Listen(context.Background(), args[0], args[1], nil)
	if err != nil {
		return err
	}
	fmt.Println("LISTENING", l.Addr())
	go func() { <-quit; hub.Close() }()
	for b := range hub.Events() {
		for c, m := range b.Messages() {
			if string(m) == "CPU" {
				m = []byte(cpuTime())
			}
			c.TrySend(m)
		}
	}
	return nil
}

// cpuTime is the processor time that this process has used, in ms. The kernel
// counts it in ticks of 10 ms.
func cpuTime() string {
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return "-1"
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return strconv.Itoa(10 * (user + system))
}

// client is a named connection for questions and answers.
type client struct {
	net.Conn
	p *proof
}

func (p *proof) dial(network, addr, name string) *client {
	nc, err := net.Dial(network, addr)
	p.must(err)
	nc.SetDeadline(time.Now().Add(time.Minute))
	p.must(greet(nc, name))
	return &client{nc, p}
}

func (c *client) ask(msg string) string {
	_, err := c.Write(frame(msg))
	c.p.must(err)
	m, err := receive(c, make([]byte, 1000))
	c.p.must(err)
	return string(m)
}

func (c *client) cpu() int {
	n, err := strconv.Atoi(c.ask("CPU"))
	c.p.must(err)
	return n
}

// failingAccepts is row 7. While strace is attached to a server, all of its
// accepts fail. It lets go, and a peer that waits in the kernel's queue must
// hear OK.
func failingAccepts(p *proof) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		p.skip("no strace here")
	}
	if out, err := exec.Command(strace, "-o", os.DevNull, "true").CombinedOutput(); err != nil {
		p.skip("strace cannot trace here: %v: %s", err, out)
	}
	worstCPU, worstWait, total := 0.0, time.Duration(0), 0
	for _, errno := range []string{"EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ECONNABORTED", "EPROTO", "EPERM", "EINTR"} {
		failed, cpu, wait := p.failAccepts(strace, errno)
		p.say("%s: %d failures, %.1f %% of a core, accepted after %v", errno, failed, 100*cpu, wait.Round(time.Millisecond))
		p.check(cpu <= 0.05, "%s: %.1f %% of a core", errno, 100*cpu)
		p.check(wait <= 1100*time.Millisecond, "%s: accepted after %v", errno, wait)
		worstCPU, worstWait, total = max(worstCPU, cpu), max(worstWait, wait), total+failed
	}
	p.measured("8 errors for 5 s each, %d failures: %.1f %% of a core at most, and accepted %v after recovery at most",
		total, 100*worstCPU, worstWait.Round(time.Millisecond))
	p.fewDescriptors()
}

func (p *proof) failAccepts(strace, errno string) (failed int, cpu float64, wait time.Duration) {
	log := filepath.Join(os.TempDir(), fmt.Sprintf("prove-%d-%s", os.Getpid(), errno))
	defer os.Remove(log)
	c := p.start(nil, "echo", "tcp4", "127.0.0.1:0")
	addr := c.line("LISTENING", 20*time.Second)
	first := p.dial("tcp4", addr, "first")

	inject := "inject=accept4:error=" + errno
	if errno == "ECONNABORTED" || errno == "EINTR" {
		// Go's own loop tries again at once, and this many times for each
		// thread: a kernel does not say these two forever.
		inject += ":when=1..20"
	}
	tracer := exec.Command(strace, "-f", "-e", "trace=accept4", "-e", inject, "-o", log, "-p", strconv.Itoa(c.cmd.Process.Pid))
	said, err := tracer.StderrPipe()
	p.must(err)
	p.must(tracer.Start())
	in := bufio.NewScanner(said)
	in.Scan() // "attached"
	go func() {
		for in.Scan() {
		}
	}()
	before, begun := first.cpu(), time.Now()
	late, err := net.Dial("tcp4", addr)
	p.must(err)
	late.SetDeadline(time.Now().Add(time.Minute))
	_, err = late.Write(frame("late"))
	p.must(err)
	for time.Since(begun) < 5350*time.Millisecond { // a wait of 1 s has just begun
		if first.ask("still") != "still" {
			p.fail("%s: the echo differs", errno)
		}
		time.Sleep(50 * time.Millisecond)
	}
	cpu = float64(first.cpu()-before) / 1000 / time.Since(begun).Seconds()
	p.must(tracer.Process.Signal(os.Interrupt))
	tracer.Wait()
	recovered := time.Now()
	m, err := receive(late, make([]byte, 10))
	wait = time.Since(recovered)
	p.check(err == nil && string(m) == "OK", "%s: who waited was answered %q, %v", errno, m, err)
	late.Close()
	first.Close()
	p.must(c.end())
	text, err := os.ReadFile(log)
	p.must(err)
	failed = strings.Count(string(text), "(INJECTED)")
	p.check(failed > 0, "%s: strace has injected nothing", errno)
	return failed, cpu, wait
}

// fewDescriptors lets more peers connect to a process than it may have
// descriptors, and then some leave.
func (p *proof) fewDescriptors() {
	c := p.start([]string{"sh", "-c", `ulimit -n 64; exec "$0" "$@"`}, "echo", "tcp4", "127.0.0.1:0")
	addr := c.line("LISTENING", 20*time.Second)
	first := p.dial("tcp4", addr, "first")
	var crowd []net.Conn
	for range 100 {
		nc, err := net.Dial("tcp4", addr)
		p.must(err)
		_, err = nc.Write(frame(fmt.Sprint("crowd ", len(crowd))))
		p.must(err)
		crowd = append(crowd, nc)
	}
	time.Sleep(time.Second)
	before, begun := first.cpu(), time.Now()
	for time.Since(begun) < 5*time.Second {
		if first.ask("still") != "still" {
			p.fail("the echo differs")
		}
		time.Sleep(100 * time.Millisecond)
	}
	cpu := float64(first.cpu()-before) / 1000 / time.Since(begun).Seconds()
	// The first 40 leave. One that waits in the kernel's queue is accepted now.
	begun = time.Now()
	for _, nc := range crowd[:40] {
		nc.Close()
	}
	waited := crowd[70]
	waited.SetDeadline(time.Now().Add(10 * time.Second))
	m, err := receive(waited, make([]byte, 10))
	wait := time.Since(begun)
	p.check(err == nil && string(m) == "OK", "who waited was answered %q, %v", m, err)
	for _, nc := range crowd[40:] {
		nc.Close()
	}
	first.Close()
	p.must(c.end())
	p.measured("RLIMIT_NOFILE 64, 101 peers: %.1f %% of a core; accepted %v after others had left", 100*cpu, wait.Round(time.Millisecond))
	p.check(cpu <= 0.05 && wait <= 1100*time.Millisecond, "out of descriptors: %.1f %% of a core, accepted after %v", 100*cpu, wait)
}
