package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
)

// kit is where the programs are that were built.
type kit struct {
	dir   string
	withC bool // the yardstick, and the load in C
}

// sourceDir is the directory of this package's files.
func sourceDir() (string, error) {
	_, file, _, _ := runtime.Caller(0)
	for _, dir := range []string{filepath.Dir(file), "."} { // the first is no path if built with -trimpath
		if _, err := os.Stat(filepath.Join(dir, "c", "yardstick.c")); err == nil {
			return filepath.Abs(dir)
		}
	}
	return "", fmt.Errorf("start this in its own directory, internal/compare: it builds what is there")
}

// buildAll compiles the servers of these contenders and the load into dir. cc is
// a C compiler, or "" to do without.
func buildAll(ctx context.Context, dir, cc string, list []contender) (*kit, error) {
	src, err := sourceDir()
	if err != nil {
		return nil, err
	}
	k := &kit{dir: dir, withC: cc != ""}
	if k.withC {
		if err := run(ctx, filepath.Join(src, "c"), cc, "-O2", "-o", k.path("yardstick"), "yardstick.c"); err != nil {
			return nil, err
		}
		if err := run(ctx, filepath.Join(src, "c"), cc, "-O2", "-o", k.path(loadInC), "load.c", "messages.c", "http.c", "-lm"); err != nil {
			return nil, err
		}
	}
	packages := []string{"load", "servers/plain"} // open loops ask how much this can do
	for _, c := range list {
		if c.program != "yardstick" {
			packages = append(packages, "servers/"+c.program)
		}
	}
	slices.Sort(packages)
	for _, p := range slices.Compact(packages) {
		if err := run(ctx, src, "go", "build", "-o", k.path(filepath.Base(p)), "./"+p); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// The programs that drive servers.
const (
	loadInC  = "load-c"
	loadInGo = "load"
)

// load is the program that does a workload.
func (k *kit) load(w workload) string {
	if !k.withC {
		return k.path(loadInGo)
	}
	return k.path(w.program())
}

func (k *kit) path(program string) string { return filepath.Join(k.dir, program) }

// compiler is a C compiler, or "".
func compiler() string {
	for _, name := range []string{"gcc", "cc", "clang"} {
		if p, err := exec.LookPath(name); err == nil {
			return p
		}
	}
	return ""
}

func run(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd, err, out)
	}
	return nil
}
