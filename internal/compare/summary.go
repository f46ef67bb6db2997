package main

import (
	"cmp"
	"slices"
)

// cell is what all runs of a workload on a server, in one setup, come to.
type cell struct {
	cost               float64 // median
	ratio, least, most float64 // of each run to the reference's run beside it: median and spread; 0: none
	perSecond          float64 // medians, these and what follows
	p50, p99, p999     float64
	cores              float64 // CPUs that the server used
	peakMB             float64
	runs               int
	noisy              bool // something else was busy in most runs
	errors             []string
	quoted             bool // not measured here
}

// key is a row of the summary: everything that was measured side by side.
type key struct{ setup, workload string }

// row is a workload in a setup.
type row struct {
	key
	group, unit string
	cells       map[string]*cell // by server
}

// summarize makes rows of records, in the order in which they were first seen,
// setup by setup. reference is the server that ratios are to; secondary is, where
// the reference does not do a workload.
func summarize(records []record, reference string) []*row {
	var rows []*row
	found := map[key]*row{}
	runs := map[key]map[string][]record{}
	for _, r := range records {
		k := key{r.Setup, r.Workload}
		if found[k] == nil {
			found[k] = &row{key: k, group: r.Group, unit: r.Unit, cells: map[string]*cell{}}
			runs[k] = map[string][]record{}
			rows = append(rows, found[k])
		}
		runs[k][r.Server] = append(runs[k][r.Server], r)
	}
	for k, servers := range runs {
		beside := map[int]float64{} // the reference's cost, by repetition
		to := reference
		if servers[to] == nil {
			to = secondary
		}
		for _, r := range servers[to] {
			if r.Error == "" {
				beside[r.Rep] = r.Cost
			}
		}
		for name, rs := range servers {
			found[k].cells[name] = newCell(rs, beside)
		}
		if q, ok := quoted[k.setup+" "+k.workload]; ok && reference == yardstick {
			for i, name := range quotedNames {
				ratio := q[i+1] / q[0]
				found[k].cells[name] = &cell{cost: q[i+1], ratio: ratio, least: ratio, most: ratio, quoted: true}
			}
		}
	}
	slices.SortStableFunc(rows, func(a, b *row) int { return cmp.Compare(a.setup, b.setup) })
	return rows
}

func newCell(rs []record, beside map[int]float64) *cell {
	c := &cell{runs: len(rs)}
	var good []record
	disturbed := 0
	for _, r := range rs {
		if r.Error != "" {
			c.errors = append(c.errors, r.Error)
			continue
		}
		if r.disturbed() {
			disturbed++
		}
		good = append(good, r)
	}
	if len(good) == 0 {
		return c
	}
	var ratios []float64
	for _, r := range good {
		if ref := beside[r.Rep]; ref > 0 {
			ratios = append(ratios, r.Cost/ref)
		}
	}
	c.noisy = disturbed*2 > len(good)
	c.cost = median(good, func(r record) float64 { return r.Cost })
	c.perSecond = median(good, func(r record) float64 { return r.PerSecond })
	c.p50 = median(good, func(r record) float64 { return r.P50 })
	c.p99 = median(good, func(r record) float64 { return r.P99 })
	c.p999 = median(good, func(r record) float64 { return r.P999 })
	c.cores = median(good, func(r record) float64 { return r.ServerCPU / max(r.Seconds, 1e-9) })
	c.peakMB = median(good, func(r record) float64 { return r.PeakMB })
	if len(ratios) > 0 {
		c.ratio = median(ratios, func(x float64) float64 { return x })
		c.least, c.most = slices.Min(ratios), slices.Max(ratios)
	}
	return c
}

func median[T any](s []T, of func(T) float64) float64 {
	v := make([]float64, len(s))
	for i := range s {
		v[i] = of(s[i])
	}
	slices.Sort(v)
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// names are the servers in rows, in the order of contenders; the quoted ones
// are last.
func names(rows []*row) []string {
	var all []string
	for _, c := range contenders {
		all = append(all, c.name)
	}
	all = append(all, quotedNames...)
	return slices.DeleteFunc(all, func(name string) bool {
		return !slices.ContainsFunc(rows, func(r *row) bool { return r.cells[name] != nil })
	})
}
