package main

import (
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// tooSteep is how many times the steps beside it a step may cost. What grows
// evenly, however fast, has none above; what falls off an edge (a cache, a size
// class, a limit) has.
const tooSteep = 1.5

// steps returns of the costs c[0], c[1], ... of x[0], x[1], ..., twice as much each,
// those i for which the step from c[i-1] to c[i] is steeper than the steps
// before and behind it, which are what it can be compared with. A step whose
// neighbour is not known is compared with the other one, or not at all; one of
// more than twice is none. Where
// the cost of a server that does next to nothing falls off the same edge, the
// edge is the machine's: base, its costs, or nil.
func steps(x, c, base []float64) (steep []int) {
	step := func(c []float64, i int) float64 {
		if i < 1 || i >= len(c) || c[i] <= 0 || c[i-1] <= 0 || x[i] > 2*x[i-1] {
			return 0
		}
		return c[i] / c[i-1]
	}
	for i := range c {
		beside := max(step(c, i-1), step(c, i+1))
		if base != nil {
			beside = max(beside, step(base, i))
		}
		if beside > 0 && step(c, i) > tooSteep*max(beside, 1) {
			steep = append(steep, i)
		}
	}
	return steep
}

var digits = regexp.MustCompile(`\d+`)

// at is the number in a workload's name: what grows.
func (r *row) at() float64 {
	n, _ := strconv.ParseFloat(digits.FindString(r.workload), 64)
	return n
}

// costs are those of one server in rows; 0: none.
func costs(rows []*row, name string) []float64 {
	c := make([]float64, len(rows))
	for i, r := range rows {
		if r.cells[name] != nil {
			c[i] = r.cells[name].cost
		}
	}
	return c
}

// printGrowth prints what a message costs as connections, or sizes, grow, and
// marks steps that are too steep.
func printGrowth(w io.Writer, all []*row) {
	for _, group := range []string{groupConns, groupSizes} {
		for _, setup := range []string{"A", "B"} {
			rows := slices.DeleteFunc(slices.Clone(all), func(r *row) bool { return r.group != group || r.setup != setup })
			if len(rows) < 2 {
				continue
			}
			what := map[string]string{groupConns: "connections", groupSizes: "bytes"}[group]
			fmt.Fprintf(w, "\nServer CPU time of a message in µs as the %s double, setup %s.  <  a step that costs more than %.1f times those beside it\n", what, setup, tooSteep)
			names := names(rows)
			var base []float64
			if slices.Contains(names, yardstick) {
				base = costs(rows, yardstick)
			}
			t := table{}
			t.add(append([]string{what}, names...)...)
			lines, x := make([][]string, len(rows)), make([]float64, len(rows))
			for i, r := range rows {
				x[i] = r.at()
				lines[i] = []string{fmt.Sprintf("%.0f", r.at())}
			}
			for _, name := range names {
				c := costs(rows, name)
				b := base
				if name == yardstick {
					b = nil
				}
				steep := steps(x, c, b)
				for i := range rows {
					mark := " "
					if slices.Contains(steep, i) {
						mark = "<"
					}
					lines[i] = append(lines[i], number(c[i])+mark)
				}
			}
			for _, l := range lines {
				t.add(l...)
			}
			t.print(w)
		}
	}
}

// curves draws what a message costs as something doubles, a line for each server.
func curves(rows []*row, _ string) (*plot.Plot, error) {
	p := plot.New()
	p.X.Label.Text, p.Y.Label.Text = "connections, or bytes of a message", "server CPU, µs/msg"
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.LogTicks{Prec: -1}, plot.LogTicks{Prec: -1}
	p.Legend.Top, p.Legend.Left, p.Legend.ThumbnailWidth = true, true, vg.Centimeter
	p.Add(plotter.NewGrid())
	for _, name := range names(rows) {
		var xys plotter.XYs
		for i, y := range costs(rows, name) {
			if y > 0 {
				xys = append(xys, plotter.XY{X: rows[i].at(), Y: y})
			}
		}
		if len(xys) == 0 {
			continue
		}
		line, points, err := plotter.NewLinePoints(xys)
		if err != nil {
			return nil, err
		}
		m := marks[slices.Index(allNames(), name)]
		line.Color, points.Color, points.Shape, points.Radius = m.colour, m.colour, m.shape, vg.Points(3)
		p.Add(line, points)
		p.Legend.Add(name, line, points)
	}
	return p, nil
}
