package sockhub_test

import (
	"context"
	"testing"

	"github.com/sockhub/sockhub"
)

// TestNewWithContextThatHasEnded is for the race detector: Close begins before
// New has returned.
func TestNewWithContextThatHasEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		hub, err := sockhub.New(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		for range hub.Events() {
			t.Error("there is a batch")
		}
		hub.Close()
	}
}
