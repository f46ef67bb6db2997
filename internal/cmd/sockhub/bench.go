package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sockhub/sockhub"
)

var benchCommand = &command{
	name:     "bench",
	operands: " endpoint",
	about: `It puts load on a hub that echoes messages, such as 'sockhub listen -echo -print
none', and measures how long each takes to come back. Every answer is compared
with what was sent.

Without -rate the loop is closed: every connection has -depth messages on their
way, and sends the next one when one has come back. That finds the highest rate.
With -rate the loop is open: messages leave at their time, whatever has come back,
and latency counts from the moment at which a message should have left, so that
an answer that is late makes those behind it late too, as it would for users.

` + endpointHelp,
	examples: `  sockhub listen -echo -print none tcp://127.0.0.1:7000 &
  sockhub bench tcp://127.0.0.1:7000
  sockhub bench -conns 1000 -depth 16 -size 512 tcp://127.0.0.1:7000
  sockhub bench -rate 20000 -duration 30s tcp://127.0.0.1:7000
  sockhub bench -size 1M -conns 4 -json unix:///tmp/hub.sock
`,
	prepare: func(flags *flag.FlagSet) func(context.Context, streams, []string) error {
		b := &bench{size: 64}
		flags.IntVar(&b.conns, "conns", 50, "`number` of connections")
		flags.Var(&b.size, "size", "`bytes` of each message")
		flags.IntVar(&b.depth, "depth", 1, "`number` of messages under way on each connection")
		flags.Float64Var(&b.rate, "rate", 0, "send this `number` of messages per second, over all connections (default: each when one has come back)")
		durationVar(flags, &b.duration, "duration", 5*time.Second, "`time` to send for")
		durationVar(flags, &b.timeout, "timeout", sockhub.DefaultDialTimeout, "`time` that connecting may take, and then waiting for the last answers")
		flags.StringVar(&b.name, "name", "", "give names, which begin with this `text`")
		flags.BoolVar(&b.json, "json", false, "print the result as one line of JSON")
		b.speech.define(flags)
		b.tls.defineClient(flags)
		return b.run
	},
}

// bench is one run of the bench command.
type bench struct {
	conns, depth      int
	size              byteSize
	rate              float64
	duration, timeout time.Duration
	name              string
	json              bool
	speech
	tls tlsFlags
}

func (b *bench) run(ctx context.Context, s streams, operands []string) error {
	all, err := endpoints(operands)
	if err != nil {
		return err
	}
	e := all[0]
	switch {
	case len(all) > 1:
		return usagef("one endpoint, please")
	case b.conns < 1 || b.depth < 1 || b.rate < 0 || b.duration <= 0 || b.timeout <= 0:
		return usagef("-conns, -depth, -duration and -timeout have to be positive")
	case e.packets() && b.size < numberSize:
		return usagef("datagrams of less than %d bytes have no room for a number, by which to know one that was lost", numberSize)
	}
	b.maxMessage = max(b.maxMessage, b.size)
	o := sockhub.DialOptions{Timeout: b.timeout, ReuseBuffers: true}
	if o.Framing, o.Mode, err = b.resolve(b.name != ""); err != nil {
		return err
	}
	if o.TLS, err = b.tls.client(e); err != nil {
		return err
	}
	l := &load{
		size: int(b.size), depth: b.depth, open: b.rate > 0, packets: e.packets(), patience: b.timeout,
		fill: noiseOf(int(b.size) - numberSize), latencies: new(histogram), progress: newProgress(s.err),
	}
	// What is under way is the user's choice; the hub's limits are not to
	// change it.
	hubOptions := &sockhub.Options{OutboundLimit: -1, InboundLimit: -1, MemoryLimit: -1, MaxMessage: int64(b.maxMessage), MaxConns: b.conns}
	hubOptions.ConnOutbound = max(sockhub.DefaultConnOutbound, 2*int64(b.depth)*(int64(b.size)+sockhub.MessageCharge))
	hub, err := sockhub.New(context.Background(), hubOptions)
	if err != nil {
		return err
	}
	defer hub.Close()
	conns, failed, err := b.connect(ctx, l, hub, e, o)
	if err != nil {
		return err
	}
	l.progress.begin("bench")
	took := b.drive(ctx, l, conns)
	l.progress.end()
	for _, c := range conns {
		c.finish()
	}
	grace, stop := context.WithTimeout(context.Background(), 2*time.Second)
	defer stop()
	hub.Shutdown(grace)
	return b.result(l, e, len(conns), failed, took).print(s, b.json, l.firstErr)
}

