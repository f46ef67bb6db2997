package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// commandEnv, in the environment of this test binary, makes it the command.
const commandEnv = "SOCKHUB_TEST_COMMAND"

// patience is how long a process may take for what should take no time.
const patience = 30 * time.Second

// program is the command, ready to be started. It ends at the latest with the
// test.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, exe, args...)
	// The race detector sleeps at the end of a process, unless told not to.
	cmd.Env = append(os.Environ(), commandEnv+"=1", "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	return cmd
}

// finished runs the command with the given input until its end.
func finished(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := program(t, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// running is a listen command that runs beside the test.
type running struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	out    *bufio.Reader // its standard output
	at     []string      // its endpoints
	stderr bytes.Buffer  // valid once it has ended
	done   bool
}

// listening starts listen with an endpoint for each of the given ones.
func startListening(t *testing.T, endpoints int, args ...string) *running {
	t.Helper()
	l := &running{t: t, cmd: program(t, append([]string{"listen"}, args...)...)}
	in, err := l.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	l.stdin = in
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	l.out = bufio.NewReader(out)
	if len(args) > 0 && strings.HasPrefix(strings.Join(args, " "), "-print ") { // where it listens is on standard error
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		l.cmd.Stderr = w
		if err := l.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		lines := bufio.NewReader(r)
		for range endpoints {
			line, err := lines.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			l.at = append(l.at, strings.TrimSpace(strings.TrimPrefix(line, "listening on ")))
		}
	} else {
		l.cmd.Stderr = &l.stderr
		if err := l.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for range endpoints {
			line := l.line()
			var e event
			if json.Unmarshal([]byte(line), &e) == nil {
				line = e.Endpoint
			}
			l.at = append(l.at, strings.TrimSpace(strings.TrimPrefix(line, "listening ")))
		}
	}
	t.Cleanup(func() { l.interrupt() })
	return l
}

// line is the next line of its standard output.
func (l *running) line() string {
	l.t.Helper()
	line, err := l.out.ReadString('\n')
	if err != nil {
		l.wait()
		l.t.Fatalf("listen ended instead of printing a line: %s", &l.stderr)
	}
	return strings.TrimSuffix(line, "\n")
}

// wait waits for its end and returns its exit status.
func (l *running) wait() int {
	if !l.done {
		l.done = true
		l.cmd.Wait()
	}
	return l.cmd.ProcessState.ExitCode()
}

// interrupt ends it as a user does.
func (l *running) interrupt() int {
	if !l.done && l.cmd.Process.Signal(os.Interrupt) != nil {
		l.cmd.Process.Kill() // there are systems without signals
	}
	return l.wait()
}

// places are endpoints to listen on, of every kind that there is here.
func places(t *testing.T) map[string]string {
	dir := socketDir(t)
	all := map[string]string{
		"tcp": "tcp://127.0.0.1:0", "short": "127.0.0.1:0", "unix": "unix://" + filepath.Join(dir, "s"),
	}
	if runtime.GOOS == "linux" {
		all["abstract"] = "unix:@" + filepath.Base(dir) + "-" + t.Name()
	}
	return all
}

// socketDir is a directory for sockets: the name of t.TempDir is too long for a
// socket below it on some systems.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// needsSignals skips the test where a process cannot be interrupted by another.
func needsSignals(t *testing.T) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("no signals between processes")
	}
}
