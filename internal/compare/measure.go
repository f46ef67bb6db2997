package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// record is one run of one workload on one server, a line of the results.
type record struct {
	Time     time.Time `json:"time"`
	Setup    string    `json:"setup"`
	Workload string    `json:"workload"`
	Group    string    `json:"group"`
	Server   string    `json:"server"`
	Rep      int       `json:"rep"`
	Unit     string    `json:"unit"`

	Cost      float64 `json:"cost"`              // in Unit: server CPU of one message, memory of one idle connection, or P99
	Offered   float64 `json:"offered,omitempty"` // messages per second, at a rate
	PerSecond float64 `json:"per_second"`        // messages
	Messages  float64 `json:"messages"`          // in the measured time
	Seconds   float64 `json:"seconds"`           // that it took
	ServerCPU float64 `json:"server_cpu"`        // seconds
	LoadCPU   float64 `json:"load_cpu"`          // seconds
	P50       float64 `json:"p50_us"`            // of a message; of a round where there are rounds
	P99       float64 `json:"p99_us"`
	P999      float64 `json:"p999_us"`
	PeakMB    float64 `json:"peak_mb"` // resident memory of the server
	Others    float64 `json:"others"`  // CPUs that were busy with something else meanwhile
	Error     string  `json:"error,omitempty"`
}

// disturbed is how many CPUs may be busy with something else.
const disturbed = 0.15

func (r *record) disturbed() bool { return r.Others > disturbed }

// loadResult is what a load prints.
type loadResult struct {
	Messages, Seconds, CPU float64
	LoadCPU                float64 `json:"load_cpu"`
	P50                    float64 `json:"p50_us"`
	P99                    float64 `json:"p99_us"`
	P999                   float64 `json:"p999_us"`
	Mistakes               int
	Mistake                string
	Lacking                int // connections that got nothing whole
}

// bench is what all runs have in common.
type bench struct {
	kit  *kit
	warm time.Duration
	time time.Duration
}

// measure does one run. Whatever goes wrong is in the record's Error.
func (b *bench) measure(ctx context.Context, c contender, w workload, s setup) record {
	r := record{Time: time.Now(), Setup: s.name, Workload: w.name, Group: w.group, Server: c.name, Unit: w.unit()}
	ctx, cancel := context.WithTimeout(ctx, b.warm+b.time+90*time.Second)
	defer cancel()
	if err := b.into(ctx, &r, c, w, s); err != nil {
		r.Error = err.Error()
	}
	return r
}

func (b *bench) into(ctx context.Context, r *record, c contender, w workload, s setup) (err error) {
	srvs, addr, err := b.kit.serve(ctx, c, w, s)
	if err != nil {
		return err
	}
	var pids []int
	for _, srv := range srvs {
		pids = append(pids, srv.cmd.Process.Pid)
	}
	start, machine, server := time.Now(), machineCPU(), processCPU(pids...)
	var load float64
	switch w.load {
	case loadIdle:
		err = b.idle(ctx, r, srvs[0], addr, w, s)
	case loadWrk:
		load, err = b.wrk(ctx, r, pids[0], addr, w, s)
	default:
		load, err = b.drive(ctx, r, pids, addr, w, s)
	}
	r.Others = max(0, (machineCPU()-machine-(processCPU(pids...)-server)-load)/time.Since(start).Seconds())
	for _, pid := range pids {
		_, peak := memory(pid)
		r.PeakMB += float64(peak) / (1 << 20)
	}
	if r.Messages > 0 {
		r.Cost = r.ServerCPU / r.Messages * 1e6
		r.PerSecond = r.Messages / r.Seconds
	}
	if w.slowest() {
		r.Cost = r.P99
	}
	return errors.Join(err, endAll(srvs))
}