// noiseOf is n bytes that do not compress.
func noiseOf(n int) []byte {
	fill := make([]byte, 0, max(n, 0))
	for len(fill) < n {
		fill = append(fill, noise[:min(len(noise), n-len(fill))]...)
	}
	return fill
}

// connect dials all connections, some at a time. Its error is that of the first
// if there is none.
func (b *bench) connect(ctx context.Context, l *load, hub *sockhub.Hub, e endpoint, o sockhub.DialOptions) (conns []*loadConn, failed int, err error) {
	all, errs := make([]*loadConn, b.conns), make([]error, b.conns)
	var group errgroup.Group
	group.SetLimit(32)
	for i := range all {
		group.Go(func() error {
			with := o
			if b.name != "" {
				with.Name = fmt.Sprint(b.name, i)
			}
			all[i], errs[i] = l.connect(ctx, hub, e, with)
			return nil
		})
	}
	group.Wait()
	for i, c := range all {
		if errs[i] == nil {
			conns = append(conns, c)
			continue
		}
		if failed++; failed == 1 {
			l.fail(fmt.Errorf("connecting: %w", errs[i]))
		}
	}
	if len(conns) == 0 {
		return nil, failed, l.firstErr
	}
	return conns, failed, nil
}

// drive sends for the duration, waits for what is under way, and returns how
// long there was sent.
func (b *bench) drive(ctx context.Context, l *load, conns []*loadConn) time.Duration {
	// What is due is sent also if that is late.
	late, cancelLate := context.WithTimeout(ctx, b.duration+b.timeout)
	defer cancelLate()
	ctx, cancel := context.WithTimeout(ctx, b.duration)
	defer cancel()
	l.start = time.Now()
	var group errgroup.Group
	if l.open {
		pacers := min(len(conns), runtime.GOMAXPROCS(0))
		for i := range pacers {
			group.Go(func() error { b.pace(late, l, conns, i, pacers); return nil })
		}
	} else {
		for _, c := range conns {
			if err := c.burst(); err != nil {
				l.fail(err)
			}
		}
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil && int(l.gone.Load()) < len(conns) {
		select {
		case <-ctx.Done():
		case <-tick.C:
			if l.packets {
				for _, c := range conns {
					c.giveUp()
				}
			}
		}
	}
	l.stopped.Store(true)
	took := time.Since(l.start)
	group.Wait()
	tick.Reset(time.Millisecond)
	for over := time.Now().Add(b.timeout); l.inFlight.Load() > 0 && time.Now().Before(over); {
		<-tick.C
	}
	return took
}

// pace is one of the goroutines of an open loop: message k leaves at start +
// k/rate, on connection k modulo their number. Each connection is one
// goroutine's, so that its messages leave in the order of their numbers. What
// is due and cannot be sent until ctx ends is lost.
func (b *bench) pace(ctx context.Context, l *load, conns []*loadConn, i, pacers int) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for k := 0; ; k++ {
		if k%len(conns)%pacers != i {
			continue
		}
		due := time.Duration(float64(k) / b.rate * float64(time.Second))
		if due >= b.duration {
			return
		}
		if wait := due - time.Since(l.start); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return // interrupted: it is not due yet
			}
		}
		conns[k%len(conns)].send(ctx, due)
	}
}

