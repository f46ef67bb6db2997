package sockhub

import (
	"math"
	"testing"
	"time"
)

// What a look at a writer that makes no progress finds, one after the other.
func TestStallLooks(t *testing.T) {
	const timeout, step = looks * time.Second, time.Second
	type look struct {
		at      time.Duration // since the begin
		unacked int
		known   bool
		try     bool          // want
		since   time.Duration // likewise: the begin of the lack of progress
	}
	for name, test := range map[string]struct {
		idle  bool
		looks []look
	}{
		"too early":             {true, []look{{step - 1, 0, false, false, 0}}},
		"nothing to be seen":    {true, []look{{step, 0, false, true, 0}, {2 * step, 0, false, true, 0}}},
		"it tries all the time": {false, []look{{step, 0, false, false, 0}, {2 * step, 0, false, false, 0}}},
		"nothing taken": {true, []look{
			{step, 500, true, true, 0}, // as some may have been before
			{2 * step, 500, true, false, 0},
			{3 * step, 600, true, false, 0}, // more was written
			{4 * step, 600, true, false, 0},
		}},
		"taken slowly": {true, []look{
			{step, 500, true, true, 0},
			{2 * step, 499, true, true, 2 * step},
			{3 * step, 499, true, false, 2 * step},
			{4 * step, 0, true, true, 4 * step},
		}},
		"more than 32 bits": {true, []look{{step, math.MaxInt, true, true, 0}, {2 * step, 1, true, true, 2 * step}}},
	} {
		t.Run(name, func(t *testing.T) {
			const begin = time.Hour
			var s stall
			s.begin(begin)
			for i, l := range test.looks {
				if try := s.look(begin+l.at, timeout, l.unacked, l.known, test.idle); try != l.try || s.since != begin+l.since {
					t.Fatalf("look %d: try %v, no progress since %v; want %v, %v", i, try, s.since-begin, l.try, l.since)
				}
			}
			s.probing = true
			if s.moved(0); s.probing || s.unacked != -1 {
				t.Errorf("after a write: %+v", s)
			}
			if s.moved(begin + timeout); s.since != begin+timeout {
				t.Errorf("after a write: no progress since %v", s.since-begin)
			}
			if s.end(); s.since != 0 {
				t.Error("it has not ended")
			}
		})
	}
}
