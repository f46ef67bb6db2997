// Command compare measures what a message costs on sockhub and on what one
// would use instead: package net, other libraries, and a server in C that does
// as little as the system allows.
//
//	cd internal/compare && go run . -quick
//
// It builds all of them, runs them one after another, again and again, so that
// what changes on the machine meanwhile changes for all, and prints a table.
// What counts is the CPU time of the server, divided by the messages, as a ratio
// to the server in C in the same round: this hardly depends on the machine, and
// rates do. The load compares every byte that comes back.
//
// It wants Linux and two CPUs with little else to do, and, for the server in C,
// a C compiler. All traffic stays on the loopback interface.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

var (
	quick   = flag.Bool("quick", false, "a few workloads, for a short time, in setup A: about three minutes")
	only    = flag.String("only", "", "regular `expression`: workloads whose name it matches")
	setups  = flag.String("setups", "", "comma-separated: A pins server and load to a CPU each, B pins nothing (default A,B)")
	servers = flag.String("servers", "", "comma-separated `names` of servers; all by default (see -list)")
	reps    = flag.Int("reps", 3, "runs of each")
	dur     = flag.Duration("dur", time.Second, "measured time of a run")
	output  = flag.String("o", "", "append results to this `file`, as lines of JSON")
	from    = flag.String("from", "", "measure nothing: show the results in this `file`")
	plots   = flag.String("plots", "", "draw plots, as SVG, in this `directory`")
	list    = flag.Bool("list", false, "list workloads and servers")
)

func main() {
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: go run . [flags]\n\nMeasures what a message costs on sockhub and on what one would use instead.\n\nFlags:")
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context) error {
	ws, err := chosen()
	if err != nil {
		return err
	}
	if *list {
		for _, w := range ws {
			fmt.Printf("%-10s %s\n", w.group, w.name)
		}
		fmt.Println()
		for _, c := range contenders {
			fmt.Printf("%-10s %s\n", c.name, c.what)
		}
		return nil
	}
	var records []record
	if *from != "" {
		records, err = load(*from)
	} else {
		records, err = measureAll(ctx, ws)
	}
	if len(records) == 0 {
		return err
	}
	reference := yardstick
	if !slices.ContainsFunc(records, func(r record) bool { return r.Server == yardstick }) {
		reference = secondary
	}
	rows := summarize(records, reference)
	fmt.Println()
	printAll(os.Stdout, rows, reference)
	if *plots != "" && err == nil {
		err = drawAll(*plots, rows, reference)
	}
	return err
}

// chosen are the workloads that the flags ask for.
func chosen() ([]workload, error) {
	re, err := regexp.Compile(*only)
	if err != nil {
		return nil, err
	}
	ws := slices.DeleteFunc(workloads(), func(w workload) bool {
		return !re.MatchString(w.name) || *quick && !w.quick
	})
	if len(ws) == 0 {
		return nil, fmt.Errorf("no workload matches %q; see -list", *only)
	}
	return ws, nil
}

// load reads results that were written before.
func load(file string) (records []record, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for d := json.NewDecoder(f); d.More(); {
		var r record
		if err := d.Decode(&r); err != nil {
			return records, fmt.Errorf("%s: %w", file, err)
		}
		if r.Server != "" { // else it describes the machine
			records = append(records, r)
		}
	}
	return records, nil
}

// measureAll measures, and prints each workload when it is done. After an
// interrupt it returns what there is.
func measureAll(ctx context.Context, ws []workload) (records []record, err error) {
	if err := supported(); err != nil {
		return nil, err
	}
	b := &bench{time: *dur, warm: min(*dur/3, 300*time.Millisecond)}
	which := *setups
	if *quick {
		if which == "" {
			which = "A"
		}
		b.time, b.warm = 200*time.Millisecond, 50*time.Millisecond
	} else if which == "" {
		which = "A,B"
	}
	var ss []setup
	for _, name := range strings.Split(which, ",") {
		s, err := newSetup(name)
		if err != nil {
			return nil, err
		}
		ss = append(ss, s)
	}
	dir, err := os.MkdirTemp("", "compare")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	cs := pick(*servers, compiler() != "")
	if len(cs) == 0 {
		return nil, fmt.Errorf("no server is named %q; see -list", *servers)
	}
	fmt.Fprintln(os.Stderr, system())
	fmt.Fprintln(os.Stderr, "building the servers and the load ...")
	if b.kit, err = buildAll(ctx, dir, compiler(), cs); err != nil {
		return nil, err
	}
	if !b.kit.withC {
		fmt.Fprintln(os.Stderr, "no C compiler: ratios are to", secondary, "and the load is written in Go")
	}
	j := &journal{}
	if *output != "" {
		if j.file, err = os.OpenFile(*output, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644); err != nil {
			return nil, err
		}
		defer j.file.Close()
		if err := j.write(map[string]any{"time": time.Now(), "machine": system(), "dur": b.time.String()}); err != nil {
			return nil, err
		}
	}
	err = newPlan(b, ws, ss, cs).run(ctx, j)
	return j.records, err
}

// journal keeps the records, and writes them down as they come.
type journal struct {
	file    *os.File
	records []record
}

func (j *journal) add(r record) error {
	j.records = append(j.records, r)
	return j.write(r)
}

func (j *journal) write(v any) error {
	if j.file == nil {
		return nil
	}
	return json.NewEncoder(j.file).Encode(v)
}
