package sockhub_test

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestReadmeShowsTheFirstPrograms: its Go blocks are files that compile.
func TestReadmeShowsTheFirstPrograms(t *testing.T) {
	const dir = "internal/examples/first/"
	blocks := goBlocks(readFile(t, "README.md"))
	var want []string
	for _, name := range []string{dir + "server/main.go", dir + "client/main.go"} {
		text := readFile(t, name)
		if n := strings.Count(text, "\n"); n > 25 {
			t.Errorf("%s has %d lines, too many for a first program", name, n)
		}
		want = append(want, text)
	}
	if diff := cmp.Diff(want, blocks); diff != "" {
		t.Errorf("README.md and the programs differ (-program +README)\n%s", diff)
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(text), "\r\n", "\n")
}

// goBlocks are the code blocks in Go of a Markdown text.
func goBlocks(text string) (blocks []string) {
	for {
		_, rest, ok := strings.Cut(text, "```go\n")
		if !ok {
			return blocks
		}
		var block string
		block, text, _ = strings.Cut(rest, "```\n")
		blocks = append(blocks, block)
	}
}
