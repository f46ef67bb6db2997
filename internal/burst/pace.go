// Package burst is about what is sent in bursts: it tells a message that comes alone from
// one of many, and keeps small messages that are broadcast in a burst once for all.
package burst

// Pace counts how often something was sent in an epoch, and in the one before: more than
// once in an epoch is a burst, which is worth gathering. Its zero value is never. Calls on
// it are to be serialized.
type Pace struct {
	epoch       uint64
	now, before int
}

// Next counts one that is sent, and reports whether it belongs to a burst.
func (p *Pace) Next(epoch uint64) bool {
	p.enter(epoch)
	p.now++
	return p.now > 1 || p.before > 1
}

// Would is what Next would report.
func (p *Pace) Would(epoch uint64) bool {
	p.enter(epoch)
	return p.now > 0 || p.before > 1
}

// More counts n more that were sent with the last one.
func (p *Pace) More(n int) { p.now += n }

// enter begins to count anew if it is another epoch.
func (p *Pace) enter(epoch uint64) {
	if p.epoch != epoch {
		p.before = 0
		if p.epoch == epoch-1 {
			p.before = p.now
		}
		p.epoch, p.now = epoch, 0
	}
}
