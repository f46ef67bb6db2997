// Package places counts the places that there are for connections: those of a hub
// (MaxConns), and those of each of its listeners.
//
// A connection takes both when it is let in. It leaves its listener's when it has ended,
// and the hub's when nobody will hear of it any more: who does not take the ends of
// connections is to get no new ones.
//
// That would keep out who comes in the place of another, whose end was not taken yet: the
// next owner of a name, or whoever has had a session of datagrams evicted. So there may be
// some more connections than the hub has places, but no more than its surplus: a flood from
// ever new addresses does not grow memory when no ends are taken.
//
// Where another has to go for one that may be kept out after that, for another reason, both
// would be gone. So it is promised its place before, and what is promised is nobody else's.
package places

// Hub counts the places of a hub. It is not safe for concurrent use, nor are its groups.
type Hub struct {
	max      int
	taken    int // by connections that were let in, until nobody will hear of them any more
	evicted  int // connections that made place for others, and are on their way out
	promised int
}

// Group counts the places of one listener. A nil *Group is that of a connection which no
// listener has accepted: it is never full.
type Group struct {
	max      int
	taken    int // by connections that have not ended
	promised int
}

// Promise is a place that is kept for somebody. Its zero value is none.
type Promise struct {
	made bool
	by   *Group // that keeps one too, or nil
}

// Made reports whether there is one.
func (p *Promise) Made() bool { return p.made }

// NewHub returns a hub with so many places.
func NewHub(max int) Hub { return Hub{max: max} }

// NewGroup returns a listener with so many.
func NewGroup(max int) Group { return Group{max: max} }

// Full reports whether all places of the hub are taken. Who was evicted does not count:
// who comes in the place of that is not to wait for its end, or that it is taken.
func (h *Hub) Full() bool { return h.taken-h.evicted >= h.max }

// FullBeyond reports whether there is no place even beyond those of the hub, but for the
// one that was promised to the one that asks, if it was. What more was promised than there
// may be beyond is kept of the places that are free.
func (h *Hub) FullBeyond(p *Promise) bool {
	held := h.taken - h.evicted + h.promised
	if p.made {
		held--
	}
	return held-h.surplus() >= h.max
}

// surplus is how many connections there may be beyond the hub's places.
func (h *Hub) surplus() int { return max(64, h.max/16) }

// Full reports whether all places of the group are taken, or promised to others.
func (g *Group) Full(p *Promise) bool {
	return g != nil && g != p.by && g.taken+g.promised >= g.max
}

// Promise keeps a place for one that asks for it in group g, for which one in group old is
// to go, and reports whether there is one. It is not to be let in before that has left.
func (h *Hub) Promise(p *Promise, g, old *Group) bool {
	if h.FullBeyond(p) || g != old && g.Full(p) {
		return false
	}
	p.made, p.by = true, g
	h.promised++
	if g != nil {
		g.promised++
	}
	return true
}

// Pass gives a promise to another who asks in the same group for the place of the same one,
// unless that has one, and reports whether it has.
func (p *Promise) Pass(to *Promise) bool {
	if !p.made || to.made {
		return false
	}
	*to, *p = *p, Promise{}
	return true
}

// Withdraw ends a promise, if there is one.
func (h *Hub) Withdraw(p *Promise) {
	if p.made {
		h.promised--
	}
	if p.by != nil {
		p.by.promised--
	}
	*p = Promise{}
}

// Take gives one that is let in its places. That there are some is the caller's to know.
func (h *Hub) Take(g *Group, p *Promise) {
	h.Withdraw(p)
	h.taken++
	if g != nil {
		g.taken++
	}
}

// Leave gives the place of one that has ended back, and reports whether it was the last.
func (g *Group) Leave() (last bool) {
	if g == nil {
		return false
	}
	g.taken--
	return g.taken == 0
}

// Free gives back the hub's place of one of which nobody will hear any more.
func (h *Hub) Free() { h.taken-- }

// MayEvict reports whether another connection may be made to go for one that comes.
func (h *Hub) MayEvict() bool { return h.evicted < h.surplus() }

// Evicted says that one was made to go, EvictedGone that nobody will hear of it any more.
func (h *Hub) Evicted()     { h.evicted++ }
func (h *Hub) EvictedGone() { h.evicted-- }

// Held is what was not given back: nothing, when all connections are gone.
func (h *Hub) Held() (taken, promised, evicted int) { return h.taken, h.promised, h.evicted }

// Held is likewise.
func (g *Group) Held() (taken, promised int) { return g.taken, g.promised }
