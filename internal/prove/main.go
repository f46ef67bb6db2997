package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// settings are what the command line says.
type settings struct {
	list  bool
	rows  string
	seed  uint64
	scale float64
	out   string

	inner bool // this process is one row
}

func main() {
	// A peer of a row: the rest of the line is its own.
	if len(os.Args) > 2 && os.Args[1] == "-as" {
		os.Exit(runRole(os.Args[2], os.Args[3:]))
	}
	var s settings
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), "usage: go run ./internal/prove -row numbers | -all [flags]\n\nProves, by measuring, what is promised about faults, load and attacks. Without\n-row or -all it lists the rows.\n\nFlags:\n")
		flag.PrintDefaults()
	}
	all := flag.Bool("all", false, "all rows, which take hours; see -list")
	flag.BoolVar(&s.list, "list", false, "list the rows and how long they take, and run nothing")
	flag.StringVar(&s.rows, "row", "", "only these rows, by `number`, with commas between them")
	flag.Uint64Var(&s.seed, "seed", 1, "where everything random begins")
	flag.Float64Var(&s.scale, "scale", 1, "how much of each row: 0.1 is a tenth of its length or number")
	flag.StringVar(&s.out, "o", "", "enter the results in this Markdown `file`")
	flag.BoolVar(&s.inner, "inner", false, "be the process of one row, and print its outcome as JSON")
	flag.Parse()
	chosen, err := choose(s.rows)
	if err != nil || flag.NArg() > 0 || !(s.scale > 0) {
		fmt.Fprintln(os.Stderr, "prove:", err)
		flag.Usage()
		os.Exit(2)
	}
	switch {
	case s.list, s.rows == "" && !*all:
		list(os.Stdout, s.scale)
	case s.inner:
		o := chosen[0].prove(s.seed, s.scale)
		if err := json.NewEncoder(os.Stdout).Encode(o); err != nil {
			fmt.Fprintln(os.Stderr, "prove:", err)
			os.Exit(1)
		}
	default:
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		ok := runAll(ctx, chosen, s)
		stop()
		if !ok {
			os.Exit(1)
		}
	}
}

// choose finds rows by their numbers; all if there are none.
func choose(numbers string) (chosen []*row, err error) {
	if numbers == "" {
		return rows, nil
	}
	for word := range strings.SplitSeq(numbers, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(word))
		i := slices.IndexFunc(rows, func(r *row) bool { return r.n == n })
		if err != nil || i < 0 {
			return nil, fmt.Errorf("no such row: %q", word)
		}
		chosen = append(chosen, rows[i])
	}
	return chosen, nil
}

// runAll runs rows one after the other, prints the table of them, and reports
// whether none has failed.
func runAll(ctx context.Context, chosen []*row, s settings) bool {
	var total time.Duration
	for _, r := range chosen {
		total += r.about(s.scale)
	}
	fmt.Fprintf(os.Stderr, "%d rows, about %v in all\n", len(chosen), total)
	var all []*outcome
	ok := true
	for _, r := range chosen {
		if ctx.Err() != nil {
			break
		}
		fmt.Fprintf(os.Stderr, "\nrow %d: %s\n  to reach: %s\n  takes about %v\n", r.n, r.what, r.want, r.about(s.scale))
		o := runInner(ctx, r, s)
		o.row = r
		fmt.Fprintf(os.Stderr, "  %s after %v\n", o.verdict(), o.Took.Round(time.Second))
		all = append(all, o)
		ok = ok && len(o.Failed) == 0
		if s.out != "" {
			// After each row, so that what was measured outlives a power cut.
			if err := enter(s.out, o, s); err != nil {
				fmt.Fprintln(os.Stderr, "prove:", err)
				ok = false
			}
		}
	}
	printTable(os.Stdout, all)
	return ok
}

// runInner runs one row in a process of its own. Whatever happens to that, the
// row has an outcome.
func runInner(ctx context.Context, r *row, s settings) *outcome {
	begun := time.Now()
	failed := func(format string, args ...any) *outcome {
		return &outcome{Failed: []string{fmt.Sprintf(format, args...)}, Took: time.Since(begun)}
	}
	exe, err := os.Executable()
	if err != nil {
		return failed("%v", err)
	}
	// The limit is for what hangs.
	limit := 4*r.about(s.scale) + 5*time.Minute
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, exe, "-inner", "-row", strconv.Itoa(r.n),
		"-seed", strconv.FormatUint(s.seed, 10), "-scale", strconv.FormatFloat(s.scale, 'g', -1, 64))
	// Interrupted, it ends itself, and with it its peers: they see the end of
	// their input.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	o := new(outcome)
	if jerr := json.Unmarshal(out, o); jerr != nil {
		if ctx.Err() == context.DeadlineExceeded {
			return failed("not done after %v", limit)
		}
		return failed("the row's process ended without an outcome: %v", err)
	}
	return o
}

// list prints the rows.
func list(w io.Writer, scale float64) {
	var t table
	t.add("row", "takes about", "what", "to reach")
	for _, r := range rows {
		t.add(strconv.Itoa(r.n), r.about(scale).String(), r.what, r.want)
	}
	t.print(w)
}
