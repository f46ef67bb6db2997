package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPicturesAreUpToDate: each is what its description says now.
func TestPicturesAreUpToDate(t *testing.T) {
	names, err := filepath.Glob("*.txt")
	if err != nil || len(names) == 0 {
		t.Fatal("no descriptions", err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		want, err := draw(bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n")))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := os.ReadFile(strings.TrimSuffix(name, ".txt") + ".svg")
		if err != nil || !bytes.Equal(bytes.ReplaceAll(got, []byte("\r\n"), []byte("\n")), want) {
			t.Errorf("%s was changed since its picture was made: go run ./internal/docs (%v)", name, err)
		}
		for d := xml.NewDecoder(bytes.NewReader(want)); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
}

func TestMistakesInDescriptions(t *testing.T) {
	for _, text := range []string{"circle a", "box a 0 0 1", "box a x 0 1 1 work a", "frame 1", "arrow a", "arrow a b"} {
		if _, err := draw([]byte(text)); err == nil || !strings.HasPrefix(err.Error(), "line 1: ") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
