package sockhub_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// decimal is a user's own framing: the length in decimal digits, and a colon.
type decimal struct{}

func (decimal) MaxHeader() int { return 21 }
func (decimal) AppendHeader(dst []byte, n uint64) []byte {
	return append(strconv.AppendUint(dst, n, 10), ':')
}
func (decimal) Header(p []byte) (size int, n uint64, err error) {
	p = p[:min(len(p), 21)]
	digits, _, ok := bytes.Cut(p, []byte(":"))
	if !ok && len(p) < 21 {
		return 0, 0, nil
	}
	n, err = strconv.ParseUint(string(digits), 10, 64)
	return len(digits) + 1, n, err
}

func TestMessagesInEveryFraming(t *testing.T) {
	for name, c := range map[string]struct {
		framing sockhub.Framing
		most    int // the longest message that it can express, or that is tried
	}{
		"8 little":  {sockhub.LengthPrefix(8, binary.LittleEndian), 200_000},
		"8 big":     {sockhub.LengthPrefix(8, binary.BigEndian), 200_000},
		"4 little":  {sockhub.LengthPrefix(4, binary.LittleEndian), 200_000},
		"4 big":     {sockhub.LengthPrefix(4, binary.BigEndian), 200_000},
		"2 little":  {sockhub.LengthPrefix(2, binary.LittleEndian), 65535},
		"2 big":     {sockhub.LengthPrefix(2, binary.BigEndian), 65535},
		"1":         {sockhub.LengthPrefix(1, binary.BigEndian), 255},
		"uvarint":   {sockhub.Uvarint(), 200_000},
		"one's own": {decimal{}, 200_000},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, err := sockhub.New(context.Background(), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer a.Close()
				b, err := sockhub.New(context.Background(), &sockhub.Options{Name: "me"})
				if err != nil {
					t.Fatal(err)
				}
				defer b.Close()
				l := memnet.Listen(nil)
				// The name and the answer are messages of the framing too.
				if _, err := a.Serve(l, &sockhub.ListenOptions{Framing: c.framing}); err != nil {
					t.Fatal(err)
				}
				nc, err := l.Dial(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				conn, err := b.Attach(t.Context(), nc, &sockhub.DialOptions{Framing: c.framing})
				if err != nil {
					t.Fatal(err)
				}
				sizes := []int{0, 1, 127, 128, 255, 256, 16383, 16384, 65535, c.most}
				want := 0
				for _, size := range sizes {
					err := conn.TrySend(pattern(size))
					if size > c.most {
						if !errors.Is(err, sockhub.ErrMessageTooLarge) {
							t.Errorf("%d bytes: %v", size, err)
						}
						continue
					}
					if err != nil {
						t.Errorf("%d bytes: %v", size, err)
					}
					want++
				}
				for got := 0; got < want; {
					for _, m := range (<-a.Events()).Messages() {
						for sizes[got] > c.most {
							sizes = append(sizes[:got], sizes[got+1:]...)
						}
						if !bytes.Equal(m, pattern(sizes[got])) {
							t.Fatalf("message %d: %d bytes, want %d", got, len(m), sizes[got])
						}
						got++
					}
				}
			})
		})
	}
}

// notInPlace returns memory of its own from AppendHeader, as append may.
type notInPlace struct{ sockhub.Framing }

func (f notInPlace) AppendHeader(dst []byte, n uint64) []byte {
	return f.Framing.AppendHeader(slices.Clip(dst), n)
}

func TestFramingThatAppendsToACopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := sockhub.LengthPrefix(4, leOrder)
		h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(m) }}
		_, p := serveMemory(t, openHub(t, nil), nil, sockhub.ListenOptions{
			Framing: notInPlace{f},
			Handler: func(*sockhub.Conn) sockhub.Handler { return h },
		})
		var wire []byte
		for _, m := range []string{"one", "two", "three", "four"} {
			wire = append(f.AppendHeader(wire, uint64(len(m))), m...)
		}
		p.Write(wire)
		expect(t, p, wire)
	})
}
