package pending

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var epoch = time.Unix(1_000_000, 0)

func at(ms int) time.Time { return epoch.Add(time.Duration(ms) * time.Millisecond) }

func TestWhoMakesRoom(t *testing.T) {
	type add struct {
		src string
		ms  int
	}
	// Handshakes are called by the source and its running number there, from 1.
	for _, test := range []struct {
		name        string
		max, perSrc int
		held        []add
		next        add
		want        string // evicted, "" if none, "refused"
	}{
		{"an empty table takes all", 2, 1, nil, add{"a", 0}, ""},
		{"room is for everybody, heavy or not", 4, 1, []add{{"a", 0}, {"a", 0}, {"a", 5000}}, add{"a", 9000}, ""},
		{"no bound", 0, 1, []add{{"a", 0}, {"a", 0}}, add{"a", 9000}, ""},
		{"negative bound", -1, 1, []add{{"a", 0}, {"a", 0}}, add{"a", 9000}, ""},
		{"the oldest of the heaviest goes", 4, 64, []add{{"b", 0}, {"a", 1}, {"a", 2}, {"a", 3}}, add{"c", 2000}, "a1"},
		{"the heaviest, not the oldest", 5, 64, []add{{"b", 0}, {"b", 1}, {"a", 2}, {"a", 3}, {"a", 4}}, add{"c", 2000}, "a1"},
		{"among equals the oldest", 4, 64, []add{{"b", 0}, {"a", 1}, {"a", 2}, {"b", 3}}, add{"c", 2000}, "b1"},
		{"all single: the oldest", 3, 64, []add{{"a", 0}, {"b", 1}, {"c", 2}}, add{"d", 2000}, "a1"},
		{"the newcomer is counted", 4, 64, []add{{"b", 0}, {"b", 1}, {"a", 2}, {"a", 3}}, add{"a", 2000}, "a1"},
		{"the newcomer makes its source an equal", 3, 64, []add{{"b", 0}, {"b", 1}, {"a", 2}}, add{"a", 2000}, "b1"},
		{"999 ms are spared", 1, 64, []add{{"a", 0}}, add{"b", 999}, "refused"},
		{"1,000 ms are not", 1, 64, []add{{"a", 0}}, add{"b", 1000}, "a1"},
		{"all young: the newest of the heaviest goes", 5, 1, []add{{"b", 0}, {"b", 1}, {"a", 1}, {"a", 2}, {"a", 3}}, add{"c", 500}, "a3"},
		{"of two that are as heavy, the newest", 4, 1, []add{{"a", 0}, {"b", 1}, {"b", 2}, {"a", 3}}, add{"c", 500}, "a2"},
		{"all young, and nobody heavy: refused", 3, 3, []add{{"a", 0}, {"a", 0}, {"a", 0}}, add{"b", 500}, "refused"},
		{"all young, and the newcomer heavy: refused", 4, 1, []add{{"b", 0}, {"a", 1}, {"a", 2}, {"a", 3}}, add{"b", 500}, "refused"},
		{"all young, without the limit: refused", 3, 0, []add{{"a", 0}, {"a", 0}, {"a", 0}}, add{"b", 500}, "refused"},
		{"the heaviest is young: the next", 4, 64, []add{{"b", 0}, {"a", 1500}, {"a", 1500}, {"a", 1500}}, add{"c", 2000}, "b1"},
		{"young ones count for weight", 5, 64, []add{{"a", 0}, {"b", 1}, {"b", 2}, {"a", 1500}, {"a", 1500}}, add{"c", 2000}, "a1"},
		{"heavy evicts its own", 3, 1, []add{{"b", 0}, {"a", 1}, {"a", 2}}, add{"a", 2000}, "a1"},
		{"heavy does not evict light", 3, 2, []add{{"b", 0}, {"a", 1500}, {"a", 1500}}, add{"a", 2000}, "refused"},
		{"without the limit it does", 3, 0, []add{{"b", 0}, {"a", 1500}, {"a", 1500}}, add{"a", 2000}, "b1"},
		{"exactly at the limit is not heavy", 3, 3, []add{{"b", 0}, {"a", 1500}, {"a", 1500}}, add{"a", 2000}, "b1"},
		{"heavy evicts another heavy one", 5, 1, []add{{"b", 0}, {"b", 1}, {"a", 1500}, {"a", 1500}, {"a", 1500}}, add{"a", 2000}, "b1"},
		{"light evicts heavy", 3, 1, []add{{"b", 0}, {"a", 1}, {"a", 2}}, add{"c", 2000}, "a1"},
		{"light evicts light when heavy is young", 3, 1, []add{{"b", 0}, {"a", 1500}, {"a", 1500}}, add{"c", 2000}, "b1"},
		{"a clock that goes back is not trusted", 1, 64, []add{{"a", 5000}}, add{"b", 0}, "refused"},
		{"one from a source of its own only", 2, 1, []add{{"a", 0}, {"a", 1}}, add{"a", 1000}, "a1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			tab := New[string, string](test.max, test.perSrc)
			names := map[string]int{}
			add := func(a add) (added, evicted *Entry[string, string]) {
				names[a.src]++
				return tab.Add(a.src, fmt.Sprint(a.src, names[a.src]), at(a.ms))
			}
			for _, h := range test.held {
				if e, evicted := add(h); e == nil || evicted != nil {
					t.Fatalf("%v did not simply get in", h)
				}
			}
			before := tab.size
			added, evicted := add(test.next)
			got, want := "", before+1
			switch {
			case added == nil:
				got, want = "refused", before
			case evicted != nil:
				got, want = evicted.Value(), before
			}
			if d := cmp.Diff(test.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if tab.size != want {
				t.Errorf("size is %d, want %d", tab.size, want)
			}
			check(t, tab)
		})
	}
}

