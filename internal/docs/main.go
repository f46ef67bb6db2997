// Command docs makes the pictures of the documentation from their descriptions:
//
//	go run ./internal/docs
//
// It turns every .txt in its own directory into an .svg beside it; what a
// description can say stands at the top of dataflow.txt.
package main

import (
	"bufio"
	"bytes"
	"encoding/xml"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	log.SetFlags(0)
	const dir = "internal/docs"
	names, err := filepath.Glob(dir + "/*.txt")
	if err != nil || len(names) == 0 {
		log.Fatal("run it at the top of the repository: nothing in ", dir)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			log.Fatal(err)
		}
		picture, err := draw(text)
		if err != nil {
			log.Fatalf("%s: %v", name, err)
		}
		if err := os.WriteFile(strings.TrimSuffix(name, ".txt")+".svg", picture, 0o644); err != nil {
			log.Fatal(err)
		}
	}
}

// Measures of the grid, in pixels.
const (
	width, height = 136, 60 // of a cell
	gapX, gapY    = 60, 40  // between cells
	margin        = 28
	pitch         = 17 // of lines of text
)

// area is a rectangle.
type area struct{ x, y, w, h int }

// cells is the area of some cells of the grid.
func cells(column, row, columns, rows int) area {
	return area{
		margin + column*(width+gapX), margin + row*(height+gapY),
		columns*(width+gapX) - gapX, rows*(height+gapY) - gapY,
	}
}

func (a area) centreX() int { return a.x + a.w/2 }
func (a area) centreY() int { return a.y + a.h/2 }

// picture is what has been drawn.
type picture struct {
	frames, arrows, boxes bytes.Buffer // in the order in which they are painted
	at                    map[string]area
	right, bottom         int
}

// draw makes a picture from its description.
func draw(text []byte) ([]byte, error) {
	p := &picture{at: make(map[string]area)}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		if err := p.line(strings.TrimSpace(lines.Text())); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	var svg bytes.Buffer
	fmt.Fprintf(&svg, head, p.right+margin, p.bottom+margin)
	svg.Write(p.frames.Bytes())
	svg.Write(p.arrows.Bytes())
	svg.Write(p.boxes.Bytes())
	svg.WriteString("</svg>\n")
	return svg.Bytes(), lines.Err()
}

// head is the beginning of a picture. Its colours are to be read on a light
// page and on a dark one.
const head = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %[1]d %[2]d" width="%[1]d" height="%[2]d" font-family="sans-serif" font-size="13" text-anchor="middle">
<style>
rect { stroke: #57606a; rx: 6px }
text { fill: #1f2328 }
path { stroke: #57606a; fill: none; stroke-width: 1.5 }
marker path { fill: #57606a }
.small { font-size: 11px; fill: #57606a }
.frame { fill: none; stroke-dasharray: 4 4 }
.theirs { fill: #eaeef2 }
.work { fill: #ddf4ff }
.queue { fill: #fff8c5; rx: 24px }
.yours { fill: #dafbe1 }
@media (prefers-color-scheme: dark) {
rect, path { stroke: #9198a1 }
text { fill: #f0f6fc }
marker path, .small { fill: #9198a1 }
.theirs { fill: #262c36 }
.work { fill: #0c2d6b }
.queue { fill: #4b2900 }
.yours { fill: #033a16 }
}
</style>
<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto"><path d="M0 1L7 4L0 7Z"/></marker></defs>
`

func (p *picture) line(line string) error {
	words := strings.Fields(line)
	if len(words) == 0 || strings.HasPrefix(line, "#") {
		return nil
	}
	var name, kind string
	var column, row, columns, rows int
	switch words[0] {
	case "box":
		if _, err := fmt.Sscan(line[len("box"):], &name, &column, &row, &columns, &rows, &kind); err != nil {
			return err
		}
		a := cells(column, row, columns, rows)
		p.at[name] = a
		p.right, p.bottom = max(p.right, a.x+a.w), max(p.bottom, a.y+a.h)
		fmt.Fprintf(&p.boxes, "<rect class=%q x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/>\n", kind, a.x, a.y, a.w, a.h)
		texts := strings.Split(strings.Join(words[7:], " "), "|")
		for i, text := range texts {
			class := "small"
			if i == 0 {
				class = "name"
			}
			y := a.centreY() + 5 + pitch*(2*i-len(texts)+1)/2
			fmt.Fprintf(&p.boxes, "<text class=%q x=\"%d\" y=\"%d\">%s</text>\n", class, a.centreX(), y, escape(text))
		}
	case "frame":
		if _, err := fmt.Sscan(line[len("frame"):], &column, &row, &columns, &rows); err != nil {
			return err
		}
		a := cells(column, row, columns, rows)
		const out = 14
		fmt.Fprintf(&p.frames, "<rect class=\"frame\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/>\n", a.x-out, a.y-out, a.w+2*out, a.h+2*out)
		fmt.Fprintf(&p.frames, "<text class=\"small\" x=\"%d\" y=\"%d\">%s</text>\n", a.centreX(), a.y-out-3, escape(strings.Join(words[5:], " ")))
	case "arrow":
		if len(words) < 3 {
			return fmt.Errorf("an arrow needs two ends")
		}
		from, ok := p.at[words[1]]
		to, ok2 := p.at[words[2]]
		if !ok || !ok2 {
			return fmt.Errorf("no such box: %s or %s", words[1], words[2])
		}
		p.arrow(from, to, strings.Join(words[3:], " "))
	default:
		return fmt.Errorf("what is %q?", words[0])
	}
	return nil
}

// arrow draws a line: straight where the two stand beside or above each other,
// else down from the one and then across to the other.
func (p *picture) arrow(from, to area, text string) {
	var path string
	var x, y int // of the text
	left, right := max(from.x, to.x), min(from.x+from.w, to.x+to.w)
	top, bottom := max(from.y, to.y), min(from.y+from.h, to.y+to.h)
	switch {
	case top < bottom: // side by side
		y0 := (top + bottom) / 2
		x0, x1 := from.x+from.w, to.x
		if to.x < from.x {
			x0, x1 = from.x, to.x+to.w
		}
		path = fmt.Sprintf("M%d %dH%d", x0, y0, x1)
		x, y = (x0+x1)/2, y0-6
	case left < right: // one above the other
		x0 := (left + right) / 2
		y0, y1 := from.y+from.h, to.y
		if to.y < from.y {
			y0, y1 = from.y, to.y+to.h
		}
		path = fmt.Sprintf("M%d %dV%d", x0, y0, y1)
		x, y = x0+36, (y0+y1)/2+4
	default:
		path = fmt.Sprintf("M%d %dV%dH%d", from.centreX(), from.y+from.h, to.centreY(), to.x)
		x, y = (from.centreX()+to.x)/2, to.centreY()-6
	}
	fmt.Fprintf(&p.arrows, "<path d=%q marker-end=\"url(#tip)\"/>\n", path)
	if text != "" {
		fmt.Fprintf(&p.arrows, "<text class=\"small\" x=\"%d\" y=\"%d\">%s</text>\n", x, y, escape(text))
	}
}

func escape(text string) string {
	var b strings.Builder
	xml.EscapeText(&b, []byte(text)) // a Builder does not fail
	return b.String()
}
