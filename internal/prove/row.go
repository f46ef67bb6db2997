package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// row is one claim and how it is proved.
type row struct {
	n    int
	what string // in a few words
	want string // the figure to reach
	// takes is about how long it takes here, of which fixed does not get less
	// with the scale.
	takes, fixed time.Duration
	run          func(p *proof)
}

func (r *row) about(scale float64) time.Duration {
	return (r.fixed + time.Duration(float64(r.takes-r.fixed)*scale)).Round(time.Second)
}

// prove runs the row in this process.
func (r *row) prove(seed uint64, scale float64) (o *outcome) {
	p := &proof{seed: seed, scale: scale, begun: time.Now()}
	defer func() {
		if v := recover(); v != nil {
			if _, ours := v.(stop); !ours {
				p.fail("panic: %v", v)
			}
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		o = &p.outcome
		o.Took = time.Since(p.begun)
	}()
	r.run(p)
	return
}

// proof is one run of a row. Its methods may be called from anywhere, but those
// that end the row only from where it runs.
type proof struct {
	seed  uint64
	scale float64
	begun time.Time

	mu sync.Mutex
	outcome
}

// outcome is what came of a row.
type outcome struct {
	row      *row
	Measured []string // the figures
	Failed   []string // what was not reached
	Skipped  string   // why it could not run here
	Took     time.Duration
}

func (o *outcome) verdict() string {
	switch {
	case len(o.Failed) > 0:
		return "FAIL: " + strings.Join(o.Failed, "; ")
	case o.Skipped != "":
		return "skipped: " + o.Skipped
	}
	return "pass"
}

// stop is the panic that ends a row.
type stop struct{}

// n is a number of the full row, scaled; at least 1.
func (p *proof) n(full int) int { return max(1, int(float64(full)*p.scale)) }

// from is the first of the seeds that a test counts up from, for each of its random
// runs: what two parts of a row try with seeds of their own is not the same.
func (p *proof) from() string { return strconv.FormatUint(p.seed*1_000_000, 10) }

// d is a time of the full row, scaled, but at least least.
func (p *proof) d(full, least time.Duration) time.Duration {
	return max(least, time.Duration(float64(full)*p.scale))
}

// measured enters a figure in the table.
func (p *proof) measured(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	p.mu.Lock()
	p.Measured = append(p.Measured, text)
	p.mu.Unlock()
	p.say("%s", text)
}

// fail says what was not reached. The first few say it all.
func (p *proof) fail(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	p.mu.Lock()
	if len(p.Failed) < 5 {
		p.Failed = append(p.Failed, text)
	}
	p.mu.Unlock()
	p.say("FAIL: %s", text)
}

// check fails unless ok.
func (p *proof) check(ok bool, format string, args ...any) {
	if !ok {
		p.fail(format, args...)
	}
}

// must ends the row if there is an error.
func (p *proof) must(err error) {
	if err != nil {
		p.fail("%v", err)
		panic(stop{})
	}
}

// skip ends the row, which cannot run here. What it found before stays.
func (p *proof) skip(format string, args ...any) {
	p.mu.Lock()
	p.Skipped = fmt.Sprintf(format, args...)
	p.mu.Unlock()
	panic(stop{})
}

// say shows progress.
func (p *proof) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "  %5.0f s  %s\n", time.Since(p.begun).Seconds(), fmt.Sprintf(format, args...))
}

// until waits for something that no event tells, and ends the row when it does
// not come.
func (p *proof) until(what string, limit time.Duration, cond func() bool) {
	for end := time.Now().Add(limit); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			p.fail("waited %v in vain: %s", limit, what)
			panic(stop{})
		}
	}
}
