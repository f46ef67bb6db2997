package transporttest

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"

	"github.com/sockhub/sockhub/internal/transport"
)

// This file tests what becomes of the bytes, in both directions and at either
// end; the other one, when Read and Write run their turns and return.

func testEOF(e *env) {
	want := noise(100_000)
	e.wg.Go(func() {
		if _, err := e.peer.Write(want); err != nil {
			e.Errorf("peer's Write: %v", err)
		}
		e.peer.Close()
	})
	got, err := e.read(len(want) + 1)
	if err != io.EOF {
		e.Errorf("after %d bytes: %v, want io.EOF", len(got), err)
	}
	if !bytes.Equal(got, want) {
		e.Errorf("got %d bytes that are not the %d that were sent", len(got), len(want))
	}
	for range 2 {
		if got, err := e.read(1); len(got) != 0 || err != io.EOF {
			e.Errorf("after the end: %d bytes, %v; want io.EOF again", len(got), err)
		}
	}
	if runtime.GOOS == "linux" && !e.conn.Ended() {
		e.Error("not Ended after the end")
	}

	// A reader that parks after the end does not spin, and can be kicked.
	turns := 0
	done := make(chan error, 1)
	e.wg.Go(func() {
		done <- e.conn.Read(func() bool { turns++; return e.parkedRead() })
	})
	e.conn.Kick(transport.ReadSide)
	if err := <-done; err != transport.ErrKicked || turns > 10 {
		e.Errorf("Read after the end = %v after %d turns, want ErrKicked after a few", err, turns)
	}
}

func testShortWrite(e *env) {
	_, tries, err := e.conn.WriteNow(nil)
	if err != nil {
		e.Fatal(err)
	}
	if !tries {
		e.Skip("this transport waits in TryWritev")
	}
	const limit = 64 << 20
	chunk := noise(100_000)
	full, sent := make(chan struct{}), make(chan int, 1)
	e.wg.Go(func() {
		defer close(sent)
		var once sync.Once
		total, rest, short := 0, chunk, false
		err := e.conn.Write(func() (park bool) {
			for total < limit {
				n, err := e.conn.TryWritev([][]byte{rest[:len(rest)/2], rest[len(rest)/2:]})
				total += n
				if err != nil {
					e.Errorf("TryWritev: %v", err)
					return false
				}
				if n < len(rest) {
					rest, short = rest[n:], true
					once.Do(func() { close(full) })
					return true
				}
				if rest = chunk; short {
					return false
				}
			}
			e.Errorf("took %d bytes, and never was full", total)
			once.Do(func() { close(full) })
			return false
		})
		if err != nil {
			e.Errorf("Write: %v", err)
		}
		e.conn.Hangup()
		sent <- total
	})
	<-full
	got, got2 := 0, make([]byte, 64<<10)
	for {
		n, err := e.peer.Read(got2)
		for i, b := range got2[:n] {
			if b != chunk[(got+i)%len(chunk)] {
				e.Fatalf("byte %d is wrong", got+i)
			}
		}
		got += n
		if err != nil {
			break
		}
	}
	if want := <-sent; got != want {
		e.Errorf("the peer got %d bytes of %d", got, want)
	}
}

func testManySlices(e *env) {
	var v [][]byte
	var all []byte
	add := func(p []byte) {
		v = append(v, p)
		all = append(all, p...)
	}
	source := noise(200_000)
	for i := range 5000 {
		add(source[i : i+i%7]) // empty ones among them
	}
	add(source[:70_000])
	add(nil)
	for i := range 100 {
		add(source[i*100 : i*100+1000])
	}
	add(source[5 : 16<<10])
	add(nil)
	before := len(v)
	e.wg.Go(func() {
		if err := e.write(v); err != nil {
			e.Errorf("write: %v", err)
		}
	})
	e.wantPeer(all)
	e.wg.Wait()
	if len(v) != before || &v[0][:1][0] != &source[0] {
		e.Error("TryWritev changed its argument")
	}
	e.wg.Go(func() {
		if err := e.write([][]byte{nil, {}}); err != nil {
			e.Errorf("write of nothing: %v", err)
		}
	})
	e.wg.Wait()
}