func TestRemoveIsOnce(t *testing.T) {
	tab := New[string, int](1, 0)
	a, _ := tab.Add("a", 1, at(0))
	b, evicted := tab.Add("b", 2, at(1000))
	if evicted != a || tab.Remove(a) {
		t.Error("an evicted entry could be removed")
	}
	if !tab.Remove(b) || tab.Remove(b) {
		t.Error("Remove is not true exactly once")
	}
	if tab.size != 0 || len(tab.sources) != 0 {
		t.Error("the table is not empty")
	}
	check(t, tab)
}

func TestRefusalLeavesNoTrace(t *testing.T) {
	tab := New[int, int](2, 0)
	tab.Add(1, 1, at(0))
	tab.Add(1, 2, at(0))
	for i := range 1000 {
		if e, _ := tab.Add(i+2, 0, at(0)); e != nil {
			t.Fatal("admitted to a table of young handshakes")
		}
	}
	if len(tab.sources) != 1 || tab.sources[1].count != 2 {
		t.Errorf("%d sources are left, want 1", len(tab.sources))
	}
	check(t, tab)
}

func TestAThousandWorkersOfOneAddressGetIn(t *testing.T) {
	tab := New[string, int](1024, 64)
	for i := range 1000 {
		if e, evicted := tab.Add("nat", i, at(i)); e == nil || evicted != nil {
			t.Fatalf("worker %d did not simply get in", i)
		}
	}
}

// An attacker with one address makes 1,000 connections a second, in bursts of
// several sizes, and never answers. Honest peers of other addresses come
// meanwhile and need half a second each. None of them may be refused or
// evicted, nor where he is so fast that his handshakes are all young.
func TestOneSourceCannotPushOutOthers(t *testing.T) {
	for _, test := range []struct{ burst, perMilli int }{{1, 1}, {7, 1}, {100, 1}, {1000, 1}, {1, 5}, {100, 5}, {1, 20}} {
		t.Run(fmt.Sprint(test), func(t *testing.T) {
			tab := New[string, string](1024, 64)
			type honest struct {
				e    *Entry[string, string]
				done int
			}
			var under []honest
			refused := 0
			for ms := range 10_000 {
				if ms%test.burst == 0 {
					for range test.burst * test.perMilli {
						if _, ev := tab.Add("evil", "evil", at(ms)); ev != nil && ev.Value() != "evil" {
							t.Fatalf("evil evicted %s at %d ms", ev.Value(), ms)
						}
					}
				}
				if ms >= 2000 && ms%50 == 0 {
					name := fmt.Sprint("h", ms)
					if e, _ := tab.Add(name, name, at(ms)); e != nil {
						under = append(under, honest{e, ms + 500})
					} else {
						refused++
					}
				}
				for len(under) > 0 && under[0].done == ms {
					if !tab.Remove(under[0].e) {
						t.Fatalf("%s was evicted", under[0].e.Value())
					}
					under = under[1:]
				}
			}
			if refused > 0 {
				t.Errorf("%d honest peers were refused", refused)
			}
			check(t, tab)
		})
	}
}

