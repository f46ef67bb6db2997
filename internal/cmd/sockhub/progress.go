package main

import (
	"fmt"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// progress shows how far a transfer has come while it runs: on a terminal on
// one line that changes, elsewhere on a new line now and then.
type progress struct {
	out      io.Writer
	terminal bool

	messages, bytes atomic.Uint64 // arrived at their final place

	stop chan struct{}
	done sync.WaitGroup
}

func newProgress(out io.Writer) *progress {
	return &progress{out: out, terminal: isTerminal(out)}
}

// add counts a message that has arrived. It is called for every one.
func (p *progress) add(messages, bytes uint64) {
	p.messages.Add(messages)
	p.bytes.Add(bytes)
}

// begin shows the progress of what is called what, until end.
func (p *progress) begin(what string) {
	p.messages.Store(0)
	p.bytes.Store(0)
	every, before, after := time.Second, "  ", "\n"
	if p.terminal {
		every, before, after = 100*time.Millisecond, "\r", clearLine
	}
	p.stop = make(chan struct{})
	start := time.Now()
	p.done.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				fmt.Fprintf(p.out, "%s%s: %s messages, %s in %s%s", before, what,
					grouped(p.messages.Load()), bytesText(p.bytes.Load()), seconds(time.Since(start)), after)
			case <-p.stop:
				if p.terminal {
					fmt.Fprint(p.out, "\r", clearLine)
				}
				return
			}
		}
	})
}

const clearLine = "\x1b[K" // to its end

func (p *progress) end() {
	close(p.stop)
	p.done.Wait()
}

// grouped is a number with commas, as 1,234,567.
func grouped(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// rounded is a number of three digits or so and zeros: what a measurement is
// worth.
func rounded(x float64) string {
	unit := uint64(1)
	for x/float64(unit) >= 1000 {
		unit *= 10
	}
	return grouped(uint64(x/float64(unit)+0.5) * unit)
}

// bytesText is a number of bytes to three digits, in the unit in which it is
// short.
func bytesText(n uint64) string {
	x, units := float64(n), []string{"B", "KiB", "MiB", "GiB"}
	for x >= 999.5 && len(units) > 1 {
		x, units = x/1024, units[1:]
	}
	if x >= 999.5 {
		return rounded(x) + " " + units[0]
	}
	return fmt.Sprintf("%.3g %s", x, units[0])
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

func messageRate(n uint64, took time.Duration) string {
	return rounded(float64(n)/took.Seconds()) + " messages/s"
}

func byteRate(n uint64, took time.Duration) string {
	return bytesText(uint64(float64(n)/took.Seconds())) + "/s"
}
