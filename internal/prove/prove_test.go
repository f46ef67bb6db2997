package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Seeded bugs that no longer apply prove nothing. If this fails, the code that a
// patch in mutants/ changes was rewritten: put the same bug into the new code.
func TestEverySeededBugApplies(t *testing.T) {
	patches, err := filepath.Glob("mutants/*.patch")
	if err != nil || len(patches) < 20 {
		t.Fatalf("%d patches, %v", len(patches), err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, patch := range patches {
		if _, err := mutate(root, patch, t.TempDir()); err != nil {
			t.Error(err)
		}
	}
}

// Row 1 tries the decoder in a package of its own. If this fails, frame.go or its test has
// begun to use something of the rest: give decoderAlone a stand-in for it.
func TestTheDecoderBuildsAlone(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := decoderAlone(root, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "go", "-C", root, "test", "-count=1", "-overlay", overlay, "-run", "^FuzzDecoder$", ".").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestHunks(t *testing.T) {
	const source = "one\ntwo\nthree\nfour\n"
	got, err := applyHunks("\n"+source, "+++ b/x\n@@ -1 +1 @@\n one\n-two\n+2\n@@ -3 +3 @@\n-four\n")
	if want := "\none\n2\nthree\n"; err != nil || got != want {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := applyHunks("\n"+source+source, "+++ b/x\n@@ -1 +1 @@\n one\n-two\n+2\n"); err == nil {
		t.Error("a hunk that fits twice is applied")
	}
}

func TestPageKeepsOtherRowsAndTheText(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.md")
	s := settings{seed: 7, scale: 1}
	enterRow := func(n int, o outcome) {
		t.Helper()
		o.row = &row{n: n, want: "much"}
		if err := enter(page, &o, s); err != nil {
			t.Fatal(err)
		}
	}
	enterRow(4, outcome{Measured: []string{"some", "a|b"}, Took: time.Minute})
	enterRow(12, outcome{Skipped: "no strace"})
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(page, append(text, "\nNotes.\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	enterRow(4, outcome{Measured: []string{"more"}, Failed: []string{"not enough"}})
	enterRow(2, outcome{})
	for _, part := range []settings{{seed: 1, scale: 0.3}, {seed: 2, scale: 0.5}, {seed: 3, scale: 0.3}, {seed: 2, scale: 0.4}} {
		s = part
		enterRow(5, outcome{Measured: []string{fmt.Sprint(part.seed, " ", part.scale)}})
	}
	text, err = os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(text)) {
		if rowOf(line) > 0 || strings.HasPrefix(line, "Notes") {
			cells := strings.Split(line, " | ")
			got = append(got, strings.TrimSpace(strings.Join(cells[:min(4, len(cells))], " | ")))
		}
	}
	want := []string{"| 2 | much |  | pass", "| 4 | much | more | FAIL: not enough",
		"| 5 | much | 1 0.3 | pass", "| 5 | much | 3 0.3 | pass", "| 5 | much | 2 0.4 | pass", "| 12 | much |  | skipped: no strace", "Notes."}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestChoose(t *testing.T) {
	if all, err := choose(""); err != nil || len(all) != len(rows) {
		t.Errorf("%d rows, %v", len(all), err)
	}
	if some, err := choose("4, 3"); err != nil || len(some) != 2 || some[0].n != 4 {
		t.Errorf("%v, %v", some, err)
	}
	if _, err := choose("99"); err == nil {
		t.Error("row 99 is chosen")
	}
}

func TestRowEndsWithItsOutcome(t *testing.T) {
	for _, test := range []struct {
		run  func(*proof)
		want string
	}{
		{func(p *proof) { p.measured("1") }, "pass"},
		{func(p *proof) { p.check(false, "too small") }, "FAIL: too small"},
		{func(p *proof) { p.skip("no root"); panic("goes on") }, "skipped: no root"},
		{func(p *proof) { panic("boom") }, "FAIL: panic: boom"},
	} {
		r := &row{run: test.run}
		if got := r.prove(1, 1).verdict(); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}