// naive is the rule as the doc comment words it, in quadratic time.
type naive struct {
	max, perSrc int
	held        []naiveEntry // in order of age
}

type naiveEntry struct {
	src, id int
	since   time.Time
}

func (n *naive) count(src int) (c int) {
	for _, e := range n.held {
		if e.src == src {
			c++
		}
	}
	return c
}

func (n *naive) add(src, id int, now time.Time) (ok bool, evicted int) {
	evicted = -1
	if n.max > 0 && len(n.held) >= n.max {
		weight := func(s int) int {
			w := n.count(s)
			if s == src {
				w++
			}
			return w
		}
		best, newest := -1, 0
		for i, e := range n.held { // in order of age, so > keeps the oldest among equals
			if now.Sub(e.since) >= Spare && (best < 0 || weight(e.src) > weight(n.held[best].src)) {
				best = i
			}
			if weight(e.src) >= weight(n.held[newest].src) {
				newest = i
			}
		}
		if best < 0 && n.perSrc > 0 && weight(src) <= n.perSrc && weight(n.held[newest].src) > n.perSrc {
			best = newest
		}
		if best < 0 || n.perSrc > 0 && weight(src) > n.perSrc && weight(n.held[best].src) <= n.perSrc {
			return false, -1
		}
		evicted = n.held[best].id
		n.held = append(n.held[:best:best], n.held[best+1:]...)
	}
	n.held = append(n.held, naiveEntry{src, id, now})
	return true, evicted
}

func (n *naive) remove(id int) bool {
	for i, e := range n.held {
		if e.id == id {
			n.held = append(n.held[:i:i], n.held[i+1:]...)
			return true
		}
	}
	return false
}

func TestAgreesWithTheNaiveTable(t *testing.T) {
	for seed := range uint64(150) {
		rng := rand.New(rand.NewPCG(seed, 1))
		max, perSrc := rng.IntN(30)-2, rng.IntN(12)-1
		nsrc, pace := 1+rng.IntN(20), 1+rng.IntN(400)
		tab, model := New[int, int](max, perSrc), &naive{max: max, perSrc: perSrc}
		var entries []*Entry[int, int]
		now := epoch
		// Distinct instants: the order of two sources whose oldest came at
		// the very same moment is not promised.
		for op := range 400 {
			now = now.Add(time.Duration(1+rng.IntN(pace)) * time.Millisecond)
			if len(entries) > 0 && rng.IntN(3) == 0 {
				e := entries[rng.IntN(len(entries))] // many are gone already
				if got, want := tab.Remove(e), model.remove(e.Value()); got != want {
					t.Fatalf("seed %d op %d: Remove is %v, want %v", seed, op, got, want)
				}
			} else {
				src := int(rng.ExpFloat64() * float64(nsrc) / 3)
				added, evicted := tab.Add(src, op, now)
				id := -1
				if evicted != nil {
					id = evicted.Value()
				}
				if ok, want := model.add(src, op, now); ok != (added != nil) || want != id {
					t.Fatalf("seed %d op %d: got in %v, evicting %d; want %v, %d", seed, op, added != nil, id, ok, want)
				}
				if added != nil {
					entries = append(entries, added)
				}
			}
			if tab.size != len(model.held) {
				t.Fatalf("seed %d op %d: size is %d, want %d", seed, op, tab.size, len(model.held))
			}
			check(t, tab)
		}
	}
}

