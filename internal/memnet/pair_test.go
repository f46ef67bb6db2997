package memnet

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestNothingIsLeft looks inside, because a timer that fires for nobody cannot
// be seen from outside.
func TestNothingIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		timers := 0
		for seed := range uint64(100) {
			a, b := Pair(&Options{Seed: seed, Faults: Faults{Delay: 0.5, Stall: 0.5}})
			a.SetDeadline(time.Now().Add(time.Hour))
			b.SetReadDeadline(time.Now().Add(time.Hour))
			a.Write([]byte("x"))
			b.Write([]byte("y"))
			if seed%3 == 0 {
				<-time.After(time.Duration(seed) * time.Millisecond)
			}
			a.Close()
			b.Close()
			if a.p.timer != nil {
				timers++
				if a.p.timer.Stop() {
					t.Errorf("seed %d: the clock of the faults goes on", seed)
				}
			}
			for _, e := range []*End{a, b} {
				if e.rd.timer != nil || e.wr.timer != nil {
					t.Errorf("seed %d: a deadline is left", seed)
				}
			}
		}
		if timers == 0 {
			t.Error("no fault needed time")
		}
		// A goroutine that is left makes synctest.Test panic. To count those of
		// the process would count the runtime's too, which come and go.
	})
}

// TestRing moves bytes through rings that grow while they are wrapped.
func TestRing(t *testing.T) {
	for limit := 1; limit < 2000; limit = limit*3/2 + 1 {
		f := flow{limit: limit}
		var in, out byte
		for step := range 200 {
			n := min((step*step)%97+step*limit/400, limit-int(f.written-f.read))
			v := make([]byte, n)
			for i := range v {
				v[i], in = in, in+1
			}
			f.putLocked([][]byte{v[:n/3], nil, v[n/3:]}, n)
			b := make([]byte, int(f.written-f.read)*2/3)
			f.takeLocked(b, len(b))
			for _, got := range b {
				if got != out {
					t.Fatalf("limit %d, step %d: got %d, want %d", limit, step, got, out)
				}
				out++
			}
		}
	}
}
