package pending

import (
	"testing"
	"time"
)

// A handshake that is handed on keeps its age and its place, and one that has been
// evicted meanwhile is not handed on.
func TestHand(t *testing.T) {
	table, start := New[string, string](1, 0), time.Now()
	e, _ := table.Add("a", "first", start)
	if !e.Hand("second") || table.size != 1 {
		t.Fatal("the entry is gone")
	}
	in, out := table.Add("b", "other", start.Add(Spare))
	if in == nil || out != e || out.Value() != "second" {
		t.Fatalf("added %v, evicted %v; want the oldest, %v, to go", in, out, e)
	}
	if e.Hand("third") || e.Value() != "second" {
		t.Error("who was evicted was handed on")
	}
}
