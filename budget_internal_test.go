package sockhub

// The memory that is lent to messages that have begun.

import "testing"

// Memory that lies about is lent to messages that have only begun, but not without
// end: who sends a large message, and then announces another one on each of many
// connections, has the memory of the first ones.
func TestMemoryLentToMessagesThatHaveBegunIsLimited(t *testing.T) {
	const size, conns = 1 << 20, 20
	b := NewBudget(4*size, 0, 0)
	ds := make([]decoder, conns)
	receive := func(d *decoder, body int) (msg []byte, ok bool) {
		d.move(make([]byte, minChunk))
		d.advance(copy(d.space(), appendHeader(nil, nil, size)))
		for body > 0 {
			d.next() // finds that the message gets a buffer of its own
			n := min(body, len(d.space()))
			d.advance(n)
			body -= n
		}
		msg, ok, _ = d.next()
		return msg, ok
	}
	held := 0
	for i := range ds {
		d := &ds[i]
		*d = decoder{max: size, streamOver: noStreams, borrow: true, lender: b}
		if msg, ok := receive(d, size); !ok || len(msg) != size {
			t.Fatalf("a message of %d bytes, %v", len(msg), ok)
		}
		d.own.Release()
		if _, ok := receive(d, earnest); ok {
			t.Fatal("a message that has only begun")
		}
		held += cap(d.big)
	}
	if most := 4*size + conns*(2*earnest+growStep); held > most {
		t.Errorf("%d bytes are held for messages of %d that have begun, at most %d were to be", held, size, most)
	}
	for i := range ds {
		ds[i].drop()
	}
	if n := b.lent.Load(); n != 0 {
		t.Errorf("%d bytes are lent in the end", n)
	}
}
