package sockhub_test

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestReadmeShowsTheFirstPrograms: its first Go blocks are files that compile.
func TestReadmeShowsTheFirstPrograms(t *testing.T) {
	const dir = "internal/examples/first/"
	blocks := goBlocks(readFile(t, "README.md"))
	var want []string
	for _, name := range []string{dir + "server/main.go", dir + "client/main.go"} {
		text := readFile(t, name)
		if n := strings.Count(text, "\n"); n > 30 {
			t.Errorf("%s has %d lines, too many for a first program", name, n)
		}
		want = append(want, text)
	}
	if diff := cmp.Diff(want, blocks[:min(2, len(blocks))]); diff != "" {
		t.Errorf("README.md and the programs differ (-program +README)\n%s", diff)
	}
}

// TestReadmeShowsWhatIsTested: its other Go blocks are in a file of tests that
// run them.
func TestReadmeShowsWhatIsTested(t *testing.T) {
	code := readFile(t, "readme_snippets_test.go")
	for _, block := range goBlocks(readFile(t, "README.md"))[2:] {
		if !strings.Contains(code, "\n"+block) {
			t.Errorf("this is not in readme_snippets_test.go as it stands in README.md:\n%s", block)
		}
	}
}

// TestLinksOfThePages: every relative link leads to a file, and every one
// inside a page to a heading.
func TestLinksOfThePages(t *testing.T) {
	for _, page := range []string{"README.md", "CHANGELOG.md", ".github/SECURITY.md"} {
		text := readFile(t, page)
		anchors := make(map[string]bool)
		for line := range strings.Lines(text) {
			if heading, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
				anchors[anchor(heading)] = true
			}
		}
		for _, match := range regexp.MustCompile(`\]\(([^)]*)\)`).FindAllStringSubmatch(text, -1) {
			to := match[1]
			switch {
			case strings.Contains(to, "://"):
			case strings.HasPrefix(to, "#"):
				if !anchors[to[1:]] {
					t.Errorf("%s: no heading for %s", page, to)
				}
			default:
				if _, err := os.Stat(filepath.FromSlash(path.Join(path.Dir(page), to))); err != nil {
					t.Errorf("%s: %v", page, err)
				}
			}
		}
	}
}

// anchor is the name by which a heading can be linked to, as GitHub makes it.
func anchor(heading string) string {
	heading = strings.ToLower(strings.TrimSpace(heading))
	heading = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(heading, "")
	return strings.ReplaceAll(heading, " ", "-")
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
