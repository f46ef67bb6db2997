package sockhub

// The accounts of a hub, for the tests of package sockhub_test.

import (
	"fmt"

	"github.com/sockhub/sockhub/internal/budget"
)

// Held is what a Budget has given away and not got back: "" if nothing.
func (b *Budget) Held() string {
	var another budget.Share
	return unless(struct {
		In, Out, Reports, Lent int64
		Exempt                 bool // the slot for one message beyond the limit
	}{b.in.Used(), b.out.Used(), b.reports.Load(), b.lent.Load(), !b.out.Could(&another, 1<<40, true)})
}

// Held is what a hub counts of connections, and is nothing when all of them have ended and
// their ends were taken.
func (h *Hub) Held() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	slots, promised, evicted := h.places.Held()
	listened := 0
	for l := range h.listeners {
		taken, kept := l.places.Held()
		listened += taken
		promised += kept
	}
	h.fan.mu.Lock()
	defer h.fan.mu.Unlock()
	return unless(struct {
		Live, Prefaces, Slots, Listened, Promised, Evicted int
		Paused, EndLater, Diverts                          int
		Untaken                                            int64
	}{len(h.live), len(h.prefaces), slots, listened, promised, evicted,
		h.fan.paused, len(h.fan.endLater), len(h.fan.diverts), h.fan.untaken})
}

// unless is "" for the zero value.
func unless[T comparable](held T) string {
	var nothing T
	if held == nothing {
		return ""
	}
	return fmt.Sprintf("%+v", held)
}
