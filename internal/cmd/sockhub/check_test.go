package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sockhub/sockhub"
)

func TestTable(t *testing.T) {
	var c checks
	if c.passed() {
		t.Error("passed with nothing checked")
	}
	c.add(check{what: "transfer", counted: "12 messages", took: 1234 * time.Millisecond, rate: "10 messages/s"})
	c.skip("abstract", "not here")
	if !c.passed() {
		t.Error("not passed, with nothing wrong")
	}
	c.add(check{what: "end", counted: "5 ends", took: time.Second, rate: "5 ends/s", err: errors.New("it was too late")})
	if c.passed() {
		t.Error("passed, with something wrong")
	}
	var out bytes.Buffer
	c.print(&out)
	want := strings.TrimPrefix(`
pass  transfer  12 messages  1.23 s  10 messages/s
skip  abstract  not here
FAIL  end
FAIL end: it was too late
`, "\n")
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestReportHasToAddUp(t *testing.T) {
	good := sockhub.Report{
		AcceptedMessages: 10, WrittenMessages: 4, UnsentMessages: 3, DroppedMessages: 2, Cut: true,
		AcceptedBytes: 100, WrittenBytes: 40, UnsentBytes: 30, DroppedBytes: 20, CutSize: 10, CutWritten: 3,
	}
	if err := checkReport(good); err != nil {
		t.Error(err)
	}
	if got, want := balance(good), "accepted 10 = written 4 + unsent 3 + dropped 2 + cut 1"; got != want {
		t.Errorf("balance is %q, not %q", got, want)
	}
	messages, size := good, good
	messages.UnsentMessages++
	size.UnsentBytes++
	for _, bad := range []sockhub.Report{messages, size} {
		if checkReport(bad) == nil {
			t.Errorf("passed: %+v", bad)
		}
	}
	if checkLost(good, small, 10) == nil {
		t.Error("a report passed that gives back fewer messages than it counts")
	}
}

func TestNumbersForPeople(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{grouped(0), "0"},
		{grouped(999), "999"},
		{grouped(1000), "1,000"},
		{grouped(1234567), "1,234,567"},
		{rounded(12.4), "12"},
		{rounded(999.7), "1,000"},
		{rounded(1_864_321), "1,860,000"},
		{bytesText(0), "0 B"},
		{bytesText(999), "999 B"},
		{bytesText(1000), "0.977 KiB"},
		{bytesText(256 << 20), "256 MiB"},
		{bytesText(1 << 30), "1 GiB"},
		{bytesText(5 << 40), "5,120 GiB"},
		{messageRate(500, 2*time.Second), "250 messages/s"},
		{byteRate(3<<30, 2*time.Second), "1.5 GiB/s"},
	} {
		if tt.got != tt.want {
			t.Errorf("%q, not %q", tt.got, tt.want)
		}
	}
}

func TestProgressWhereThereIsNoTerminal(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out)
	p.begin("test")
	p.add(3, 4<<10)
	p.end()
	if out.Len() > 0 {
		t.Errorf("printed %q, in no time", &out)
	}
	if p.messages.Load() != 3 || p.bytes.Load() != 4<<10 {
		t.Errorf("counted %d messages and %d bytes", p.messages.Load(), p.bytes.Load())
	}
}
