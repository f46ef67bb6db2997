package places

import (
	"math/rand/v2"
	"testing"
)

// peer is one connection of the model: it asks, perhaps with a promise, is let in, ends,
// and is heard of for the last time.
type peer struct {
	group   *Group
	promise Promise
	old     *peer // that is to go for it, or nil
	claimed bool  // it is the old one of another
	follows bool
	evicted bool
	stage   int
}

const (
	asks = iota
	in
	ended
)

func TestPlacesOnAModel(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 1))
		most := 1 + r.IntN(200)
		hub := NewHub(most)
		groups := []Group{NewGroup(1 + r.IntN(20)), NewGroup(1 + r.IntN(100)), NewGroup(1000)}
		var peers []*peer
		remove := func(i int) {
			peers[i] = peers[len(peers)-1]
			peers = peers[:len(peers)-1]
		}
		gone := func(i int) {
			if peers[i].evicted {
				hub.EvictedGone()
			}
			hub.Free()
			remove(i)
		}
		slow := r.IntN(20) // how seldom ends are taken
		for n := range 3000 {
			if r.IntN(2) == 0 || len(peers) == 0 {
				p := &peer{follows: r.IntN(3) == 0}
				if i := r.IntN(len(groups) + 1); i < len(groups) {
					p.group = &groups[i]
				}
				peers = append(peers, p)
				continue
			}
			i := r.IntN(len(peers))
			switch p := peers[i]; {
			case p.stage == ended:
				if r.IntN(1+slow) == 0 {
					gone(i)
				}
			case p.stage == in && r.IntN(4) == 0:
				p.stage = ended
				p.group.Leave()
			case p.stage == in:
				if p.group == nil && !p.evicted && hub.MayEvict() {
					p.evicted = true
					hub.Evicted()
				}
			case r.IntN(5) == 0: // it is not let in, for another reason
				hub.Withdraw(&p.promise)
				remove(i)
			case !p.promise.Made() && r.IntN(3) == 0:
				old := peers[r.IntN(len(peers))]
				if old.stage == in && !old.claimed && hub.Promise(&p.promise, p.group, old.group) {
					p.old, old.claimed, p.follows = old, true, true
				}
			case p.old != nil && p.old.stage == in:
				p.old.stage = ended
				p.old.group.Leave()
			case p.old != nil && r.IntN(3) == 0: // it is outbid
				for _, q := range peers {
					if q.stage == asks && q.group == p.group && p.promise.Pass(&q.promise) {
						p.old, q.old, q.follows = nil, p.old, true
						break
					}
				}
			case p.promise.Made() && (hub.FullBeyond(&p.promise) || p.group.Full(&p.promise)):
				t.Fatalf("seed %d: a promise is not kept: %+v", seed, hub)
			case p.group.Full(&p.promise), hub.FullBeyond(&p.promise), hub.Full() && !p.follows:
				hub.Withdraw(&p.promise)
				remove(i)
			default:
				hub.Take(p.group, &p.promise)
				p.stage = in
			}
			if n%8 == 0 {
				check(t, seed, &hub, groups, peers)
			}
		}
		for len(peers) > 0 {
			switch p := peers[0]; p.stage {
			case asks:
				hub.Withdraw(&p.promise)
				remove(0)
				continue
			case in:
				p.group.Leave()
			}
			gone(0)
		}
		check(t, seed, &hub, groups, nil)
	}
}

// check counts anew what the accounts should say, and how much there may be.
func check(t *testing.T, seed uint64, hub *Hub, groups []Group, peers []*peer) {
	t.Helper()
	want, wants := Hub{max: hub.max}, make([]Group, len(groups))
	of := func(g *Group) *Group {
		for i := range groups {
			if g == &groups[i] {
				return &wants[i]
			}
		}
		return new(Group)
	}
	for _, p := range peers {
		if p.stage != asks {
			want.taken++
		}
		if p.stage == in {
			of(p.group).taken++
		}
		if p.evicted {
			want.evicted++
		}
		if p.promise.made {
			want.promised++
		}
		if p.promise.by != nil {
			of(p.promise.by).promised++
		}
	}
	if *hub != want {
		t.Fatalf("seed %d: %+v, want %+v", seed, *hub, want)
	}
	if s := hub.surplus(); want.taken > hub.max+2*s || want.taken-want.evicted+want.promised > hub.max+s {
		t.Fatalf("seed %d: too many: %+v", seed, want)
	}
	for i := range groups {
		if groups[i].taken > groups[i].max {
			t.Fatalf("seed %d, group %d: too many: %+v", seed, i, groups[i])
		}
		wants[i].max = groups[i].max
		if groups[i] != wants[i] {
			t.Fatalf("seed %d, group %d: %+v, want %+v", seed, i, groups[i], wants[i])
		}
	}
}
