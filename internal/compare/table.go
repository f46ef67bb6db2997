package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// printRow prints all that is known of one workload.
func printRow(w io.Writer, r *row) {
	fmt.Fprintf(w, "setup %s  %s\n", r.setup, r.workload)
	t := table{left: 1}
	t.add("  ", "server", r.unit, "ratio", "spread", "msgs/s", "p50 µs", "p99 µs", "p99.9 µs", "cores", "peak MB", "")
	for _, name := range names([]*row{r}) {
		c := r.cells[name]
		if c.cost == 0 {
			t.add("  ", name, "FAILED")
			continue
		}
		spread, note := "", ""
		if c.runs > 1 && c.most > c.least {
			spread = fmt.Sprintf("%s-%s", number(c.least), number(c.most))
		}
		if c.noisy {
			note = "~"
		}
		t.add("  ", name, number(c.cost), number(c.ratio), spread, number(c.perSecond), number(c.p50), number(c.p99), number(c.p999), number(c.cores), number(c.peakMB), note)
	}
	t.print(w)
	for _, name := range names([]*row{r}) {
		for _, e := range slices.Compact(r.cells[name].errors) {
			fmt.Fprintf(w, "  %s: %s\n", name, strings.ReplaceAll(e, "\n", "; "))
		}
	}
}

// printAll prints one line for each workload: the reference's cost, and the
// ratio of each server to it, ± half of its spread.
func printAll(w io.Writer, rows []*row, reference string) {
	all := slices.DeleteFunc(names(rows), func(n string) bool { return n == reference })
	fmt.Fprintf(w, "Server CPU time of a message (or what the unit says) on %s, and as many times that on the others;\n", reference)
	fmt.Fprintln(w, "medians, ± half of the spread.  A: server and load pinned to a CPU each, GOMAXPROCS=1.  B: nothing pinned, GOMAXPROCS=2.")
	if reference != secondary {
		fmt.Fprintf(w, "Where %s does not do it (TLS, several processes), to %s.\n", reference, secondary)
	}
	fmt.Fprintln(w, "~ something else was busy in most runs   ! some runs failed   * quoted, measured elsewhere")
	for _, c := range contenders {
		fmt.Fprintf(w, "  %-10s %s\n", c.name, c.what)
	}
	t := table{left: 2}
	t.add(append([]string{"", "workload", reference, ""}, all...)...)
	for _, r := range rows {
		if growing := r.group == groupConns || r.group == groupSizes; growing { // has a table of its own
			continue
		}
		line := []string{r.setup, r.workload, "", r.unit}
		if c := r.cells[reference]; c != nil {
			line[2] = number(c.cost)
		}
		for _, name := range all {
			line = append(line, ratio(r.cells[name]))
		}
		t.add(line...)
	}
	t.print(w)
	printFigures(w, rows, "Latency in µs: p50 / p99 / p99.9. tail: from the moment at which a message should have been sent, the same rate for all;\nfair: of connections beside one that floods.",
		func(c *cell) string { return fmt.Sprintf("%s / %s / %s", number(c.p50), number(c.p99), number(c.p999)) }, groupTail, groupFair)
	printFigures(w, rows, "CPUs that the server used / its largest resident memory in MB, while it gave large answers.",
		func(c *cell) string { return fmt.Sprintf("%s / %s", number(c.cores), number(c.peakMB)) }, groupLarge)
	printGrowth(w, rows)
}

// printFigures prints what else is to be seen of the workloads of some groups.
func printFigures(w io.Writer, rows []*row, title string, figures func(*cell) string, groups ...string) {
	rows = slices.DeleteFunc(slices.Clone(rows), func(r *row) bool { return !slices.Contains(groups, r.group) })
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s\n", title)
	all := names(rows)
	t := table{left: 1}
	t.add(append([]string{"", "workload"}, all...)...)
	for _, r := range rows {
		line := []string{r.setup, r.workload}
		for _, name := range all {
			switch c := r.cells[name]; {
			case c == nil:
				line = append(line, "")
			case c.cost == 0:
				line = append(line, "FAILED")
			default:
				line = append(line, figures(c))
			}
		}
		t.add(line...)
	}
	t.print(w)
}

// ratio is a cell in short.
func ratio(c *cell) string {
	switch {
	case c == nil:
		return ""
	case c.cost == 0:
		return "FAILED"
	case c.ratio == 0:
		return "-"
	}
	s := number(c.ratio)
	if c.runs > 1 {
		s += "±" + strings.TrimPrefix(fmt.Sprintf("%.2f", (c.most-c.least)/2), "0")
	}
	if c.noisy {
		s += "~"
	}
	if len(c.errors) > 0 {
		s += "!"
	}
	return s
}

// number has about three digits.
func number(x float64) string {
	switch a := math.Abs(x); {
	case x == 0:
		return ""
	case a >= 1e6:
		return fmt.Sprintf("%.2fM", x/1e6)
	case a >= 1e4:
		return fmt.Sprintf("%.0fk", x/1e3)
	case a >= 100:
		return fmt.Sprintf("%.0f", x)
	case a >= 10:
		return fmt.Sprintf("%.1f", x)
	case a >= 0.1:
		return fmt.Sprintf("%.2f", x)
	}
	return fmt.Sprintf("%.4f", x)
}

// table aligns its columns: the first few to the left, the others to the right.
// A width is what is seen, which bytes are not.
type table struct {
	left  int // columns after the first
	lines [][]string
}

func (t *table) add(cells ...string) { t.lines = append(t.lines, cells) }

func (t *table) print(w io.Writer) {
	var widths []int
	for _, l := range t.lines {
		for i, c := range l {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	for _, l := range t.lines {
		var b strings.Builder
		for i, c := range l {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c))
			if i < t.left+1 {
				b.WriteString(c + pad + "  ")
			} else {
				b.WriteString(pad + c + "  ")
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}
