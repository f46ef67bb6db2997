package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"iter"
	"math/rand/v2"
)

// The first byte of a message says what it is. Those up to last carry data:
// their number among the messages of their kind on a connection, and bytes that
// follow from it, so that a receiver knows what message n has to look like.
const (
	small    = 's' // 16 to 112 bytes; the peer sends it back
	large    = 'l' // 1 MiB; the peer checks it
	last     = 'z' // as small, sent right before the end
	question = '?' // asks for the peer's tallies
	answer   = '=' // the tallies, as JSON
	farewell = '!' // the tally that the peer is to have of last messages in the end, as JSON
)

const (
	largeSize  = 1 << 20
	headerSize = 9 // kind and number
)

// noise is what messages are filled from: the same in every process.
var noise = makeNoise()

func makeNoise() []byte {
	p := make([]byte, 4*largeSize)
	rand.NewChaCha8([32]byte{'s', 'o', 'c', 'k', 'h', 'u', 'b'}).Read(p)
	return p
}

// header is the first part of data message n of a kind.
func header(dst []byte, kind byte, n uint64) []byte {
	return binary.LittleEndian.AppendUint64(append(dst, kind), n)
}

// filler is the rest of it.
func filler(kind byte, n uint64) []byte {
	size := uint64(largeSize - headerSize)
	if kind != large {
		size = 7 + n*31%97
	}
	at := n * 4099 % uint64(len(noise)-largeSize)
	return noise[at : at+size]
}

// tally is what one side has seen of one kind of message on one connection.
type tally struct {
	Messages, Bytes uint64
	CRC             uint32 // of all bodies, in their order
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (t *tally) add(msg ...[]byte) {
	t.Messages++
	for _, p := range msg {
		t.Bytes += uint64(len(p))
		t.CRC = crc32.Update(t.CRC, castagnoli, p)
	}
}

// check adds a message, if it is the one whose turn it is and has the right
// content.
func (t *tally) check(msg []byte) error {
	n := t.Messages
	if len(msg) < headerSize {
		return fmt.Errorf("%q came instead of message %d", msg, n)
	}
	kind := msg[0]
	if got := binary.LittleEndian.Uint64(msg[1:]); got != n {
		return fmt.Errorf("message %d of kind %q came when it was the turn of %d", got, kind, n)
	}
	if !bytes.Equal(msg[headerSize:], filler(kind, n)) {
		return fmt.Errorf("message %d of kind %q came with another content than it was sent with", n, kind)
	}
	t.add(msg)
	return nil
}

// generate yields the next messages of a kind, of which t counts those before,
// and adds them to t. The hub owns what it was given, so that none of the
// memory is used twice.
func generate(kind byte, count int, t *tally) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		var room []byte
		for range count {
			n := t.Messages
			fill := filler(kind, n)
			if cap(room)-len(room) < headerSize+len(fill) {
				room = make([]byte, 0, max(64<<10, headerSize+len(fill)))
			}
			begin := len(room)
			room = append(header(room, kind, n), fill...)
			msg := room[begin:len(room):len(room)]
			t.add(msg)
			if !yield(msg) {
				return
			}
		}
	}
}
