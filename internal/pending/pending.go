// Package pending keeps the table of handshakes under way: who came from where
// and when, and, when there are too many, which one has to make room.
package pending

import "time"

// Spare is the age below which a handshake is never evicted. An honest peer
// needs a few round trips, so that nearly all are done by then; without it, a
// flood of connections would evict every handshake before it could finish,
// and eviction would do the attacker's work.
const Spare = time.Second

// A Table holds handshakes under way, each with a source (what accounts for
// it: an IPv4 address, an IPv6 /64, a uid) and a value. It is not safe for
// concurrent use: the caller has a lock of its own around the same events
// anyway. It does not call the clock, or anything else.
//
// # Who makes room
//
// While there is room, everybody gets in: a thousand honest workers behind one
// address come at once after a restart, and are no burden while nobody else
// needs the place. When max handshakes are under way, the next one, call it n,
// is counted to its source, and then
//
//  1. a handshake is evictable if it is at least Spare old;
//  2. of the sources that have an evictable handshake, the one with the most
//     handshakes (old and young, n included) gives up its oldest; among equals,
//     the one whose oldest is the oldest;
//  3. but if n's source has more than maxPerSource (n included), and the source
//     that would give has not, n is refused;
//  4. and if nothing is evictable, then the source with the most handshakes gives
//     up its newest, if it has more than maxPerSource, and n's source has not; else
//     n is refused.
//
// The reasons. Who holds the most places pays for the scarcity (2), so that an
// attacker with one source evicts only himself; n is counted, lest a source
// that comes again and again always find another that is as heavy and older.
// Since his fresh connections are spared, he could keep all of his places
// younger than Spare, and then the handshakes that rule 2 finds are the others'.
// Rule 3 stops that: what is over maxPerSource never displaces what is not,
// whatever the ages. Nor can he refuse the others by opening more than max connections
// within Spare, of which some would come of age all the time, only for the next of his
// own: what is over maxPerSource makes room for what is not at any age (4), and it is the
// newest, as an honest source's oldest is about to finish. Otherwise everybody who got in
// has Spare at least to finish (1), and a light newcomer rather takes the place of a slow
// peer than be refused. A cap that refused at maxPerSource even in an empty table would
// add nothing to this, and would lock out the thousand workers.
//
// What the rule does not give: an attacker with more than max / maxPerSource sources can
// fill the table with handshakes that are all young, and none of them heavy.
type Table[K comparable, V any] struct {
	max          int // <= 0: no bound
	maxPerSource int // <= 0: no source is over it

	now     time.Time // the latest now given to Add
	size    int       // entries
	sources map[K]*source[K, V]
	heavies int // of the sources, those that are heavy

	// All entries in order of age. Those before young have been found
	// evictable; young is the oldest one that has not, nil if there is none.
	// Age is a matter of the order of arrival, so that each entry crosses the
	// line once and no timer is needed.
	all   list[K, V]
	young *Entry[K, V]

	// ripe is a binary heap of the sources that have an evictable entry, the
	// one to evict from first.
	ripe []*source[K, V]
}

// An Entry is one handshake in a Table.
type Entry[K comparable, V any] struct {
	value V
	since time.Time
	src   *source[K, V] // nil once the entry left the table
	ripe  bool          // counted in src.ripe
	links [2]struct{ prev, next *Entry[K, V] }
}

// Value returns what was given to Add, or to Hand. It stays valid after the entry left
// the table.
func (e *Entry[K, V]) Value() V { return e.value }

// Hand makes v the value of an entry that is in the table: the handshake is the same,
// and somebody else has it now. It reports false for an entry that has left.
func (e *Entry[K, V]) Hand(v V) bool {
	if e.src == nil {
		return false
	}
	e.value = v
	return true
}

// source is one source's share. It exists while it has entries.
type source[K comparable, V any] struct {
	key   K
	count int        // entries, and the newcomer while its place is decided
	ripe  int        // of them evictable: a prefix of entries
	list  list[K, V] // in order of age
	index int        // in Table.ripe, -1 if not there
}

// New returns an empty table. max bounds all entries, maxPerSource is the
// number up to which a source is not heavy; 0 or less means no limit. Without
// max nothing is ever evicted or refused.
func New[K comparable, V any](max, maxPerSource int) *Table[K, V] {
	return &Table[K, V]{
		max: max, maxPerSource: maxPerSource,
		sources: make(map[K]*source[K, V]),
		all:     list[K, V]{which: inAll},
	}
}

// Add enters a handshake that began now. added is nil if it was refused, and
// then the table is as it was. evicted is the entry that had to make room, nil
// if there was room; it has left the table, and the caller ends its handshake.
//
// now must not go back from call to call; a time that does counts as the
// latest one. Add takes O(log s) amortised, s being the number of sources.
func (t *Table[K, V]) Add(k K, v V, now time.Time) (added, evicted *Entry[K, V]) {
	if now.Before(t.now) {
		now = t.now
	}
	t.now = now

	s := t.sources[k]
	if s == nil {
		s = &source[K, V]{key: k, index: -1, list: list[K, V]{which: inSource}}
		t.sources[k] = s
	}
	t.weigh(s, 1)
	t.fix(s)
	if t.max > 0 && t.size >= t.max {
		t.ripen()
		if evicted = t.victim(s); evicted == nil {
			t.weigh(s, -1)
			t.settle(s)
			return nil, nil
		}
		t.unlink(evicted)
	}
	added = &Entry[K, V]{value: v, since: now, src: s}
	t.size++
	t.all.push(added)
	s.list.push(added)
	if t.young == nil {
		t.young = added
	}
	return added, evicted
}

