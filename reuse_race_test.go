//go:build race

package sockhub_test

// The race detector sees a message that is used after its Release.

import (
	"context"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
)

// plant is set in the process that makes the mistake.
const plant = "SOCKHUB_TEST_USE_AFTER_RELEASE"

// A message that is read after its batch was released, while its memory
// receives something else, is a data race although the kernel writes it: the
// transport tells the race detector of what a receive has written.
func TestRaceDetectorSeesUseAfterRelease(t *testing.T) {
	if os.Getenv(plant) != "" {
		useAfterRelease(t, true)
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestRaceDetectorSeesUseAfterRelease$")
	cmd.Env = append(os.Environ(), plant+"=1", "GORACE=")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "DATA RACE") {
		t.Errorf("the race was not seen: %v\n%s", err, out)
	}
	useAfterRelease(t, false) // and here there is none
}

// useAfterRelease takes messages from a peer, whose memory is used again at
// each Release, and looks at the first byte of each, in time or too late.
func useAfterRelease(t *testing.T, late bool) {
	hub := openHub(t, &sockhub.Options{ReuseBuffers: true})
	l, err := hub.Listen(t.Context(), "tcp", "127.0.0.1:0", &sockhub.ListenOptions{Mode: sockhub.Anonymous})
	if err != nil {
		t.Fatal(err)
	}
	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	sum := 0
	for n := 0; n < 200; {
		peer.Write(frame("a message"))
		b := <-hub.Events()
		var kept [][]byte
		for _, m := range b.Messages() {
			kept = append(kept, m)
			if !late {
				sum += int(m[0])
			}
			n++
		}
		b.Release()
		if late {
			peer.Write(frame("another")) // into the same memory
			<-time.After(time.Millisecond)
			for _, m := range kept {
				sum += int(m[0])
			}
		}
	}
	if !late && sum != 200*'a' {
		t.Error(sum)
	}
}
