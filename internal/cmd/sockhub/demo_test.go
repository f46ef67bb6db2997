package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sockhub/sockhub/internal/leakcheck"
)

// TestMain is also the command that the tests run as a process, and the peer
// process of the demos.
func TestMain(m *testing.M) {
	if os.Getenv(commandEnv) != "" || len(os.Args) > 1 && os.Args[1] == peerCommand {
		main()
	}
	leakcheck.Main(m)
}

func TestDemoPasses(t *testing.T) {
	var out, err bytes.Buffer
	code := run([]string{"demo", "-messages", "5000", "-bytes", "9000000"}, nil, &out, &err)
	t.Logf("%s%s", &out, &err)
	if code != 0 || strings.Contains(err.String(), "peer process:") {
		t.Fatalf("exit status %d", code)
	}
	for _, want := range []string{"a peer that never reads", "a peer process that is killed", "graceful Shutdown", "nothing left behind", "all passed in"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output does not have %q", want)
		}
	}
	if strings.ContainsAny(out.String(), "\r\x1b") {
		t.Error("terminal controls in an output that is no terminal")
	}
}

// TestDemoFailsAtItsTimeLimit: before it has begun, and in the middle.
func TestDemoFailsAtItsTimeLimit(t *testing.T) {
	for _, limit := range []string{"1ns", "100ms"} {
		var out, err bytes.Buffer
		code := run([]string{"demo", "-timeout", limit, "-messages", "1000000000"}, nil, &out, &err)
		if code != 1 {
			t.Errorf("%s: exit status %d", limit, code)
		}
		for _, want := range []string{"not done after " + limit, "pass  nothing left behind", "\nFAILED in "} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: %q is missing in:\n%s", limit, want, &out)
			}
		}
	}
}

// TestPeerThatCannotConnect is about the exit status by which the demo learns
// what went wrong in the other process.
func TestPeerThatCannotConnect(t *testing.T) {
	arg, _ := json.Marshal([]route{{Network: "unix", Address: t.TempDir() + "/none"}})
	var err bytes.Buffer
	if code := run([]string{peerCommand, string(arg)}, nil, &err, &err); code != 1 || !strings.HasPrefix(err.String(), "peer process: unix ") {
		t.Errorf("exit status %d, %q", code, &err)
	}
}

func TestTallyKnowsWhatHasToCome(t *testing.T) {
	for _, kind := range []byte{small, large, last} {
		var sent, got tally
		var msgs [][]byte
		for msg := range generate(kind, 3, &sent) {
			msgs = append(msgs, msg)
		}
		changed := bytes.Clone(msgs[0])
		changed[len(changed)-1] ^= 1
		for name, wrong := range map[string][]byte{
			"too early": msgs[1], "short": msgs[0][:len(msgs[0])-1], "long": append(msgs[0][:len(msgs[0]):len(msgs[0])], 0),
			"changed": changed, "header cut": msgs[0][:headerSize-1],
		} {
			if err := got.check(wrong); err == nil {
				t.Errorf("kind %q: %s: no error", kind, name)
			}
		}
		for _, msg := range msgs {
			if err := got.check(msg); err != nil {
				t.Error(err)
			}
		}
		if got.check(msgs[2]) == nil {
			t.Errorf("kind %q: a duplicate passed", kind)
		}
		if diff := cmp.Diff(sent, got); diff != "" {
			t.Errorf("kind %q: (-sent +got)\n%s", kind, diff)
		}
	}
}

// TestHeaderAndFillerMakeAMessage: large messages are sent in parts, and have
// to be what the receiver expects.
func TestHeaderAndFillerMakeAMessage(t *testing.T) {
	var sent, whole tally
	for msg := range generate(large, 2, &sent) {
		head, body := header(nil, large, whole.Messages), filler(large, whole.Messages)
		if !bytes.Equal(msg, append(head, body...)) || len(msg) != largeSize {
			t.Errorf("message %d differs", whole.Messages)
		}
		whole.add(head, body)
	}
	if diff := cmp.Diff(sent, whole); diff != "" {
		t.Errorf("(-whole +parts)\n%s", diff)
	}
}
