package sockhub_test

// Peers on real sockets that die, stall, come back and misbehave.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/nofile"
)

func TestKilledPeerIsSeenAndItsNameIsFree(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newStand(t, nil, nil)
			l := s.listen(kind, nil)
			id, err := s.Expect("worker", nil)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 2 {
				c := startChild(t, fmt.Sprintf("hold %s %s worker", l.Addr().Network(), l.Addr()))
				c.line("HOLDING")
				s.until("the child", func() bool { return len(s.conns) == i+1 && s.count == i+1 })
				if err := c.cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				conn := s.nth(i)
				if d := s.end(conn); d.Err != io.EOF || conn.ID() != id {
					t.Errorf("client %d ended with %v, want client %d and io.EOF", conn.ID(), d.Err, id)
				}
			}
		})
	}
}

// fill sends messages of different sizes to c until one would have to wait for
// long, and returns what was accepted.
func fill(t *testing.T, c *sockhub.Conn, n int) (sent [][]byte) {
	t.Helper()
	for k := range n {
		m := body(9, k, 1000+k%977*7)
		if err := c.Send(soon(t), m); err != nil {
			if !errors.Is(err, sockhub.ErrNotConnected) {
				t.Errorf("Send: %v", err)
			}
			return sent
		}
		sent = append(sent, m)
	}
	return sent
}

func TestPeerThatNeverReadsIsGivenUpAndReportedExactly(t *testing.T) {
	for _, kind := range withTLS() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newStand(t, &sockhub.Options{WriteTimeout: 300 * time.Millisecond}, nil)
			p := dialKind(t, kind, s.listen(kind, nil), "p")
			c := s.first()
			sent := fill(t, c, 20000) // more than fits into the kernel and the queue
			d := s.end(c)
			if d.Err != sockhub.ErrSlowPeer {
				t.Errorf("ended with %v, want ErrSlowPeer", d.Err)
			}
			r := d.Report
			if r.AcceptedMessages != uint64(len(sent)) || r.UnsentMessages == 0 || r.WrittenMessages == 0 {
				t.Errorf("%d messages were accepted: %+v", len(sent), r)
			}
			if n := s.Stats().SlowPeers; n != 1 {
				t.Errorf("SlowPeers is %d, want 1", n)
			}
			rest := sent[min(r.WrittenMessages, uint64(len(sent))):]
			if r.Cut {
				if string(r.CutMessage()) != string(rest[0]) {
					t.Error("the cut message is not the first that was not written")
				}
				rest = rest[1:]
			}
			if err := sameBodies(slices.Collect(r.Unsent()), rest); err != nil {
				t.Errorf("unsent: %v", err)
			}
			// All that was written comes, since we did not reset.
			var got [][]byte
			for {
				m, err := p.tryReceive()
				if err == nil {
					got = append(got, m)
					continue
				}
				cut := errors.Is(err, io.ErrUnexpectedEOF)
				if cut && kind == "tls" && len(m) == 0 {
					break // it was not told the end; and of a cut message it may not have got a record
				}
				if cut && (!r.Cut || uint64(len(m)) != r.CutWritten) || !cut && err != io.EOF {
					t.Errorf("the peer's input ends with %v and %d bytes: %+v", err, len(m), r)
				}
				break
			}
			if err := sameBodies(got, sent[:r.WrittenMessages]); err != nil {
				t.Errorf("written: %v", err)
			}
		})
	}
}

// What the kernel has taken in the first moment, or when a peer had read a little, is not
// progress when WriteTimeout is over.
func TestPeerThatStopsReadingGoesInTime(t *testing.T) {
	for _, kind := range []string{"tcp", "unix", "tls"} {
		for _, reads := range []int{0, 50_000} {
			t.Run(fmt.Sprint(kind, ", of which it reads ", reads), func(t *testing.T) {
				t.Parallel()
				const timeout = 2 * time.Second
				s := newStand(t, &sockhub.Options{WriteTimeout: timeout}, nil)
				p := dialKind(t, kind, s.listen(kind, nil), "p")
				c := s.first()
				begun := time.Now()
				if err := c.TrySend(make([]byte, 30<<20)); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(p, make([]byte, reads)); err != nil {
					t.Fatal(err)
				}
				d := s.end(c)
				if took := time.Since(begun); !errors.Is(d.Err, sockhub.ErrSlowPeer) || took < timeout || took > timeout+time.Second {
					t.Errorf("%v after %v, want ErrSlowPeer after %v", d.Err, took, timeout)
				}
			})
		}
	}
}

