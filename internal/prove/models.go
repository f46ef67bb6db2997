package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// models is row 16: spin looks at every state of the models in models/, each of
// which says what in the code it models. Each is also given the bugs that it
// names (#ifdef BUG...), which have to be found: else its claims say nothing.
func models(p *proof) {
	for _, tool := range []string{"spin", "cc"} {
		if _, err := exec.LookPath(tool); err != nil {
			p.skip("%s is not installed", tool)
		}
	}
	files, err := filepath.Glob(filepath.Join(p.root(), "internal/prove/models/*.pml"))
	p.must(err)
	var held []string
	bugs := 0
	for _, file := range files {
		source, err := os.ReadFile(file)
		p.must(err)
		name := strings.TrimSuffix(filepath.Base(file), ".pml")
		states, errs, err := modelCheck(file, "")
		p.must(err)
		p.check(errs == "0", "%s: a claim does not hold", name)
		held = append(held, fmt.Sprintf("%s (%s states)", name, states))
		for _, bug := range regexp.MustCompile(`(?m)^#ifdef (BUG\w*)`).FindAllStringSubmatch(string(source), -1) {
			_, errs, err := modelCheck(file, bug[1])
			p.must(err)
			p.check(errs != "0", "%s: %s is not found", name, bug[1])
			bugs++
		}
	}
	p.check(len(files) > 0 && bugs >= len(files), "%d models, %d bugs", len(files), bugs)
	p.measured("every claim holds in every state of %s; %d seeded bugs found", strings.Join(held, ", "), bugs)
}

// modelCheck checks one model whole, and returns the numbers of its states and
// of the errors found.
func modelCheck(file, bug string) (states, errs string, err error) {
	dir, err := os.MkdirTemp("", "prove")
	if err != nil {
		return "", "", err
	}
	defer os.RemoveAll(dir)
	generate := []string{"spin", "-a", file}
	if bug != "" {
		generate = []string{"spin", "-D" + bug, "-a", file}
	}
	var out []byte
	for _, line := range [][]string{generate, {"cc", "-O1", "-w", "-DSAFETY", "-o", "pan", "pan.c"}, {"./pan", "-m1000000"}} {
		cmd := exec.Command(line[0], line[1:]...)
		cmd.Dir = dir
		if out, err = cmd.CombinedOutput(); err != nil {
			return "", "", fmt.Errorf("%s: %w: %s", line[0], err, out)
		}
	}
	found := regexp.MustCompile(`(?s)errors: (\d+).*?(\d+) states, stored`).FindSubmatch(out)
	if found == nil || strings.Contains(string(out), "max search depth too small") {
		return "", "", fmt.Errorf("spin says %s", out)
	}
	return string(found[2]), string(found[1]), nil
}
