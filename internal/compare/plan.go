package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// plan is what is going to be run, and how much of it was.
type plan struct {
	b     *bench
	ws    []workload
	ss    []setup
	cs    []contender
	total time.Duration
	done  time.Duration // of total
	began time.Time
	live  bool // progress is a line that changes
}

func newPlan(b *bench, ws []workload, ss []setup, cs []contender) *plan {
	p := &plan{b: b, ws: ws, ss: ss, cs: cs, began: time.Now(), live: isTerminal(os.Stderr)}
	runs := 0
	for _, w := range ws {
		n := len(p.of(w)) * len(p.in(w)) * *reps
		runs += n
		p.total += time.Duration(n) * p.takes(w)
	}
	fmt.Fprintf(os.Stderr, "%d workloads, %d runs: about %s\n", len(ws), runs, coarse(p.total))
	return p
}

// of returns the contenders that can do a workload.
func (p *plan) of(w workload) []contender {
	return slices.DeleteFunc(slices.Clone(p.cs), func(c contender) bool {
		return !slices.Contains(c.modes, w.mode) || w.servers != nil && !slices.Contains(w.servers, c.name)
	})
}

// in returns the setups that a workload is measured in.
func (p *plan) in(w workload) []setup {
	return slices.DeleteFunc(slices.Clone(p.ss), func(s setup) bool { return w.setup != "" && w.setup != s.name })
}

func (p *plan) takes(w workload) time.Duration { return p.b.warm + p.b.time + w.takes() }

// coarse is a duration for people.
func coarse(d time.Duration) string {
	if d < 2*time.Minute {
		return fmt.Sprintf("%.0f s", d.Seconds())
	}
	return fmt.Sprintf("%.0f min", d.Minutes())
}

// tell shows what runs now.
func (p *plan) tell(format string, args ...any) {
	left := p.total - p.done
	if spent := time.Since(p.began); p.done > p.total/20 { // by now it is known how long things take here
		left = time.Duration(float64(spent) / float64(p.done) * float64(left))
	}
	text := fmt.Sprintf("[%3.0f %%, %s left] ", 100*float64(p.done)/float64(p.total), coarse(left)) + fmt.Sprintf(format, args...)
	if p.live {
		fmt.Fprintf(os.Stderr, "\r%-110s\r", text)
	} else {
		fmt.Fprintln(os.Stderr, text)
	}
}

// run measures everything and prints each workload when it is done.
func (p *plan) run(ctx context.Context, j *journal) error {
	for _, w := range p.ws {
		for _, s := range p.in(w) {
			from := len(j.records)
			if !p.live {
				p.tell("setup %s  %s", s.name, w.name)
			}
			if err := p.side(ctx, j, w, s); err != nil {
				return err
			}
			reference := secondary
			if p.b.kit.withC {
				reference = yardstick
			}
			if p.live {
				fmt.Fprintf(os.Stderr, "\r%s\r", strings.Repeat(" ", 110))
			}
			for _, r := range summarize(j.records[from:], reference) {
				printRow(os.Stdout, r)
			}
		}
	}
	return nil
}

// side measures one workload on all servers, side by side: each once, then each
// once more.
func (p *plan) side(ctx context.Context, j *journal, w workload, s setup) error {
	for rep := range *reps {
		if w.share > 0 {
			var err error
			if w.rate, err = p.pace(ctx, w, s); err != nil {
				return err
			}
		}
		for _, c := range p.of(w) {
			if p.live {
				p.tell("setup %s  %s: %s, run %d of %d", s.name, w.name, c.name, rep+1, *reps)
			}
			r := p.b.measure(ctx, c, w, s)
			// Once more if something else took the machine meanwhile.
			if r.disturbed() && r.Error == "" && !*quick && ctx.Err() == nil {
				if again := p.b.measure(ctx, c, w, s); again.Others < r.Others {
					r = again
				}
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.Rep = rep
			if err := j.add(r); err != nil {
				return err
			}
			p.done += p.takes(w)
		}
	}
	return nil
}

// pace is the rate for a workload: its share of what the server on package net
// answers when it is kept busy, in the same setup and just before. All servers get
// the same load, then, and one that can do less than the others shows it.
func (p *plan) pace(ctx context.Context, w workload, s setup) (float64, error) {
	busy := w
	busy.share, busy.rate = 0, 0 // what it was in the run before is no limit
	r := p.b.measure(ctx, pick(secondary, false)[0], busy, s)
	if r.Error != "" {
		return 0, fmt.Errorf("%s: %s", secondary, r.Error)
	}
	return w.share * r.PerSecond, ctx.Err()
}
