package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// root is the directory of the library's module.
func (p *proof) root() string {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/sockhub/sockhub").Output()
	if err != nil {
		p.skip("the go command does not find the module (%v): run this in its directory", err)
	}
	return strings.TrimSpace(string(out))
}

// goTest runs go test in a directory of the module, shows how far it is, and
// fails the row if a test fails. each, if not nil, gets every line.
func (p *proof) goTest(dir string, limit time.Duration, each func(line string), args ...string) (passed bool) {
	first := []string{"test", "-count=1"}
	if !contains(args, "-fuzz") {
		first = append(first, "-timeout", limit.String()) // before any flag of ours, behind which it would be ours too
	}
	return p.goRun(dir, limit, each, append(first, args...)...)
}

// goRun runs the go command, which is in the table if it fails.
func (p *proof) goRun(dir string, limit time.Duration, each func(line string), args ...string) (passed bool) {
	p.say("go %s", strings.Join(args, " "))
	ctx, cancel := context.WithTimeout(context.Background(), limit+time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = filepath.Join(p.root(), dir)
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.StdoutPipe()
	p.must(err)
	cmd.Stderr = cmd.Stdout
	p.must(cmd.Start())
	var tail []string
	begun, shown := time.Now(), time.Now()
	for in := bufio.NewScanner(out); in.Scan(); {
		line := in.Text()
		if each != nil {
			each(line)
		}
		if tail = append(tail, line); len(tail) > 30 {
			tail = tail[1:]
		}
		if time.Since(shown) > 10*time.Second {
			p.say("%s", line)
			shown = time.Now()
		}
	}
	if err := cmd.Wait(); err != nil {
		p.say("%s", strings.Join(tail, "\n"))
		p.fail("go %s: %v after %v", strings.Join(args, " "), err, time.Since(begun).Round(time.Second))
		return false
	}
	return true
}

func contains(args []string, flag string) bool {
	for _, a := range args {
		if a == flag || strings.HasPrefix(a, flag+"=") {
			return true
		}
	}
	return false
}

// ---- row 1 ----

var fuzzExecs = regexp.MustCompile(`^fuzz: elapsed: .*execs: (\d+) `)

// fuzz is row 1. It fuzzes each target until it has run so many inputs, with
// the corpus in testdata/fuzz and what earlier runs on this machine have left in
// Go's cache.
func fuzz(p *proof) {
	dir, err := os.MkdirTemp("", "prove")
	p.must(err)
	defer os.RemoveAll(dir)
	for _, target := range []struct {
		dir, name string
		execs     int
	}{
		{".", "FuzzDecoder", 100_000_000},
		{".", "FuzzHandshake", 2_000_000},
		{".", "FuzzConnection", 2_000_000},
		{".", "FuzzCIDRAgreesWithNetip", 8_000_000},
		{".", "FuzzPeerAddr", 8_000_000},
		{"internal/proxyproto", "FuzzParse", 4_000_000},
	} {
		n, done := p.n(target.execs), 0
		begun := time.Now()
		// The slowest that was seen is 2,000 a second.
		limit := time.Duration(n/1000)*time.Second + time.Minute
		// Minimizing what is new takes a minute each time, if it may, and runs nothing that counts.
		args := []string{"-run", "^$", "-fuzz", "^" + target.name + "$", "-fuzztime", fmt.Sprint(n, "x"), "-fuzzminimizetime", "1s"}
		if target.name == "FuzzDecoder" {
			overlay, err := decoderAlone(p.root(), dir)
			p.must(err)
			args = append(args, "-overlay", overlay)
		}
		ok := p.goTest(target.dir, limit, func(line string) {
			if m := fuzzExecs.FindStringSubmatch(line); m != nil {
				done, _ = strconv.Atoi(m[1])
			}
		}, append(args, ".")...)
		p.measured("%s: %d executions in %v, %s", target.name, done, time.Since(begun).Round(time.Second), passText(ok))
		p.check(done >= n, "%s: ran %d times, not %d", target.name, done, n)
	}
	if p.scale < 1 {
		p.measured("of 100 M, 2 M, 2 M, 8 M, 8 M, 4 M")
	}
}

// decoderAlone writes, into dir, an overlay for the go command in which the package is its
// decoder and the test of that. The fuzzer looks at the coverage of everything
// that is linked after each input, of net and of crypto too, which takes it longer
// than the input: alone, the decoder is tried three times as often.
func decoderAlone(root, dir string) (overlay string, err error) {
	rest := filepath.Join(dir, "rest.go")
	if err := os.WriteFile(rest, []byte(`package sockhub

import "sync/atomic"

const readChunk = 16 << 10

type Budget struct{ lent atomic.Int64 }

func (*Budget) lend(int) bool { return false }

type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return "panic" }
`), 0o600); err != nil {
		return "", err
	}
	files, err := filepath.Glob(filepath.Join(root, "*.go"))
	if err != nil {
		return "", err
	}
	replace := map[string]string{filepath.Join(root, "rest.go"): rest}
	for _, f := range files {
		if name := filepath.Base(f); name != "frame.go" && name != "frame_test.go" {
			replace[f] = "" // is not there
		}
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay = filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, text, 0o600)
}

func passText(ok bool) string {
	if ok {
		return "no failure"
	}
	return "FAILED"
}

// golden is row 2.
func golden(p *proof) {
	var passed, failed int
	p.goTest(".", 10*time.Minute, func(line string) {
		switch {
		case strings.HasPrefix(line, "    --- PASS"):
			passed++
		case strings.HasPrefix(line, "    --- FAIL"):
			failed++
		}
	}, "-v", "-run", "^TestTranscriptsAreSpokenOnEverySocket$", "-transcripts", ".")
	p.measured("%d of %d replays of %d transcripts passed", passed, passed+failed, (passed+failed)/10)
	p.check(passed >= 2000, "fewer than 200 on 5 kinds of sockets in 2 ways")
}

// ---- row 6, its part in memory; row 10; row 20; row 12; row 14 ----

// faults is row 6.
func faults(p *proof) {
	n := p.n(200_000)
	begun := time.Now()
	ok := p.goTest(".", 2*time.Hour, nil, "-run", "^TestReportsBalanceUnderFaults$", "-seeds", strconv.Itoa(n), "-seeds.from", p.from(), ".")
	p.measured("%d connections in memory, each with faults of its own: %s in %v", n, passText(ok), time.Since(begun).Round(time.Second))
	p.deep("faults", p.n(2000))
}

// deep runs a command of the nested module, which says what it has measured.
func (p *proof) deep(what string, n int) {
	p.goRun("internal/prove/deep", 2*time.Hour, func(line string) {
		if text, ok := strings.CutPrefix(line, "MEASURED "); ok {
			p.measured("%s", text)
		} else if text, ok := strings.CutPrefix(line, "FAIL "); ok {
			p.fail("%s", text)
		}
	}, "run", ".", what, strconv.Itoa(n), strconv.FormatUint(p.seed, 10))
}

// schedules is row 10.
func schedules(p *proof) {
	for _, test := range []string{"TestRandomSchedules", "TestEveryCallInEveryState"} {
		n := p.n(100_000)
		begun := time.Now()
		ok := p.goTest(".", 2*time.Hour, nil, "-run", "^"+test+"$", "-schedules", strconv.Itoa(n), "-schedules.from", p.from(), ".")
		p.measured("%s, %d schedules: %s in %v", test, n, passText(ok), time.Since(begun).Round(time.Second))
	}
}

// races is row 20.
func races(p *proof) {
	count := p.n(20)
	begun := time.Now()
	ok := true
	for range count { // and not -count: each has processes of its own
		ok = p.goTest(".", time.Hour, nil, "-race", "-cpu", "1,2,4", "-shuffle", "on", "./...") && ok
	}
	p.measured("go test -race -cpu 1,2,4 -shuffle=on ./..., %d times: %s in %v", count, passText(ok), time.Since(begun).Round(time.Second))
}

// stalePaths is row 12.
func stalePaths(p *proof) {
	n := p.n(10_000)
	ok := p.goTest("internal/unixsock", time.Hour, nil, "-run", "Start|WhatIsNo", "-rounds", strconv.Itoa(n), ".")
	p.measured("%d races of three processes, %d of goroutines, %d between starting and closing: %s; a file or a link at the path in a tenth of them", n, n, n, passText(ok))
}

// killedSharer is row 14.
func killedSharer(p *proof) {
	n := p.n(60)
	begun := time.Now()
	ok := p.goTest(".", time.Hour, nil, "-run", "^TestAKilledProcessTakesNothingFromThoseThatShareItsPort$", "-count", strconv.Itoa(n), ".")
	p.measured("a process killed %d times while messages were under way: %s in %v", n, passText(ok), time.Since(begun).Round(time.Second))
}
