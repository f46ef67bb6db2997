package main

import (
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	_ "gonum.org/v1/plot/vg/vgsvg" // the format that is drawn
)

// drawAll draws a plot for each setup and group of workloads: a line for each
// workload, and on it a mark for each server where its ratio to the reference
// is. The scale is logarithmic: half as much is as far from 1 as twice as much.
func drawAll(dir string, rows []*row, reference string) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	type sheet struct{ setup, group string }
	var sheets []sheet
	of := map[sheet][]*row{}
	for _, r := range rows {
		s := sheet{r.setup, r.group}
		if of[s] == nil {
			sheets = append(sheets, s)
		}
		of[s] = append(of[s], r)
	}
	for _, s := range sheets {
		draw, height := drawing, vg.Length(3+len(of[s]))
		if s.group == groupConns || s.group == groupSizes {
			draw, height = curves, 16
		}
		p, err := draw(of[s], reference)
		if err != nil {
			return err
		}
		p.Title.Text = fmt.Sprintf("%s, setup %s", s.group, s.setup)
		file := filepath.Join(dir, strings.ToLower(s.setup)+"-"+s.group+".svg")
		if err := p.Save(26*vg.Centimeter, height*vg.Centimeter, file); err != nil {
			return err
		}
		fmt.Println("drawn:", file)
	}
	return nil
}

// marks tell servers apart, by colour and by shape.
var marks = []struct {
	colour color.RGBA
	shape  draw.GlyphDrawer
}{
	{color.RGBA{0, 0, 0, 255}, draw.CrossGlyph{}},
	{color.RGBA{200, 30, 30, 255}, draw.CircleGlyph{}},
	{color.RGBA{240, 130, 130, 255}, draw.RingGlyph{}},
	{color.RGBA{20, 70, 190, 255}, draw.BoxGlyph{}},
	{color.RGBA{110, 150, 230, 255}, draw.SquareGlyph{}},
	{color.RGBA{30, 140, 60, 255}, draw.PyramidGlyph{}},
	{color.RGBA{100, 190, 120, 255}, draw.TriangleGlyph{}},
	{color.RGBA{150, 80, 180, 255}, draw.PlusGlyph{}},
	{color.RGBA{140, 100, 40, 255}, draw.PlusGlyph{}},
	{color.RGBA{0, 150, 160, 255}, draw.PlusGlyph{}},
	{color.RGBA{130, 130, 130, 255}, draw.PlusGlyph{}},
	{color.RGBA{180, 180, 180, 255}, draw.CrossGlyph{}},
}

// spread is a server's ratios with what the spread of each is.
type spread struct {
	plotter.XYs
	least, most []float64
}

// XError implements plotter.XErrorer.
func (s spread) XError(i int) (low, high float64) {
	return s.XYs[i].X - s.least[i], s.most[i] - s.XYs[i].X
}

// reach is the range of ratios that is shown: that of what was measured. What is
// quoted may be far beyond it, and is then written at the edge.
func reach(rows []*row) (least, most float64) {
	least, most = 0.9, 1.5
	for _, r := range rows {
		for _, c := range r.cells {
			if c.ratio > 0 && !c.quoted {
				least, most = min(least, c.ratio/1.05), max(most, c.ratio*1.1)
			}
		}
	}
	return least, most
}

// room stands behind labels: viewers that lack the font take another, often a
// wider one.
const room = "       "

func drawing(rows []*row, reference string) (*plot.Plot, error) {
	p := plot.New()
	least, most := reach(rows)
	p.X.Label.Text = "times " + reference + " (* quoted)"
	p.X.Scale = plot.LogScale{}
	p.X.Tick.Marker = plot.TickerFunc(ratioTicks)
	p.X.Min, p.X.Max = least, most*math.Pow(most/least, 0.2) // room for the legend
	p.Y.Label.Text = " "                                     // keeps long workloads off the edge
	p.Y.Min, p.Y.Max = -0.7, float64(len(rows))-0.3
	p.Legend.Top = true
	p.Legend.ThumbnailWidth = vg.Centimeter
	p.Add(plotter.NewGrid())
	ticks := make(plot.ConstantTicks, len(rows))
	for i, r := range rows { // the first on top
		ticks[i] = plot.Tick{Value: float64(len(rows) - 1 - i), Label: r.workload + room}
	}
	p.Y.Tick.Marker = ticks
	all := names(rows)
	var beyond plotter.XYLabels
	for n, name := range all {
		var s spread
		for i, r := range rows {
			c := r.cells[name]
			if c == nil || c.ratio <= 0 {
				continue
			}
			// Each a little lower than the one before, so that they do not cover
			// each other.
			y := float64(len(rows)-1-i) + 0.35 - 0.7*float64(n)/float64(len(all))
			if c.ratio > most {
				beyond.XYs = append(beyond.XYs, plotter.XY{X: most / math.Pow(most/least, 0.1), Y: y - 0.05})
				beyond.Labels = append(beyond.Labels, fmt.Sprintf("%s: %.3g →", name, c.ratio))
				continue
			}
			s.XYs = append(s.XYs, plotter.XY{X: c.ratio, Y: y})
			s.least, s.most = append(s.least, max(c.least, least)), append(s.most, min(c.most, most))
		}
		if len(s.XYs) == 0 {
			continue
		}
		m := marks[slices.Index(allNames(), name)]
		points, err := plotter.NewScatter(s.XYs)
		if err != nil {
			return nil, err
		}
		points.Color, points.Shape, points.Radius = m.colour, m.shape, vg.Points(3)
		bars, err := plotter.NewXErrorBars(s)
		if err != nil {
			return nil, err
		}
		bars.Color = m.colour
		p.Add(bars, points)
		p.Legend.Add(name, points)
	}
	if len(beyond.XYs) > 0 {
		labels, err := plotter.NewLabels(beyond)
		if err != nil {
			return nil, err
		}
		for i := range labels.TextStyle {
			labels.TextStyle[i].Font.Size = vg.Points(8)
		}
		p.Add(labels)
	}
	return p, nil
}

// allNames are all servers there may be, so that each looks the same in every
// plot.
func allNames() (all []string) {
	for _, c := range contenders {
		all = append(all, c.name)
	}
	return append(all, quotedNames...)
}

// ratioTicks puts marks at ratios that are easily read.
func ratioTicks(least, most float64) (ticks []plot.Tick) {
	for e := math.Floor(math.Log10(least)); e <= math.Ceil(math.Log10(most)); e++ {
		for _, d := range []float64{1, 1.1, 1.2, 1.5, 2, 3, 5, 7} {
			if v := d * math.Pow(10, e); v >= least && v <= most && (d == math.Trunc(d) || most/least < 5) {
				ticks = append(ticks, plot.Tick{Value: v, Label: fmt.Sprintf("%.4g", v)})
			}
		}
	}
	return ticks
}