// drive is a run of our own load.
func (b *bench) drive(ctx context.Context, r *record, pids []int, addr string, w workload, s setup) (cpu float64, err error) {
	args := append(w.args(), "-addr", addr, "-pid", strings.Trim(strings.ReplaceAll(fmt.Sprint(pids), " ", ","), "[]"),
		"-warm", fmt.Sprint(b.warm.Seconds()), "-time", fmt.Sprint(b.time.Seconds()), "-rate", fmt.Sprint(w.rate))
	r.Offered = w.rate
	l, err := startChild(ctx, s.load, nil, b.kit.load(w), args...)
	if err != nil {
		return 0, err
	}
	text, err := l.line()
	if err != nil {
		return 0, err
	}
	var res loadResult
	err = json.Unmarshal([]byte(text), &res)
	err = errors.Join(err, l.end(nil))
	r.Messages, r.Seconds, r.P50, r.P99, r.P999 = res.Messages, res.Seconds, res.P50, res.P99, res.P999
	r.ServerCPU, r.LoadCPU = res.CPU, res.LoadCPU
	switch {
	case res.Mistakes > 0:
		err = fmt.Errorf("%d mistakes, the first on %s", res.Mistakes, res.Mistake)
	case err == nil && res.Lacking > 0:
		err = fmt.Errorf("%d of %d connections got nothing whole", res.Lacking, w.conns)
	}
	return (l.cmd.ProcessState.UserTime() + l.cmd.ProcessState.SystemTime()).Seconds(), err
}

// idle holds connections that have been used once: some, and then more of them
// if what these add is to be measured.
func (b *bench) idle(ctx context.Context, r *record, srv *child, addr string, w workload, s setup) (err error) {
	memoryNow := func() (int64, error) {
		if err := srv.free(); err != nil {
			return 0, err
		}
		anonymous, _ := memory(srv.cmd.Process.Pid)
		return anonymous, nil
	}
	steps := []int{w.conns, w.more}
	steps[0] = min(w.conns, maxFiles()-w.more-100)
	if w.more == 0 {
		steps = steps[:1]
	}
	var before, after int64
	if after, err = memoryNow(); err != nil {
		return err
	}
	for i, n := range steps {
		w.conns = n
		args := append(w.args(), "-addr", addr)
		if i > 0 && !w.unix { // the first address's ports may be used up, with what others left in TIME_WAIT
			args = append(args, "-from", "127.0.0.2")
		}
		l, e := startChild(ctx, s.load, nil, b.kit.load(w), args...)
		if e != nil {
			return e
		}
		if _, err = l.line(); err != nil {
			return err // it has ended
		}
		defer func() { err = errors.Join(err, l.end(nil)) }()
		before = after
		if after, err = memoryNow(); err != nil {
			return err
		}
	}
	r.Cost = float64(after-before) / float64(w.conns)
	return nil
}

var (
	wrkTotal   = regexp.MustCompile(`(\d+) requests in ([\d.]+)s`)
	wrkTrouble = regexp.MustCompile(`Socket errors:.*|Non-2xx.*`)
)

// wrk is a run of that program. It connects within the measured time, and
// compares nothing: it is here because everybody knows it.
func (b *bench) wrk(ctx context.Context, r *record, pid int, addr string, w workload, s setup) (cpu float64, err error) {
	d := max(1, int(b.time.Seconds()+0.5))
	before := processCPU(pid)
	l, err := startChild(ctx, s.load, nil, "wrk", "-t1", "-c", strconv.Itoa(w.conns), "-d", strconv.Itoa(d),
		"--timeout", "30s", fmt.Sprintf("http://%s/%d", addr, w.size))
	if err != nil {
		return 0, err
	}
	var text string
	for l.out.Scan() {
		text += l.out.Text() + "\n"
	}
	err = l.end(nil)
	r.ServerCPU = processCPU(pid) - before
	if m := wrkTotal.FindStringSubmatch(text); m != nil {
		r.Messages, _ = strconv.ParseFloat(m[1], 64)
		r.Seconds, _ = strconv.ParseFloat(m[2], 64)
	} else if err == nil {
		err = errors.New("wrk did not say how many requests there were")
	}
	if t := wrkTrouble.FindString(text); t != "" && err == nil {
		err = errors.New(t)
	}
	r.LoadCPU = (l.cmd.ProcessState.UserTime() + l.cmd.ProcessState.SystemTime()).Seconds()
	return r.LoadCPU, err
}
