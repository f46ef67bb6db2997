package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// mutants is row 17: each patch in mutants/ puts one bug into the library, and
// the tests of the package must fail with it. The bug is in a copy of the file
// that only the build sees (go build -overlay), so that nothing in the checkout
// changes.
func mutants(p *proof) {
	root := p.root()
	patches, err := filepath.Glob(filepath.Join(root, "internal/prove/mutants/*.patch"))
	p.must(err)
	patches = patches[:max(1, min(len(patches), p.n(len(patches))))]
	dir, err := os.MkdirTemp("", "prove")
	p.must(err)
	defer os.RemoveAll(dir)
	caught, missed := 0, []string(nil)
	for _, file := range patches {
		name := strings.TrimSuffix(filepath.Base(file), ".patch")
		overlay, err := mutate(root, file, dir)
		p.must(err)
		begun := time.Now()
		failed, how := testMutant(root, overlay)
		if p.say("%s: %s after %v", name, how, time.Since(begun).Round(time.Second)); failed {
			caught++
		} else {
			missed = append(missed, name)
		}
	}
	p.measured("%d of %d seeded bugs caught by go test .", caught, len(patches))
	p.check(len(missed) == 0, "missed: %s", strings.Join(missed, ", "))
}

// testMutant runs the package's tests. A test that hangs fails too, within two
// minutes. A bug that does not compile is none.
func testMutant(root, overlay string) (failed bool, how string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "go", "-C", root, "build", "-overlay", overlay, ".").CombinedOutput(); err != nil {
		return false, "does not compile: " + string(out)
	}
	out, err := exec.CommandContext(ctx, "go", "-C", root, "test", "-count=1", "-failfast", "-timeout", "2m", "-overlay", overlay, ".").CombinedOutput()
	if err == nil {
		return false, "NOT caught"
	}
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "--- FAIL") || strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") {
			return true, "caught: " + line
		}
	}
	return true, "caught"
}

// mutate applies a patch to copies of its files in dir and returns the file that
// tells the go command of them.
func mutate(root, patch, dir string) (overlay string, err error) {
	text, err := os.ReadFile(patch)
	if err != nil {
		return "", err
	}
	replace := make(map[string]string)
	for part := range strings.SplitSeq("\n"+string(text), "\n--- a/") {
		name, rest, ok := strings.Cut(part, "\n")
		if !ok || !strings.HasPrefix(rest, "+++ b/") {
			continue // what stands before the first file
		}
		file := filepath.Join(root, filepath.FromSlash(name))
		source, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		mutated, err := applyHunks(string(source), rest)
		if err != nil {
			return "", fmt.Errorf("%s: %s: %w", filepath.Base(patch), name, err)
		}
		copied := filepath.Join(dir, strings.TrimSuffix(filepath.Base(patch), ".patch")+"-"+filepath.Base(file))
		if err := os.WriteFile(copied, []byte(mutated), 0o600); err != nil {
			return "", err
		}
		replace[file] = copied
	}
	if len(replace) == 0 {
		return "", fmt.Errorf("%s changes no file", patch)
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay = filepath.Join(dir, filepath.Base(patch)+".json")
	return overlay, os.WriteFile(overlay, b, 0o600)
}

// applyHunks applies the hunks of one file by their text alone, so that patches
// live on when lines move. What a hunk replaces must be there exactly once.
func applyHunks(source, hunks string) (string, error) {
	for i, hunk := range strings.Split(hunks, "\n@@")[1:] {
		lines := strings.Split(strings.TrimSuffix(hunk, "\n"), "\n")[1:]
		var before, after []string
		for _, line := range lines {
			switch {
			case line == "":
				before, after = append(before, ""), append(after, "") // an editor has cut the space
			case line[0] == '-':
				before = append(before, line[1:])
			case line[0] == '+':
				after = append(after, line[1:])
			case line[0] == ' ':
				before, after = append(before, line[1:]), append(after, line[1:])
			}
		}
		if slices.Equal(before, after) {
			return "", errors.New("a hunk that changes nothing")
		}
		text := func(lines []string) string { return "\n" + strings.Join(append(lines, ""), "\n") }
		old := text(before)
		if n := strings.Count(source, old); n != 1 {
			return "", fmt.Errorf("what hunk %d replaces is there %d times, not once; the code has changed, so write the patch anew", i+1, n)
		}
		source = strings.Replace(source, old, text(after), 1)
	}
	return source, nil
}
