package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sockhub/sockhub"
)

// checks are the rows of the table at the end.
type checks struct{ rows []check }

// check is one thing that was looked at.
type check struct {
	what    string
	counted string        // what it was looked at on; printed, as rate and took are, if it passed
	rate    string        // "": none was measured
	took    time.Duration // 0: was not measured
	err     error         // nil: pass
	skipped bool          // could not be looked at here; counted says why
}

func (c *checks) add(row check)               { c.rows = append(c.rows, row) }
func (c *checks) skip(what, why string)       { c.add(check{what: what, counted: why, skipped: true}) }
func (c *checks) fail(what string, err error) { c.add(check{what: what, err: err}) }

// passed reports whether nothing has failed.
func (c *checks) passed() bool {
	for _, row := range c.rows {
		if row.err != nil {
			return false
		}
	}
	return len(c.rows) > 0
}

// print writes the table, and below it the errors in full.
func (c *checks) print(w io.Writer) {
	var table strings.Builder
	t := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	for _, row := range c.rows {
		columns := []string{"pass", row.what, row.counted, "", row.rate}
		if row.took > 0 {
			columns[3] = seconds(row.took)
		}
		switch {
		case row.skipped:
			columns[0] = "skip"
		case row.err != nil: // what was meant to be counted was not
			columns = []string{"FAIL", row.what, "", "", ""}
		}
		fmt.Fprintln(t, strings.Join(columns, "\t"))
	}
	t.Flush()
	for line := range strings.Lines(table.String()) {
		fmt.Fprintln(w, strings.TrimRight(line, " \n"))
	}
	for _, row := range c.rows {
		if row.err != nil {
			fmt.Fprintf(w, "FAIL %s: %v\n", row.what, row.err)
		}
	}
}

// checkReport checks that nothing of a connection's output is unaccounted for.
func checkReport(r sockhub.Report) error {
	var cut uint64
	if r.Cut {
		cut = 1
	}
	if r.AcceptedMessages != r.WrittenMessages+r.UnsentMessages+r.DroppedMessages+cut {
		return fmt.Errorf("the report does not add up in messages: %+v", r)
	}
	if r.AcceptedBytes != r.WrittenBytes+r.UnsentBytes+r.DroppedBytes+r.CutSize {
		return fmt.Errorf("the report does not add up in bytes: %+v", r)
	}
	return nil
}

// checkLost checks the report of a connection that broke while messages of one
// kind were sent, n of which were accepted: it has to give all of them back
// that were not written, and nothing else.
func checkLost(r sockhub.Report, kind byte, n int) error {
	if err := checkReport(r); err != nil {
		return err
	}
	if r.AcceptedMessages != uint64(n) {
		return fmt.Errorf("%d messages were accepted, and %d reported", n, r.AcceptedMessages)
	}
	next := tally{Messages: r.WrittenMessages}
	if r.Cut {
		if err := next.check(r.CutMessage()); err != nil {
			return fmt.Errorf("the cut message: %w", err)
		}
	}
	for msg := range r.Unsent() {
		if msg[0] != kind {
			return fmt.Errorf("a message of kind %q was given back, and none was sent", msg[0])
		}
		if err := next.check(msg); err != nil {
			return fmt.Errorf("given back: %w", err)
		}
	}
	if next.Messages != uint64(n) {
		return fmt.Errorf("%d messages were accepted, and those given back end at %d", n, next.Messages)
	}
	return nil
}

// balance is a report as a sentence.
func balance(r sockhub.Report) string {
	cut := 0
	if r.Cut {
		cut = 1
	}
	s := fmt.Sprintf("accepted %s = written %s + unsent %s + dropped %s + cut %d",
		grouped(r.AcceptedMessages), grouped(r.WrittenMessages), grouped(r.UnsentMessages), grouped(r.DroppedMessages), cut)
	if r.Unacked > 0 {
		s += fmt.Sprintf(" (of the written, %s not acknowledged)", bytesText(uint64(r.Unacked)))
	}
	return s
}