// Remove takes out a handshake that ended, well or not. It reports whether e
// was still in the table: false for an entry that was evicted or removed
// before, so that of an eviction and an end at the same time one wins. It takes
// O(log s).
func (t *Table[K, V]) Remove(e *Entry[K, V]) bool {
	if e.src == nil {
		return false
	}
	t.unlink(e)
	return true
}

// victim returns the entry that makes room for one more of source s, which is
// counted already, or nil if it must not get in.
func (t *Table[K, V]) victim(s *source[K, V]) *Entry[K, V] {
	if len(t.ripe) == 0 {
		return t.newest(s)
	}
	top := t.ripe[0]
	if t.heavy(s) && !t.heavy(top) {
		return nil
	}
	return top.list.front
}

// newest is rule 4. It looks at all sources, but each time that there is a heavy one it
// takes something from that.
func (t *Table[K, V]) newest(s *source[K, V]) *Entry[K, V] {
	if t.heavies == 0 || t.heavy(s) {
		return nil
	}
	var top *Entry[K, V]
	for _, o := range t.sources {
		if o == s {
			continue // it may have no entry yet
		}
		e := o.list.back
		if top == nil || o.count > top.src.count || o.count == top.src.count && e.since.After(top.since) {
			top = e
		}
	}
	return top
}

func (t *Table[K, V]) heavy(s *source[K, V]) bool {
	return t.maxPerSource > 0 && s.count > t.maxPerSource
}

// weigh adds d to the count of s, which has to be settled, or fixed, then.
func (t *Table[K, V]) weigh(s *source[K, V], d int) {
	if t.heavy(s) {
		t.heavies--
	}
	s.count += d
	if t.heavy(s) {
		t.heavies++
	}
}

// ripen moves the line between evictable and young entries up to t.now.
func (t *Table[K, V]) ripen() {
	for e := t.young; e != nil && t.now.Sub(e.since) >= Spare; e = t.young {
		t.young = e.links[inAll].next
		e.ripe = true
		e.src.ripe++
		t.settle(e.src)
	}
}

// unlink takes e out of everything.
func (t *Table[K, V]) unlink(e *Entry[K, V]) {
	s := e.src
	if t.young == e {
		t.young = e.links[inAll].next
	}
	t.all.remove(e)
	s.list.remove(e)
	e.src = nil
	t.weigh(s, -1)
	if e.ripe {
		s.ripe--
	}
	t.size--
	t.settle(s)
}

// settle puts s where its counts say: into or out of the heap, to its place in
// it, and out of the table when nothing of it is left.
func (t *Table[K, V]) settle(s *source[K, V]) {
	switch {
	case s.ripe > 0 && s.index < 0:
		s.index = len(t.ripe)
		t.ripe = append(t.ripe, s)
		t.up(s.index)
	case s.ripe == 0 && s.index >= 0:
		i, last := s.index, len(t.ripe)-1
		t.swap(i, last)
		t.ripe[last] = nil
		t.ripe = t.ripe[:last]
		s.index = -1
		if i < last {
			t.fix(t.ripe[i])
		}
	default:
		t.fix(s)
	}
	if s.count == 0 {
		delete(t.sources, s.key)
	}
}

// fix restores the heap after s changed. container/heap would do, at the price
// of an interface call per comparison and of five more methods.
func (t *Table[K, V]) fix(s *source[K, V]) {
	if s.index >= 0 {
		t.up(s.index)
		t.down(s.index)
	}
}

func (t *Table[K, V]) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !t.before(i, parent) {
			return
		}
		t.swap(i, parent)
		i = parent
	}
}

func (t *Table[K, V]) down(i int) {
	for {
		first := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(t.ripe); child++ {
			if t.before(child, first) {
				first = child
			}
		}
		if first == i {
			return
		}
		t.swap(i, first)
		i = first
	}
}

// before reports whether to evict from the source at i rather than at j. The
// fronts are evictable entries, since the sources are in the heap.
func (t *Table[K, V]) before(i, j int) bool {
	a, b := t.ripe[i], t.ripe[j]
	if a.count != b.count {
		return a.count > b.count
	}
	return a.list.front.since.Before(b.list.front.since)
}

func (t *Table[K, V]) swap(i, j int) {
	t.ripe[i], t.ripe[j] = t.ripe[j], t.ripe[i]
	t.ripe[i].index, t.ripe[j].index = i, j
}

// The lists that an entry is in, which are the indices of its links.
const (
	inAll = iota
	inSource
)

// list is a doubly linked list through one of the links of its entries: an
// entry can be taken out of the middle without a search or an allocation.
type list[K comparable, V any] struct {
	front, back *Entry[K, V]
	which       int
}

func (l *list[K, V]) push(e *Entry[K, V]) {
	e.links[l.which].prev = l.back
	if l.back == nil {
		l.front = e
	} else {
		l.back.links[l.which].next = e
	}
	l.back = e
}

// remove takes e out. Its links are cleared: an evicted entry that somebody
// keeps must not keep its neighbours alive.
func (l *list[K, V]) remove(e *Entry[K, V]) {
	at := &e.links[l.which]
	if at.prev == nil {
		l.front = at.next
	} else {
		at.prev.links[l.which].next = at.next
	}
	if at.next == nil {
		l.back = at.prev
	} else {
		at.next.links[l.which].prev = at.prev
	}
	at.prev, at.next = nil, nil
}
