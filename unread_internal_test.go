package sockhub

import (
	"math/rand/v2"
	"testing"

	"github.com/sockhub/sockhub/internal/chunk"
)

// What Unread gives back stays where it is, whole, however it comes and goes, and keeps no
// more memory than a few times itself.
func TestMuchUnreadKeepsLittleBesideItself(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 3))
		c := &Conn{dec: decoder{max: 64 << 20, borrow: seed%2 == 0}}
		d, s := &c.dec, new(scratch)
		if d.setRaw(true); d.borrow {
			s.chunk = chunk.Get(chunk.Size)
		}
		var came, gone, left int // bytes
		at := func(i int) byte { return byte(i ^ i>>8 ^ i>>16) }
		mem := d.chunk // all of what the chunk is of
		turn := func(arrive, consume int) {
			for d.begin(s); arrive > 0; {
				if d.full() {
					c.nextChunk(s)
				}
				if n := len(d.chunk); n > len(mem) || &mem[len(mem)-n] != &d.chunk[0] {
					mem = d.chunk
				}
				p := d.space()
				p = p[:min(arrive, len(p))]
				for i := range p {
					p[i] = at(came + i)
				}
				d.advance(len(p))
				came, arrive = came+len(p), arrive-len(p)
				for m, ok, err := d.next(); ok || err != nil; m, ok, err = d.next() {
					if err != nil || len(m) != came-gone || m[0] != at(gone) || m[len(m)-1] != at(came-1) {
						t.Fatalf("%d: %d bytes of %d, or others; %v", seed, len(m), came-gone, err)
					}
					n := min(consume, len(m)-1)
					d.unread(m[n:])
					gone, consume = gone+n, consume-n
				}
			}
			d.pause(s)
			left = came - gone
		}
		for most := 1<<20 + rng.IntN(8<<20); left < most; {
			turn(1+rng.IntN(1<<20), 0)
		}
		for d.stay != nil {
			whole, n := len(mem), len(d.rest)
			if d.borrow {
				whole = len(d.stay.in.Mem())
			}
			if whole > 4*n+growStep {
				t.Fatalf("%d: %d bytes are kept for %d", seed, whole, n)
			}
			step := 1 + rng.IntN(50<<10)
			if room := len(d.stay.mem) - d.stay.at - n; room > n/8+3*step {
				turn(step, step)
			} else {
				turn(1, step)
			}
		}
		d.drop()
	}
}