// A peer that takes its time is not one that takes nothing, though the kernel
// asks for more only now and then.
func TestPeerThatReadsSlowlySurvives(t *testing.T) {
	for _, kind := range withTLS() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const timeout = 3 * time.Second
			s := newStand(t, &sockhub.Options{WriteTimeout: timeout}, nil)
			p := dialKind(t, kind, s.listen(kind, nil), "p")
			c := s.first()
			const n = 3000
			done := make(chan [][]byte)
			go func() { done <- fill(t, c, n) }()
			slow, begun := make([]byte, 0, 10<<20), time.Now()
			pace := time.NewTicker(10 * time.Millisecond)
			defer pace.Stop()
			for time.Since(begun) < 2*timeout { // about 400 kB/s
				<-pace.C
				k, err := p.Read(slow[len(slow) : len(slow)+4096])
				if err != nil {
					t.Fatal(err)
				}
				slow = slow[:len(slow)+k]
			}
			if c.Stats().QueuedOut == 0 {
				t.Error("the kernel took everything: the peer was not slow")
			}
			p.Conn = prefixed{p.Conn, &slow}
			var got [][]byte
			for range n {
				got = append(got, p.receive())
			}
			if err := sameBodies(got, <-done); err != nil {
				t.Error(err)
			}
		})
	}
}

// prefixed is a connection of which something was read already.
type prefixed struct {
	net.Conn
	read *[]byte
}

func (c prefixed) Read(p []byte) (int, error) {
	if len(*c.read) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, *c.read)
	*c.read = (*c.read)[n:]
	return n, nil
}

func TestMessageAboveMaxMessageEndsItsConnectionAlone(t *testing.T) {
	const most = 100000
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newStand(t, &sockhub.Options{MaxMessage: 1000}, nil)
			l := s.listen(kind, &sockhub.ListenOptions{MaxMessage: most, Mode: sockhub.Anonymous})
			other := dialHub(t, l, "")
			oc := s.first()
			lengths := []uint64{most + 1, 1 << 31, 1<<31 - 1, 1 << 32, 1<<63 - 1, 1 << 63, 1<<64 - 1}
			for i, n := range lengths {
				p := dialHub(t, l, "")
				c := s.nth(i + 1)
				p.send(body(0, 0, most), nil)
				p.Write(binary.LittleEndian.AppendUint64(nil, n))
				if d := s.end(c); !errors.Is(d.Err, sockhub.ErrMessageTooLarge) {
					t.Errorf("a message of %d bytes ends the connection with %v", n, d.Err)
				}
				if err := sameBodies(s.got(c, 2), [][]byte{body(0, 0, most), nil}); err != nil {
					t.Errorf("before a message of %d bytes: %v", n, err)
				}
				if _, err := p.Read(make([]byte, 1)); err == nil {
					t.Error("the peer got an answer")
				}
			}
			if n := s.Stats().ProtocolErrors; n != uint64(len(lengths)) {
				t.Errorf("ProtocolErrors is %d, want %d", n, len(lengths))
			}
			if err := oc.Send(soon(t), make([]byte, most)); err != nil {
				t.Errorf("sending the largest message: %v", err)
			}
			if err := oc.Send(soon(t), make([]byte, most+1)); !errors.Is(err, sockhub.ErrMessageTooLarge) {
				t.Errorf("sending more: %v", err)
			}
			if m := other.receive(); len(m) != most {
				t.Errorf("the other peer got %d bytes", len(m))
			}
		})
	}
}

func TestClientThatComesBackAtOnceIsLetIn(t *testing.T) {
	for _, kind := range []string{"tcp4", "unix"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const n = 500
			s := newStand(t, nil, nil)
			l := s.listen(kind, nil)
			id, err := s.Expect("again", nil)
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				p := dialHub(t, l, "again")
				p.send([]byte{byte(i), byte(i >> 8)})
				p.Close()
			}
			s.until("all ends", func() bool { return len(s.gone) == n })
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.conns) != n || s.count != n {
				t.Errorf("%d connections and %d messages, want %d", len(s.conns), s.count, n)
			}
			for i, c := range s.conns {
				if c.ID() != id || s.gone[c][0].Err != io.EOF || len(s.msgs[c]) != 1 || string(s.msgs[c][0]) != string([]byte{byte(i), byte(i >> 8)}) {
					t.Fatalf("connection %d of client %d: %q, %v", i, c.ID(), s.msgs[c], s.gone[c][0].Err)
				}
			}
			if st := s.Stats(); st.RefusedName != 0 || st.Accepted != n || st.Disconnected != n {
				t.Errorf("%+v", st)
			}
		})
	}
}