// result is what is printed in the end.
type result struct {
	Endpoint string  `json:"endpoint"`
	Conns    int     `json:"conns"`
	Size     int     `json:"size"`
	Depth    int     `json:"depth,omitempty"` // of a closed loop
	Rate     float64 `json:"rate,omitempty"`  // of an open loop, as it was asked for
	Seconds  float64 `json:"seconds"`
	Messages uint64  `json:"messages"` // that came back
	PerSec   float64 `json:"messages_per_second"`
	Latency  struct {
		P50  float64 `json:"p50"`
		P90  float64 `json:"p90"`
		P99  float64 `json:"p99"`
		P999 float64 `json:"p99.9"`
		Max  float64 `json:"max"`
	} `json:"latency_us"`
	Errors struct {
		Total        uint64 `json:"total"`
		Connect      uint64 `json:"connect"`      // connections that could not be made
		Disconnected uint64 `json:"disconnected"` // connections that ended by themselves
		Wrong        uint64 `json:"wrong"`        // answers that were not what was sent
		Lost         uint64 `json:"lost"`         // messages without an answer
		Late         uint64 `json:"late"`         // answers to messages that were given up
	} `json:"errors"`
}

func (b *bench) result(l *load, e endpoint, conns, failed int, took time.Duration) *result {
	r := &result{Endpoint: e.String(), Conns: conns, Size: l.size, Rate: b.rate, Messages: l.answered.Load()}
	if !l.open {
		r.Depth = l.depth
	}
	// Those that were under way at the end have come back later.
	r.Seconds = max(took, time.Duration(l.lastAnswer.Load())).Seconds()
	r.PerSec = math.Round(float64(r.Messages) / r.Seconds)
	q := l.latencies.quantiles(0.5, 0.9, 0.99, 0.999, 1)
	for i, to := range []*float64{&r.Latency.P50, &r.Latency.P90, &r.Latency.P99, &r.Latency.P999, &r.Latency.Max} {
		*to = math.Round(float64(q[i])/100) / 10
	}
	errs := &r.Errors
	errs.Connect, errs.Disconnected, errs.Wrong = uint64(failed), l.broken.Load(), l.wrong.Load()
	errs.Lost, errs.Late = l.lost.Load()+uint64(max(l.inFlight.Load(), 0)), l.late.Load()
	errs.Total = errs.Connect + errs.Disconnected + errs.Wrong + errs.Lost + errs.Late
	return r
}

// print prints the result. Its error is that something failed.
func (r *result) print(s streams, asJSON bool, first error) error {
	if asJSON {
		text, err := json.Marshal(r)
		if err != nil {
			return err
		}
		if _, err := s.out.Write(append(text, '\n')); err != nil {
			return err
		}
	} else if err := r.text(s.out); err != nil {
		return err
	}
	switch {
	case r.Errors.Total == 0 && r.Messages > 0:
		return nil
	case first != nil:
		return fmt.Errorf("%d errors; the first: %w", r.Errors.Total, first)
	case r.Messages == 0:
		return fmt.Errorf("nothing came back: does the other side echo?")
	}
	return fmt.Errorf("%d errors", r.Errors.Total)
}

func (r *result) text(w io.Writer) error {
	loop := fmt.Sprintf("closed loop of %d", r.Depth)
	if r.Depth == 0 {
		loop = fmt.Sprintf("open loop of %s messages/s", grouped(uint64(r.Rate)))
	}
	l, e := r.Latency, r.Errors
	_, err := fmt.Fprintf(w, `%s: %s connections, messages of %s, %s, %.2f s
messages  %s, %s/s, %s/s each way
latency   p50 %s, p90 %s, p99 %s, p99.9 %s, max %s
errors    %d
`, r.Endpoint, grouped(uint64(r.Conns)), bytesText(uint64(r.Size)), loop, r.Seconds,
		grouped(r.Messages), grouped(uint64(r.PerSec)), bytesText(uint64(r.PerSec*float64(r.Size))),
		micros(l.P50), micros(l.P90), micros(l.P99), micros(l.P999), micros(l.Max), e.Total)
	if err == nil && e.Total > 0 {
		_, err = fmt.Fprintf(w, "          connecting %d, disconnected %d, wrong answers %d, no answer %d, answers too late %d\n",
			e.Connect, e.Disconnected, e.Wrong, e.Lost, e.Late)
	}
	return err
}

// micros is a number of microseconds to three digits.
func micros(us float64) string {
	switch {
	case us < 1000:
		return fmt.Sprintf("%.3g µs", us)
	case us < 1e6:
		return fmt.Sprintf("%.3g ms", us/1e3)
	}
	return fmt.Sprintf("%.3g s", us/1e6)
}
