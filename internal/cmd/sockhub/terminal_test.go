package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// terminal is a window of tmux, in which a shell runs.
type terminal struct {
	t      *testing.T
	socket string
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Skip("no tmux here: nothing is tried in a terminal")
	}
	dir, err := os.MkdirTemp("", "tmux") // short, since it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	w := &terminal{t, filepath.Join(dir, "s")}
	t.Cleanup(func() {
		w.tmux("kill-server") // an error means that it has ended
		os.RemoveAll(dir)
	})
	exe, err := os.Executable()
	if err != nil {
		t.Skip(err)
	}
	script := filepath.Join(dir, "sockhub")
	text := "#!/bin/sh\n" + commandEnv + "=1 GORACE=atexit_sleep_ms=0 exec " + strconv.Quote(exe) + ` "$@"` + "\n"
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := w.tmux("-f", os.DevNull, "new-session", "-d", "-x", "100", "-y", "30", "env", "-u", "NO_COLOR", "PS1=ready> ", "PATH="+dir+":"+os.Getenv("PATH"), "sh"); err != nil {
		t.Skipf("tmux does not work here: %v, %s", err, out)
	}
	return w
}

func (w *terminal) tmux(args ...string) (string, error) {
	out, err := exec.Command("tmux", append([]string{"-S", w.socket}, args...)...).CombinedOutput()
	return string(out), err
}

// enter types a line.
func (w *terminal) enter(line string) {
	w.t.Helper()
	if out, err := w.tmux("send-keys", "-l", line+"\r"); err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
}

// press presses a key, such as C-c.
func (w *terminal) press(key string) {
	w.t.Helper()
	if out, err := w.tmux("send-keys", key); err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
}

// shows waits until the window, with the escape sequences of its colours, has
// the text, and returns it.
func (w *terminal) shows(text string) string {
	w.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		screen, err := w.tmux("capture-pane", "-p", "-e")
		if err != nil {
			w.t.Fatalf("%v: %s", err, screen)
		}
		if strings.Contains(screen, text) {
			return screen
		}
		select {
		case <-tick.C:
		case <-late:
			w.t.Fatalf("%q is not shown in:\n%s", text, screen)
		}
	}
}

func TestInATerminal(t *testing.T) {
	t.Parallel()
	server, client := newTerminal(t), newTerminal(t)
	socket := filepath.Join(filepath.Dir(server.socket), "hub")
	server.enter("sockhub listen unix:" + socket)
	server.shows("\x1b[32mlistening") // in green
	client.enter("sockhub dial -name alice unix:" + socket)
	// The listener takes anonymous peers: the name is a message.
	server.shows(`"alice"`)
	client.press("C-c")
	client.shows("sockhub dial: ")

	client.enter("clear; sockhub dial unix:" + socket)
	server.shows("2 unix on")
	client.enter("typed here")
	server.shows(`"typed here"`)
	server.enter("and answered")
	client.shows("\nand answered")
	client.press("C-d")
	server.shows("2 EOF; 1 of 1 messages written")
	client.enter("echo status $?")
	client.shows("status 0")

	// The other side goes: a dial that is typed into does not hang.
	client.enter("clear; sockhub dial unix:" + socket)
	server.shows("3 unix on")
	server.press("C-c")
	client.shows("ready>")
	client.enter("echo status $?")
	client.shows("status 0")
	server.shows("messages written\nready>") // what is typed before that, the command may still read
	server.enter("clear; echo status $?")
	server.shows("status 0")

	server.enter("clear; NO_COLOR=1 sockhub listen -echo unix:" + socket)
	server.shows("listening     unix:")
	client.enter("clear; sockhub bench -conns 1 -duration 2s unix:" + socket + " >/dev/null")
	client.shows("bench: ") // while it runs, on one line
	client.shows("ready>")
	if screen := server.shows("1 EOF; "); strings.Contains(screen, "\x1b[") {
		t.Errorf("coloured in spite of NO_COLOR:\n%s", screen)
	}
}