func testWriteNow(e *env) {
	n, ok, err := e.conn.WriteNow([][]byte{[]byte("ab"), nil, []byte("c")})
	if !ok {
		if n != 0 || err != nil {
			e.Errorf("WriteNow = %d, false, %v; want 0, false, nil", n, err)
		}
		return
	}
	if n != 3 || err != nil {
		e.Fatalf("WriteNow = %d, true, %v; want 3", n, err)
	}
	e.wg.Go(func() {
		if err := e.write([][]byte{[]byte("def")}); err != nil {
			e.Error(err)
		}
	})
	e.wantPeer([]byte("abcdef"))
}

func testCloseWrite(e *env) {
	ended := make(chan error, 1)
	e.wg.Go(func() {
		_, err := io.ReadFull(e.peer, make([]byte, 4))
		if err == nil {
			_, err = e.peer.Read(make([]byte, 1))
		}
		ended <- err
	})
	if err := e.write([][]byte{[]byte("last")}); err != nil {
		e.Fatal(err)
	}
	if err := e.conn.CloseWrite(); errors.Is(err, errors.ErrUnsupported) {
		e.Skip("no CloseWrite")
	} else if err != nil {
		e.Fatalf("CloseWrite: %v", err)
	}
	if err := <-ended; err != io.EOF {
		e.Errorf("peer's Read after CloseWrite: %v, want io.EOF", err)
	}
	want := noise(10_000)
	e.send(want)
	e.wantRead(want)
	if n, ok := e.conn.Unacked(); ok && n != 0 {
		e.Errorf("Unacked = %d after the peer has read the end, want 0", n)
	}
}

func testDuplexWithKicks(e *env) {
	const size = 1 << 20
	in, out := noise(size), noise(size+1)
	var transfers sync.WaitGroup
	transfers.Go(func() {
		for p := in; len(p) > 0; {
			n := min(len(p), 1+rand.IntN(30_000))
			if _, err := e.peer.Write(p[:n]); err != nil {
				e.Errorf("peer's Write: %v", err)
				return
			}
			p = p[n:]
		}
	})
	transfers.Go(func() {
		got := make([]byte, len(out))
		if _, err := io.ReadFull(e.peer, got); err != nil {
			e.Errorf("peer's Read: %v", err)
		}
		if !bytes.Equal(got, out) {
			e.Error("the peer got other bytes")
		}
	})
	transfers.Go(func() {
		got, err := e.read(len(in))
		if err != nil {
			e.Errorf("read: %v", err)
		}
		if !bytes.Equal(got, in) {
			e.Error("got other bytes than the peer sent")
		}
	})
	transfers.Go(func() {
		for p := out; len(p) > 0; {
			var v [][]byte
			for range 1 + rand.IntN(20) {
				n := min(len(p), rand.IntN(5000))
				v, p = append(v, p[:n]), p[n:]
			}
			if err := e.write(v); err != nil {
				e.Errorf("write: %v", err)
				return
			}
		}
	})
	done := make(chan struct{})
	e.wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				e.conn.Kick(transport.Side(rand.IntN(2)))
				e.conn.Pending()
				e.conn.Unacked()
			}
		}
	})
	transfers.Wait()
	close(done)
}

func testReset(e *env) {
	r, ok := e.peer.(Resetter)
	if !ok {
		e.Skip("the peer cannot reset")
	}
	sent := noise(1000)
	if _, err := e.peer.Write(sent); err != nil {
		e.Fatal(err)
	}
	if err := r.Reset(); err != nil {
		e.Fatal(err)
	}
	// A reset behind the data may have had no edge of its own, so somebody
	// must look after a park that lasts.
	done := make(chan struct{})
	e.wg.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				if e.conn.Pending() {
					e.conn.Kick(transport.ReadSide)
				}
			}
		}
	})
	got, err := e.read(len(sent) + 1)
	close(done)
	if err == nil || err == io.EOF {
		e.Errorf("after a reset: %v, want an error that is not io.EOF", err)
	}
	if !bytes.HasPrefix(sent, got) {
		e.Error("got other bytes than were sent before the reset")
	}
}
