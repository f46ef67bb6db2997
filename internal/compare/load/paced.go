//go:build linux

package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// paced measures messages that are sent at a rate, whatever comes back: see pace
// in c/messages.c. A sleep here ends up to a millisecond late, and that counts
// as the servers' latency.
func (l *load) paced() {
	for _, c := range l.conns {
		go func() { check(c.answers()) }()
	}
	var number int
	next, random := time.Now(), rand.New(rand.NewPCG(1, 1))
	pace := func(until time.Time) {
		for ; next.Before(until); number++ {
			time.Sleep(time.Until(next))
			check(l.conns[number%len(l.conns)].due(next))
			next = next.Add(seconds(-math.Log(1-random.Float64()) / *rate))
		}
	}
	start := time.Now()
	pace(start.Add(seconds(*warm)))
	for l.lacking() > 0 && time.Since(start) < patience {
		pace(next.Add(10 * time.Millisecond))
	}
	l.begin()
	pace(next.Add(seconds(*dur)))
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		msgs, _ := l.totals()
		if msgs == uint64(number) {
			break
		}
		if time.Now().After(end) {
			check(fmt.Errorf("%d of %d messages have no answer", uint64(number)-msgs, number))
		}
	}
	l.end(nil)
	l.percentiles()
}

// due sends a message that should have left at this moment.
func (c *conn) due(at time.Time) error {
	select {
	case c.dueAt <- at:
	default:
		return fmt.Errorf("too late: %d messages of one connection have no answer at %.0f a second", late, *rate)
	}
	if err := c.put(); err != nil {
		return err
	}
	return c.w.Flush()
}

// answers reads what comes.
func (c *conn) answers() error {
	for number := uint64(0); ; number++ {
		if err := c.expect(number); err != nil {
			return err
		}
		if at := <-c.dueAt; measuring.Load() {
			c.lasted(time.Since(at))
		}
	}
}
