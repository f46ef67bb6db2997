package main

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCheckFile(t *testing.T) {
	const src = `package p

func Bare() {}

// Documented has a comment.
func Documented() {}

//go:noinline
func Directive() {}

func hidden() {}

type T struct {
	io.Reader
	A    int // said here
	B, C int
	d    int
}

func (t *T) M()    {}
func (g G[K]) M()  {}
func (h hider) M() {}

// Grouped are documented together.
const (
	One = iota
	Two
)

var Loose, tight int

// The comment of a group of types documents none of them.
type (
	I interface{ Do() }
	// J is documented.
	J interface {
		// Do does.
		Do()
	}
)
`
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "p.go", src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"p.go:3:6: exported Bare has no doc comment",
		"p.go:9:6: exported Directive has no doc comment",
		"p.go:13:6: exported T has no doc comment",
		"p.go:16:2: exported T.B has no doc comment",
		"p.go:16:5: exported T.C has no doc comment",
		"p.go:20:13: exported T.M has no doc comment",
		"p.go:21:15: exported G.M has no doc comment",
		"p.go:30:5: exported Loose has no doc comment",
		"p.go:34:2: exported I has no doc comment",
		"p.go:34:15: exported I.Do has no doc comment",
	}
	if diff := cmp.Diff(want, checkFile(fset, f)); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
}

func TestCheckDirRefusesADirectoryWithoutAPackage(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "p_test.go"), []byte("package p\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if found, err := checkDir(dir); err == nil {
		t.Errorf("checkDir = %q, nil; want an error", found)
	}
}
