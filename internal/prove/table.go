package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// table is text in aligned columns.
type table struct{ lines []string }

func (t *table) add(cells ...string) { t.lines = append(t.lines, strings.Join(cells, "\t")) }

func (t *table) print(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, line := range t.lines {
		fmt.Fprintln(tw, line)
	}
	tw.Flush()
}

// printTable writes what came of rows: a line for each figure.
func printTable(w io.Writer, all []*outcome) {
	var t table
	t.add("row", "outcome", "took", "to reach → measured")
	for _, o := range all {
		word, _, _ := strings.Cut(o.verdict(), ":")
		t.add(strconv.Itoa(o.row.n), word, o.Took.Round(time.Second).String(), o.row.want)
		for _, m := range o.Measured {
			t.add("", "", "", "→ "+m)
		}
		for _, f := range o.Failed {
			t.add("", "", "", "✗ "+f)
		}
		if o.Skipped != "" {
			t.add("", "", "", "– "+o.Skipped)
		}
	}
	fmt.Fprintln(w)
	t.print(w)
}

// Markers between which the page's table is kept. What stands before and
// behind is written by hand and stays.
const (
	tableBegins = "<!-- the table is written by the command -->"
	tableEnds   = "<!-- end of the table -->"
	tableHead   = "| row | to reach | measured | outcome | took | command |\n| --- | --- | --- | --- | --- | --- |"
)

// enter replaces the line of a row in the page, or adds it in its place. A part of
// a row leaves those with other seeds: together they may be the whole.
func enter(file string, o *outcome, s settings) error {
	old, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		old = []byte("# What was proved\n\n" + tableBegins + "\n" + tableHead + "\n" + tableEnds + "\n")
	} else if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(old), tableBegins+"\n")
	body, after, ok2 := strings.Cut(rest, tableEnds)
	if !ok || !ok2 {
		return fmt.Errorf("%s: no table to enter the row in", file)
	}
	var lines []string
	for line := range strings.Lines(body) {
		n := rowOf(line)
		otherPart := s.scale < 1 && isPart.MatchString(line) && !strings.Contains(line, fmt.Sprintf(" -seed %d ", s.seed))
		if n > 0 && (n != o.row.n || otherPart) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	lines = append(lines, markdown(o, s))
	slices.SortStableFunc(lines, func(a, b string) int { return rowOf(a) - rowOf(b) })
	text := before + tableBegins + "\n" + tableHead + "\n" + strings.Join(lines, "\n") + "\n" + tableEnds + after
	return os.WriteFile(file, []byte(text), 0o644)
}

// isPart matches the line of a row that ran with a scale below 1.
var isPart = regexp.MustCompile(` -scale 0\.`)

// rowOf is the number with which a line of the page's table begins, or 0.
func rowOf(line string) int {
	cells := strings.Split(line, "|")
	if len(cells) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(cells[1]))
	return n
}

// markdown is the page's line of a row.
func markdown(o *outcome, s settings) string {
	cell := func(texts ...string) string {
		text := strings.Join(texts, "<br>")
		return strings.NewReplacer("|", "\\|", "\n", " ").Replace(text)
	}
	command := fmt.Sprintf("`go run ./internal/prove -row %d -seed %d`", o.row.n, s.seed)
	if s.scale != 1 {
		command = strings.TrimSuffix(command, "`") + fmt.Sprintf(" -scale %g`", s.scale)
	}
	return fmt.Sprintf("| %d | %s | %s | %s | %v | %s, %s, %d CPUs |", o.row.n, cell(o.row.want), cell(o.Measured...), cell(o.verdict()),
		o.Took.Round(time.Second), command, runtime.Version(), runtime.NumCPU())
}
