// Command cicheck reports exported identifiers without a doc comment, in the
// packages whose directories it is given, and exits with 1 if there are any:
//
//	go run ./internal/cicheck .
//
// It reads all files whatever their build constraints, so that one run covers
// every platform, and needs no package to compile. Linters that are at hand
// check the form of the comments that exist, not that they exist.
package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	code := 0
	for _, dir := range os.Args[1:] {
		found, err := checkDir(dir)
		if err != nil {
			found = append(found, err.Error())
		}
		for _, f := range found {
			fmt.Println(f)
			code = 1
		}
	}
	os.Exit(code)
}

// checkDir checks the package in dir. A directory without one is an error, not
// a package without findings.
func checkDir(dir string) (found []string, err error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return strings.HasSuffix(n, "_test.go") })
	if len(names) == 0 {
		return nil, fmt.Errorf("%s: no Go files to check", dir)
	}
	fset := token.NewFileSet()
	for _, name := range names {
		f, err := parser.ParseFile(fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return found, err
		}
		found = append(found, checkFile(fset, f)...)
	}
	return found, nil
}

// checkFile returns the findings in one file, as "file:line:column: what".
func checkFile(fset *token.FileSet, f *ast.File) (found []string) {
	// need reports names that are exported, unless one of the comments that
	// would document them is there.
	need := func(prefix string, names []*ast.Ident, docs ...*ast.CommentGroup) {
		for _, n := range names {
			if n.IsExported() && !slices.ContainsFunc(docs, hasText) {
				found = append(found, fmt.Sprintf("%s: exported %s%s has no doc comment", fset.Position(n.Pos()), prefix, n.Name))
			}
		}
	}
	for _, decl := range f.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			recv := receiver(d)
			if recv == "" {
				need("", []*ast.Ident{d.Name}, d.Doc)
			} else if ast.IsExported(recv) {
				need(recv+".", []*ast.Ident{d.Name}, d.Doc)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.ValueSpec: // the comment of a group documents its members
					need("", s.Names, d.Doc, s.Doc, s.Comment)
				case *ast.TypeSpec:
					docs := []*ast.CommentGroup{s.Doc}
					if !d.Lparen.IsValid() {
						docs = append(docs, d.Doc)
					}
					need("", []*ast.Ident{s.Name}, docs...)
					if s.Name.IsExported() {
						for _, m := range members(s.Type) {
							need(s.Name.Name+".", m.Names, m.Doc, m.Comment)
						}
					}
				}
			}
		}
	}
	return found
}

func hasText(c *ast.CommentGroup) bool { return strings.TrimSpace(c.Text()) != "" }

// receiver returns the name of a method's receiver type, "" for a function.
func receiver(d *ast.FuncDecl) string {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return ""
	}
	t := d.Recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.IndexListExpr:
			t = x.X
		case *ast.Ident:
			return x.Name
		default:
			return ""
		}
	}
}

// members returns the fields of a struct or the methods of an interface.
// Embedded ones have no names, and so need no comment.
func members(t ast.Expr) []*ast.Field {
	switch x := t.(type) {
	case *ast.StructType:
		return x.Fields.List
	case *ast.InterfaceType:
		return x.Methods.List
	}
	return nil
}