// check holds a table to its invariants.
func check[K comparable, V any](t *testing.T, tab *Table[K, V]) {
	t.Helper()
	seen, young := 0, false
	counts, ripes := map[K]int{}, map[K]int{}
	for e := tab.all.front; e != nil; e = e.links[inAll].next {
		young = young || e == tab.young
		if e.ripe == young {
			t.Fatal("an entry is on the wrong side of the line")
		}
		if tab.sources[e.src.key] != e.src {
			t.Fatal("an entry's source is not in the table")
		}
		counts[e.src.key]++
		if e.ripe {
			ripes[e.src.key]++
		}
		seen++
	}
	if seen != tab.size || len(counts) != len(tab.sources) || len(ripes) != len(tab.ripe) || !young && tab.young != nil {
		t.Fatalf("%d entries, %d sources, %d ripe: want %d, %d, %d", seen, len(counts), len(ripes), tab.size, len(tab.sources), len(tab.ripe))
	}
	heavies := 0
	for k, s := range tab.sources {
		n := 0
		if tab.heavy(s) {
			heavies++
		}
		for e := s.list.front; e != nil; e = e.links[inSource].next {
			n++
		}
		if s.count != counts[k] || s.ripe != ripes[k] || n != s.count {
			t.Fatalf("source %v counts %d entries, %d ripe, %d listed; want %d, %d", k, s.count, s.ripe, n, counts[k], ripes[k])
		}
	}
	if heavies != tab.heavies {
		t.Fatalf("%d sources are heavy, and %d counted", heavies, tab.heavies)
	}
	for i, s := range tab.ripe {
		if s.index != i || i > 0 && tab.before(i, (i-1)/2) {
			t.Fatalf("the heap is out of order at %d", i)
		}
	}
}

// BenchmarkAdd adds to a full table, so that each Add evicts.
func BenchmarkAdd(b *testing.B) {
	for _, sources := range []int{1, 100, 12_000} {
		b.Run(fmt.Sprintf("full/entries=12000/sources=%d", sources), func(b *testing.B) {
			tab := New[int, int](12_000, 64)
			now, i := epoch, 0
			next := func() {
				// At this pace all but about 1,000 entries are evictable.
				now, i = now.Add(time.Millisecond), i+1
				tab.Add(i%sources, i, now)
			}
			for tab.size < 12_000 {
				next()
			}
			b.ReportAllocs()
			for b.Loop() {
				next()
			}
		})
	}
	b.Run("room/entries=12000/sources=12000", func(b *testing.B) {
		tab := New[int, int](0, 64)
		held := make([]*Entry[int, int], 12_000)
		for i := range held {
			held[i], _ = tab.Add(i, i, epoch)
		}
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			tab.Remove(held[i])
			held[i], _ = tab.Add(i, i, epoch)
			i = (i + 1) % len(held)
		}
	})
}

// A handshake that is handed on keeps its age and its place, and one that has been
// evicted meanwhile is not handed on.
func TestHand(t *testing.T) {
	table, start := New[string, string](1, 0), time.Now()
	e, _ := table.Add("a", "first", start)
	if !e.Hand("second") || table.size != 1 {
		t.Fatal("the entry is gone")
	}
	in, out := table.Add("b", "other", start.Add(Spare))
	if in == nil || out != e || out.Value() != "second" {
		t.Fatalf("added %v, evicted %v; want the oldest, %v, to go", in, out, e)
	}
	if e.Hand("third") || e.Value() != "second" {
		t.Error("who was evicted was handed on")
	}
}

// A time that goes back counts as the latest one: who came later is not the older.
func TestTimeThatGoesBack(t *testing.T) {
	tab := New[string, int](2, 0)
	first, _ := tab.Add("a", 1, at(2000))
	tab.Add("b", 2, at(0))
	if added, evicted := tab.Add("c", 3, at(2500)); added != nil || evicted != nil {
		t.Error("somebody was evicted who is half a second old")
	}
	if _, evicted := tab.Add("c", 3, at(3500)); evicted != first {
		t.Error("who came first was not evicted")
	}
}
