package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDialGetsItsLinesBack(t *testing.T) {
	t.Parallel()
	const text = "hello\n\n  spaces \r\nno newline at the end: äöü\x00\xff"
	for kind, place := range places(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			l := startListening(t, 1, "-echo", place)
			out, errs, code := finished(t, text, "dial", l.at[0])
			if out != text+"\n" || errs != "" || code != 0 {
				t.Errorf("exit status %d, %q, %s", code, out, errs)
			}
			if got, want := strings.Fields(l.line())[0], "connected"; got != want {
				t.Errorf("%s instead of %s", got, want)
			}
			if got, want := l.line(), `message       1 "hello"`; got != want {
				t.Errorf("%s instead of %s", got, want)
			}
		})
	}
}

func TestDatagrams(t *testing.T) {
	t.Parallel()
	l := startListening(t, 1, "-print", "none", "-echo", "udp://127.0.0.1:0")
	out, errs, code := finished(t, "one\ntwo\n", "dial", "-wait", "300ms", l.at[0])
	if out != "one\ntwo\n" || code != 0 {
		t.Errorf("exit status %d, %q, %s", code, out, errs)
	}
}

func TestSeveralEndpointsAndManyLines(t *testing.T) {
	t.Parallel()
	l := startListening(t, 2, "-print", "none", "-echo", "tcp://127.0.0.1:0", "unix://"+filepath.Join(socketDir(t), "s"))
	text := strings.Repeat("0123456789\n", 100_000)
	for _, at := range l.at {
		if out, errs, code := finished(t, text, "dial", at); out != text || code != 0 {
			t.Errorf("exit status %d, %d bytes of %d, %s", code, len(out), len(text), errs)
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	l := startListening(t, 1, "-json", "-named", "-echo", "tcp://127.0.0.1:0")
	if out, errs, code := finished(t, "x\n", "dial", "-name", "alice", l.at[0]); out != "x\n" || code != 0 {
		t.Errorf("exit status %d, %q, %s", code, out, errs)
	}
	var got []event
	for range 4 {
		var e event
		if err := json.Unmarshal([]byte(l.line()), &e); err != nil {
			t.Fatal(err)
		}
		if e.Event == "connected" && !strings.HasPrefix(e.Remote, "127.0.0.1:") || e.Time.IsZero() {
			t.Errorf("%+v", e)
		}
		e.Time, e.Remote = time.Time{}, ""
		got = append(got, e)
	}
	one, x := 1, "x"
	want := []event{
		{Event: "connected", Conn: 1, Name: "alice", Network: "tcp"},
		{Event: "message", Conn: 1, Name: "alice", Size: &one, Text: &x},
		{Event: "ended", Conn: 1, Name: "alice"},
		{Event: "disconnected", Conn: 1, Name: "alice", Reason: "EOF", Report: &reportJSON{Accepted: 1, Written: 1}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	needsSignals(t)
	// A name that is taken is refused.
	holder := program(t, "dial", "-name", "bob", "-no-stdin", l.at[0])
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	l.line() // it is connected
	_, errs, code := finished(t, "", "dial", "-name", "bob", l.at[0])
	if code != 1 || !strings.Contains(errs, "refused by the peer") {
		t.Errorf("exit status %d, %s", code, errs)
	}
	var refused event
	if err := json.Unmarshal([]byte(l.line()), &refused); err != nil || refused.Event != "refused" || refused.Name != "bob" || !strings.Contains(refused.Reason, "name is taken") {
		t.Errorf("listen says %+v, %v", refused, err)
	}
	l.interrupt()
	if err := holder.Wait(); err != nil {
		t.Error(err)
	}
}

func TestListenSendsItsInputToEverybody(t *testing.T) {
	t.Parallel()
	needsSignals(t)
	l := startListening(t, 1, "-print", "none", "tcp://127.0.0.1:0")
	dial := program(t, "dial", "-no-stdin", l.at[0])
	out, err := dial.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := dial.Start(); err != nil {
		t.Fatal(err)
	}
	io.WriteString(l.stdin, "one\ntwo\n") // kept until somebody is there
	lines := bufio.NewReader(out)
	for _, want := range []string{"one\n", "two\n"} {
		if got, err := lines.ReadString('\n'); got != want {
			t.Fatalf("%q instead of %q: %v", got, want, err)
		}
	}
	if code := l.interrupt(); code != 0 {
		t.Errorf("listen: exit status %d", code)
	}
	if err := dial.Wait(); err != nil {
		t.Error(err)
	}
}

func TestListenAnswersWithLines(t *testing.T) {
	t.Parallel()
	l := startListening(t, 1, "-print", "none", "-answer", "tcp://127.0.0.1:0")
	io.WriteString(l.stdin, "one\ntwo\n")
	for _, want := range []string{"one\n", "two\n"} {
		if out, errs, code := finished(t, "?\n", "dial", l.at[0]); out != want || code != 0 {
			t.Errorf("exit status %d, %q, %s", code, out, errs)
		}
	}
}

// TestOnceWorksAsNetcatDoes: bytes in both directions between it and a peer
// that knows nothing of sockhub, until both have finished.
func TestOnceWorksAsNetcatDoes(t *testing.T) {
	t.Parallel()
	l := startListening(t, 1, "-print", "data", "-once", "-raw", "tcp://127.0.0.1:0")
	conn, err := net.Dial("tcp", strings.TrimPrefix(l.at[0], "tcp://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(l.stdin, "from listen")
	l.stdin.Close()
	if got, err := io.ReadAll(conn); string(got) != "from listen" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	io.WriteString(conn, "to listen, later")
	conn.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(l.out); string(got) != "to listen, later" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if code := l.wait(); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

func TestFilesAsMessages(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var files []string
	for _, name := range []string{"one\ntwo", "", "three\n"} {
		file := filepath.Join(dir, string(rune('a'+len(files))))
		if err := os.WriteFile(file, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	l := startListening(t, 1, "-print", "none", "-echo", "tcp://127.0.0.1:0")
	for _, tt := range []struct {
		want string
		args []string
	}{
		{"one\ntwo\nthree\n", nil},
		{"one\ntwo\x00\x00three\n\x00<\x00", []string{"-whole", "-0"}},
	} {
		args := append(append([]string{"dial"}, tt.args...), l.at[0])
		args = append(args, files...)
		if tt.args != nil {
			args = append(args, "-")
		}
		if out, errs, code := finished(t, "<", args...); out != tt.want || code != 0 {
			t.Errorf("exit status %d, %q, %s", code, out, errs)
		}
	}
}

// A file of which something was read before is what is left of it, and one that does
// not tell its size, as those of the kernel, is all that can be read.
func TestWholeFilesThatAreNotWhatTheirSizeSays(t *testing.T) {
	t.Parallel()
	l := startListening(t, 1, "-print", "none", "-echo", "tcp://127.0.0.1:0")
	for _, size := range []int{100, 200_000} {
		name := filepath.Join(t.TempDir(), "f")
		body := strings.Repeat("x", size)
		if err := os.WriteFile(name, []byte("read\n"+body), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Seek(5, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		cmd := program(t, "dial", "-whole", "-0", l.at[0])
		cmd.Stdin = f
		if out, err := cmd.Output(); string(out) != body+"\x00" || err != nil {
			t.Errorf("%d bytes came, want %d and an end; %v", len(out), size, err)
		}
	}
	const kernels = "/proc/version"
	want, err := os.ReadFile(kernels)
	if err != nil {
		t.Skip(err)
	}
	if out, errs, code := finished(t, "", "dial", "-whole", "-0", l.at[0], kernels); out != string(want)+"\x00" || code != 0 {
		t.Errorf("exit status %d, %q, %s", code, out, errs)
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	cert := filepath.Join(t.TempDir(), "cert.pem")
	l := startListening(t, 2, "-echo", "-self-signed", cert, "tls+tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
	for _, tt := range []struct {
		at, out string
		code    int
		flags   []string
	}{
		{l.at[0], "x\n", 0, []string{"-ca", cert}},
		{l.at[0], "x\n", 0, []string{"-insecure"}},
		{l.at[0], "", 1, nil},
		{l.at[0], "", 1, []string{"-ca", cert, "-server-name", "example.org"}},
		{l.at[1], "", 2, []string{"-ca", cert}}, // it would not be encrypted
		{l.at[1], "x\n", 0, nil},
	} {
		out, errs, code := finished(t, "x\n", append(append([]string{"dial"}, tt.flags...), tt.at)...)
		if out != tt.out || code != tt.code {
			t.Errorf("%q: exit status %d, %q, %s", tt.flags, code, out, errs)
		}
	}
}

// TestDialFailsWhenItsInputIsNotTaken: what is left must not be taken for sent.
func TestDialFailsWhenItsInputIsNotTaken(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			io.ReadFull(c, make([]byte, 10))
			c.Close()
		}
	}()
	_, errs, code := finished(t, strings.Repeat("x\n", 1<<20), "dial", "tcp://"+l.Addr().String())
	if code != 1 || errs == "" {
		t.Errorf("exit status %d, %q", code, errs)
	}
}

func TestInterruptRemovesTheSocketFile(t *testing.T) {
	t.Parallel()
	needsSignals(t)
	file := filepath.Join(socketDir(t), "s")
	l := startListening(t, 1, "unix://"+file)
	if code := l.interrupt(); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if _, err := os.Lstat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket file: %v", err)
	}
}

func TestListenSaysWhomItHasRefused(t *testing.T) {
	t.Parallel()
	l := startListening(t, 1, "-named", "tcp://127.0.0.1:0")
	finished(t, strings.Repeat("x", 300)+"\n", "dial", l.at[0]) // which is told nothing
	if got := l.line(); !strings.HasPrefix(got, "refused       tcp 127.0.0.1:") || !strings.Contains(got, "too large") {
		t.Error(got)
	}
}

// TestDialIsInterrupted: it says so, and fails if there was more to send.
func TestDialIsInterrupted(t *testing.T) {
	t.Parallel()
	needsSignals(t)
	l := startListening(t, 1, "tcp://127.0.0.1:0")
	for _, tt := range []struct {
		flag, want string
		code       int
	}{
		{"-no-stdin", "sockhub dial: interrupted\n", 0},
		{"-whole", "sockhub dial: interrupted before everything was sent\n", 1},
	} {
		dial := program(t, "dial", tt.flag, l.at[0])
		stdin, err := dial.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer stdin.Close()
		var errs strings.Builder
		dial.Stderr = &errs
		out, err := dial.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := dial.Start(); err != nil {
			t.Fatal(err)
		}
		for !strings.HasPrefix(l.line(), "connected") {
		}
		io.WriteString(l.stdin, "hello\n")
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil { // now it is in its loop
			t.Errorf("%q, %v", line, err)
		}
		dial.Process.Signal(os.Interrupt)
		dial.Wait()
		if code := dial.ProcessState.ExitCode(); code != tt.code || errs.String() != tt.want {
			t.Errorf("%s: exit status %d, %q", tt.flag, code, &errs)
		}
	}
}

func TestExitStatusOfWrongUse(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		code int
		want string // in standard error; in standard output if all was well
		args string
	}{
		{2, "usage: sockhub", ""},
		{2, `no such command: "dmeo"`, "dmeo"},
		{0, "usage: sockhub", "help"},
		{0, "usage: sockhub", "--help"},
		{0, "sockhub ", "version"},
		{0, "usage: sockhub listen", "help listen"},
		{0, "examples:", "listen --help"},
		{0, "examples:", "dial -h"},
		{0, "examples:", "bench -help"},
		{0, "examples:", "demo -help"},
		{0, "exit status", "help"},
		{0, "exit status", "listen -help"},
		{2, "such as 5s", "bench -duration 5 tcp://:1"},
		{2, "beside flags", "demo now"},
		{2, "something to send", "demo -messages 0"},
		{2, "-bytes", "demo -bytes x"},
		{2, "usage: sockhub", peerCommand},
		{2, "usage: sockhub", peerCommand + " x"},
		{2, "an endpoint is missing", "listen"},
		{2, "flag provided but not defined: -ecoh", "listen -ecoh tcp://:0"},
		{2, "exclude each other", "listen -echo tcp://:0 -answer"},
		{2, "-print has to be", "listen -print all tcp://127.0.0.1:0"},
		{2, "not octal", "listen -file-mode 999 tcp://:0"},
		{2, "-framing", "listen -framing be24 tcp://:0"},
		{2, "either -cert and -key, or -self-signed", "listen tls+tcp://:0"},
		{2, "no TLS over datagrams", "listen tls+udp://:0"},
		{2, "missing port", "dial tcp://localhost"},
		{2, "is no endpoint", "dial ftp://localhost"},
		{2, "there are files", "dial -no-stdin tcp://:1 x"},
		{2, "have to be positive", "bench -conns 0 tcp://:1"},
		{2, "no number of bytes", "bench -size x tcp://:1"},
		{1, "sockhub dial: ", "dial unix:///nowhere/at/all"},
		{1, "sockhub listen: ", "listen unix:///nowhere/at/all"},
	} {
		out, errs, code := finished(t, "", strings.Fields(tt.args)...)
		said := errs
		if tt.code == 0 {
			said = out
		}
		if code != tt.code || !strings.Contains(said, tt.want) {
			t.Errorf("%q: exit status %d, %q, %q", tt.args, code, out, errs)
		}
	}
}