// Clients that come back while nobody takes the events of the one before are
// not refused: they wait for it, unanswered.
func TestClientThatComesBackWaitsForItsEndToBeTaken(t *testing.T) {
	for _, kind := range []string{"tcp4", "unix"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			hub := openHub(t, nil)
			network, addr := address(t, kind)
			l, err := hub.Listen(soon(t), network, addr, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := hub.Expect("again", nil); err != nil {
				t.Fatal(err)
			}
			const n = 5
			first := dialHub(t, l, "again")
			first.send([]byte{0})
			first.Close()
			answered := make(chan error, n)
			for i := 1; i < n; i++ {
				p := dialHub(t, l, "")
				p.send([]byte("again"), []byte{byte(i)})
				p.closeWrite()
				go func() {
					m, err := p.tryReceive()
					if string(m) != "OK" {
						err = fmt.Errorf("the answer to name %d is %q, %v", i, m, err)
					}
					p.Close()
					answered <- err
				}()
			}
			var came, msgs, went []int // by batch
			for at := 0; len(went) < n; at++ {
				select {
				case b := <-hub.Events():
					for range b.Connected {
						came = append(came, at)
					}
					for range b.Messages() {
						msgs = append(msgs, at)
					}
					for range b.Disconnected {
						went = append(went, at)
					}
				case <-soon(t).Done():
					t.Fatalf("waited in vain: connections came in batches %v, messages in %v, ends in %v", came, msgs, went)
				}
			}
			for range n - 1 {
				if err := <-answered; err != nil {
					t.Error(err)
				}
			}
			ok := len(came) == n && len(msgs) == n
			for i := 1; ok && i < n; i++ {
				ok = came[i] > went[i-1] // a batch tells of one connection of a client only
			}
			if !ok {
				t.Errorf("connections came in batches %v, messages in %v, ends in %v", came, msgs, went)
			}
		})
	}
}

// The queue runs empty and fills again all the time, so that every writer
// begins where another one ends.
func TestManySendersOnOneSocket(t *testing.T) {
	for _, kind := range withTLS() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			server, client := newStand(t, nil, nil), newStand(t, nil, nil)
			l := server.listen(kind, nil)
			c, err := client.dial(kind, l, sockhub.DialOptions{Name: "c"})
			if err != nil {
				t.Fatal(err)
			}
			const senders, each = 4, 2000
			var failed atomic.Int64
			for s := range senders {
				go func() {
					for k := range each {
						if err := c.Send(context.Background(), []byte{byte(s), byte(k), byte(k >> 8)}); err != nil {
							failed.Add(1)
						}
					}
				}()
			}
			got := server.got(server.first(), senders*each)
			var next [senders]int
			for _, m := range got {
				if k := int(m[1]) | int(m[2])<<8; k != next[m[0]] {
					t.Fatalf("message %d of sender %d is %d", next[m[0]], m[0], k)
				}
				next[m[0]]++
			}
			if failed.Load() > 0 {
				t.Errorf("%d sends failed", failed.Load())
			}
		})
	}
}

func TestRefusedNamesHearNothing(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newStand(t, &sockhub.Options{Unexpected: sockhub.RefuseUnexpected}, nil)
			l := s.listen(kind, nil)
			if _, err := s.Expect("known", nil); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Expect("barred", &sockhub.ClientOptions{Admit: sockhub.Nobody()}); err != nil {
				t.Fatal(err)
			}
			dialHub(t, l, "known")
			for _, name := range []string{"unknown", "barred", "known", "", string(make([]byte, 256))} {
				p := dialHub(t, l, "")
				p.Write(wire([]byte(name)))
				if n, err := p.Read(make([]byte, 1)); n > 0 || err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("%.10q: the answer is %d bytes, %v", name, n, err)
				}
			}
		})
	}
}

func TestThousandWorkersBehindOneAddressGetInAtOnce(t *testing.T) {
	const n = 1000
	if nofile.Limit() < 3*n {
		t.Skip("the process may not open enough descriptors")
	}
	for _, kind := range []string{"tcp4", "unix"} {
		t.Run(kind, func(t *testing.T) {
			o := &sockhub.Options{HandshakeTimeout: patience} // on a busy machine too
			server, client := newStand(t, o, echo), newStand(t, o, nil)
			l := server.listen(kind, nil)
			var wg sync.WaitGroup
			for i := range n {
				wg.Go(func() {
					c, err := client.Dial(soon(t), l.Addr().Network(), l.Addr().String(), &sockhub.DialOptions{Name: fmt.Sprint("worker-", i)})
					if err == nil {
						err = c.Send(soon(t), []byte(c.Name()))
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			client.until("all echoes", func() bool { return client.count == n || t.Failed() })
			client.mu.Lock()
			for c, m := range client.msgs {
				if len(m) != 1 || string(m[0]) != c.Name() {
					t.Errorf("%s got %q", c.Name(), m)
				}
			}
			client.mu.Unlock()
			if s := server.Stats(); s.Conns != n || s.RefusedLimit != 0 || s.HandshakeTimeouts != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}
