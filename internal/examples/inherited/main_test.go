//go:build unix

package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/leakcheck"
)

// programEnv, in the environment of this test binary, makes it the program.
const programEnv = "SOCKHUB_INHERITED"

func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		main()
		os.Exit(0)
	}
	leakcheck.Main(m)
}

// start runs the program with these environment variables, set by a shell
// that becomes the program so that $$ is its number, and these descriptors.
func start(t *testing.T, variables string, files ...*os.File) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	cmd := exec.CommandContext(ctx, "sh", "-c", variables+` exec "$0"`, exe)
	cmd.Env = append(os.Environ(), programEnv+"=1")
	cmd.ExtraFiles = files
	output := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		cancel()
		t.Skipf("cannot run a process here: %v", err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill() // fails where it has ended
		cmd.Wait()
		cancel()
	})
	return cmd, output
}

// A service is restarted without closing its sockets: who connects between two
// lives is served by the second.
func TestInheritedSocketsOutliveTheProgram(t *testing.T) {
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	var files []*os.File
	var addrs []net.Addr
	for _, where := range [][2]string{{"tcp", "127.0.0.1:0"}, {"unix", filepath.Join(dir, "s")}} {
		l, err := net.Listen(where[0], where[1])
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		f, err := l.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files, addrs = append(files, f), append(addrs, l.Addr())
	}
	hub, err := sockhub.New(context.Background(), &sockhub.Options{Name: "client"})
	if err != nil {
		t.Fatal(err)
	}
	defer hub.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for life := range 3 {
		// These come before there is a program, and wait for it.
		var conns []net.Conn
		for _, a := range addrs {
			c, err := net.Dial(a.Network(), a.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			conns = append(conns, c)
		}
		cmd, output := start(t, "LISTEN_FDS=2 LISTEN_PID=$$", files...)
		for i, nc := range conns {
			c, err := hub.Attach(ctx, nc, nil)
			if err != nil {
				t.Fatalf("life %d, %v: %v\n%s", life, addrs[i], err, output)
			}
			if err := c.Send(ctx, []byte("hello")); err != nil {
				t.Fatal(err)
			}
			if got := next(t, ctx, hub); string(got) != "hello" {
				t.Errorf("life %d, %v: the echo is %q", life, addrs[i], got)
			}
			c.Close()
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("life %d: %v\n%s", life, err, output)
		}
	}
}

// next is the next message that hub receives.
func next(t *testing.T, ctx context.Context, hub *sockhub.Hub) []byte {
	t.Helper()
	for {
		select {
		case b := <-hub.Events():
			for _, m := range b.Messages() {
				return m
			}
		case <-ctx.Done():
			t.Fatal("no echo")
		}
	}
}

func TestWithoutSocketsItSaysSo(t *testing.T) {
	for _, test := range []struct{ variables, want string }{
		{"LISTEN_FDS=1 LISTEN_PID=1", `LISTEN_PID is "1"`},
		{"LISTEN_FDS= LISTEN_PID=", `LISTEN_PID is ""`},
		{"LISTEN_FDS=x LISTEN_PID=$$", "LISTEN_FDS: "},
		{"LISTEN_FDS=1 LISTEN_PID=$$", "descriptor 3: "},
	} {
		cmd, output := start(t, test.variables)
		if err := cmd.Wait(); err == nil || !strings.Contains(output.String(), test.want) {
			t.Errorf("%s: %v, output %q, want %q", test.variables, err, output, test.want)
		}
	}
}
