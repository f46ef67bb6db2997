package sockhub

import (
	"testing"
	"time"

	"github.com/sockhub/sockhub/internal/transport"
	"github.com/sockhub/sockhub/internal/watch"
)

// prober is a transport that tells what a test says.
type prober struct {
	transport.Conn
	patience time.Duration
	waits    bool
	tries    int
	heard    time.Duration
}

func (p *prober) Patience() time.Duration { return p.patience }
func (p *prober) Unanswered() (waits bool, tries int, heard time.Duration) {
	return p.waits, p.tries, p.heard
}

// What looks at a peer that something is under way to find, one after the other: each 5 s
// after the one before, and the last one is to find that its network is gone.
func TestMuteLooks(t *testing.T) {
	const s = time.Second
	type look struct {
		waits bool
		tries int
		heard time.Duration
	}
	for name, looks := range map[string][]look{
		"gone while it was written to": {{true, 4, 5 * s}, {true, 5, 10 * s}, {true, 5, 15 * s}, {true, 6, 20 * s}, {true, 6, 25 * s}, {true, 6, 30 * s},
			{true, 6, 35 * s}, {true, 7, 40 * s}, {true, 7, 45 * s}, {true, 7, 50 * s}, {true, 7, 55 * s}, {true, 7, 60 * s}},
		"gone when keep-alive was about to tell": {{true, 5, 64 * s}, {true, 6, 69 * s}},
		"answers seldom, as it has no room":      {{true, 0, 70 * s}, {true, 0, 75 * s}, {true, 3, 80 * s}, {true, 4, 85 * s}},
		"a lost probe, and a second one":         {{true, 1, 90 * s}, {true, 1, 95 * s}, {true, 2, 155 * s}, {true, 2, 160 * s}, {true, 3, 275 * s}},
		"our machine stood still":                {{true, 4, 3600 * s}, {true, 0, s}, {true, 5, 60 * s}, {true, 6, 65 * s}},
		"heard of at last":                       {{true, 5, 59 * s}, {true, 3, 4 * s}, {true, 5, 90 * s}, {true, 6, 95 * s}},
	} {
		t.Run(name, func(t *testing.T) {
			p := &prober{patience: 60 * s}
			c := &Conn{hub: &Hub{watch: watch.New()}, t: p}
			c.mu.c = c
			c.out.bePatient(p.patience)
			now := c.hub.watch.Now()
			c.mu.Lock()
			defer c.mu.Unlock()
			c.writtenLocked(now)
			for i, l := range looks {
				if c.out.look != now+5*s {
					t.Fatalf("look %d is %v after the one before", i, c.out.look-now)
				}
				early := func(at time.Duration) bool { return at < now+5*s }
				if c.muteLocked(now+4*s, early) {
					t.Fatalf("before look %d: gone", i)
				}
				now += 5 * s
				p.waits, p.tries, p.heard = l.waits, l.tries, l.heard
				due := func(at time.Duration) bool { return at <= now }
				if gone := c.muteLocked(now, due); gone != (i == len(looks)-1) {
					t.Fatalf("look %d: gone %v", i, gone)
				}
			}
		})
	}
}

// It is not looked at where nothing is under way, nor when keep-alive was turned off.
func TestMuteLooksEnd(t *testing.T) {
	p := &prober{patience: time.Minute}
	c := &Conn{hub: &Hub{watch: watch.New()}, t: p}
	c.mu.c = c
	c.out.bePatient(p.patience)
	c.mu.Lock()
	defer c.mu.Unlock()
	always := func(time.Duration) bool { return true }
	for _, off := range []bool{false, false, true} {
		if c.writtenLocked(1); c.out.look == 0 {
			t.Fatal("no look, though something was written")
		}
		if p.waits = off; off {
			p.patience = 0
			p.tries, p.heard, c.out.mute = 9, time.Hour, true
		}
		if c.muteLocked(1, always) || c.out.look != 0 {
			t.Fatalf("keep-alive is off: %v; another look at %v", off, c.out.look)
		}
	}
	if c.writtenLocked(1); c.out.look != 0 {
		t.Error("a look without keep-alive")
	}
}
