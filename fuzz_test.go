package sockhub_test

// Anything as the input of a handshake; script_test.go has what comes after it.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// FuzzHandshake gives a hub anything as the input of a named connection: it
// answers OK exactly if that begins with a name of 1 to 255 bytes, and delivers
// the messages behind it.
func FuzzHandshake(f *testing.F) {
	f.Add(wire([]byte("name")))
	f.Add(wire([]byte("name"), []byte("message"), nil)[:20])
	f.Add(wire([]byte("name"), nil, []byte("message"), make([]byte, 1001)))
	f.Add(wire(nil))
	f.Add(wire(make([]byte, 255), []byte("m")))
	f.Add(wire(make([]byte, 256)))
	f.Add(bytes.Repeat([]byte{0xff}, 9))
	f.Add([]byte{4, 0, 0})
	f.Fuzz(func(t *testing.T, input []byte) {
		const limit = 1000
		hub, err := sockhub.New(context.Background(), &sockhub.Options{MaxMessage: limit})
		if err != nil {
			t.Fatal(err)
		}
		defer hub.Close()
		ours, theirs := memnet.Pair(nil)
		defer theirs.Close()
		go func() {
			theirs.Write(input)
			theirs.CloseWrite()
		}()
		output := make(chan []byte, 1)
		go func() {
			out, _ := io.ReadAll(theirs)
			output <- out
		}()
		c, err := hub.ServeConn(soon(t), ours, nil)

		name, rest, ok := firstMessage(input)
		if ok = ok && len(name) >= 1 && len(name) <= sockhub.MaxNameLen; !ok {
			if err == nil {
				t.Fatalf("%q was let in", c.Name())
			}
			if out := <-output; len(out) > 0 {
				t.Fatalf("refused with %q", out)
			}
			return
		}
		if err != nil || c.Name() != string(name) {
			t.Fatalf("%q was not let in: %v", name, err)
		}
		var want, got [][]byte
		for m, more, ok := firstMessage(rest); ok && len(m) <= limit; m, more, ok = firstMessage(more) {
			want, rest = append(want, m), more
		}
		var end error
		for end == nil {
			b := <-hub.Events()
			for _, m := range b.Messages() {
				got = append(got, m)
			}
			for _, d := range b.Disconnected {
				end = d.Err
			}
		}
		if err := sameBodies(got, want); err != nil {
			t.Fatal(err)
		}
		tooLarge := len(rest) >= 8 && binary.LittleEndian.Uint64(rest) > limit
		switch {
		case errors.Is(end, sockhub.ErrMessageTooLarge) != tooLarge,
			(end == io.EOF) != (len(rest) == 0),
			(end == io.ErrUnexpectedEOF) != (len(rest) > 0 && !tooLarge):
			t.Fatalf("ended with %v before % x", end, rest)
		}
		if out := <-output; !bytes.Equal(out, wire([]byte("OK"))) && !(tooLarge && len(out) == 0) {
			t.Fatalf("answered %q", out)
		}
	})
}

// firstMessage cuts the first message off.
func firstMessage(p []byte) (m, rest []byte, ok bool) {
	if len(p) < 8 {
		return nil, p, false
	}
	n := binary.LittleEndian.Uint64(p)
	if n > uint64(len(p)-8) {
		return nil, p, false
	}
	return p[8 : 8+n], p[8+n:], true
}
