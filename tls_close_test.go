package sockhub_test

// How connections over TLS end.

import (
	"crypto/tls"
	"io"
	"runtime"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
)

func TestTLSPeerFinishesAndIsAnswered(t *testing.T) {
	ca := newAuthority()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, halfOpen := range []bool{false, true} {
			hub := openHub(t, nil)
			l, err := hub.Listen(t.Context(), "tcp", "127.0.0.1:0", &sockhub.ListenOptions{Mode: sockhub.Anonymous, HalfOpen: halfOpen,
				TLS: &tls.Config{Certificates: []tls.Certificate{ca.certify("127.0.0.1")}}})
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan *sockhub.Conn, 1)
			gone := make(chan sockhub.Disconnection, 1)
			go func() {
				for b := range hub.Events() {
					for c, m := range b.Messages() {
						c.TrySend(m)
					}
					for _, c := range b.Ended {
						ended <- c
					}
					for _, d := range b.Disconnected {
						gone <- d
					}
				}
			}()
			nc, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: ca.pool, MaxVersion: version})
			if err != nil {
				t.Fatal(err)
			}
			nc.SetDeadline(time.Now().Add(5 * time.Second))
			big := string(make([]byte, 300_000))
			go func() {
				nc.Write(frames("a", big, "b"))
				nc.CloseWrite()
			}()
			expect(t, nc, frames("a", big, "b"))
			c := <-ended
			if halfOpen {
				<-time.After(50 * time.Millisecond)
				if err := c.TrySend([]byte("late")); err != nil {
					t.Fatal(err)
				}
				c.Finish()
				expect(t, nc, frame("late"))
			}
			if n, err := nc.Read(make([]byte, 1)); err != io.EOF {
				t.Fatal(n, err)
			}
			nc.Close()
			d := <-gone
			t.Log(version, halfOpen, d.Err, d.Report)
		}
	}
}

func TestTLSOutputEndsAndInputGoesOn(t *testing.T) {
	ca := newAuthority()
	hub := openHub(t, nil)
	l, err := hub.Listen(t.Context(), "tcp", "127.0.0.1:0", &sockhub.ListenOptions{Mode: sockhub.Anonymous,
		TLS: &tls.Config{Certificates: []tls.Certificate{ca.certify("127.0.0.1")}}})
	if err != nil {
		t.Fatal(err)
	}
	nc, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: ca.pool})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(5 * time.Second))
	nc.Write(frame("a"))
	for {
		b := <-hub.Events()
		for c := range b.Messages() {
			c.TrySend([]byte("bye"))
			c.CloseWrite()
		}
		if len(b.Received) > 0 {
			break
		}
	}
	expect(t, nc, frame("bye"))
	if n, err := nc.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(n, err)
	}
	nc.Write(frame("still"))
	got := false
	timeout := time.After(3 * time.Second)
	for !got {
		select {
		case b := <-hub.Events():
			got = len(b.Received) > 0
		case <-timeout:
			t.Fatal("input after our CloseWrite is not read")
		}
	}
	nc.Close()
	for {
		select {
		case b := <-hub.Events():
			for _, d := range b.Disconnected {
				t.Log(d.Err, d.Report)
				return
			}
		case <-timeout:
			t.Fatal("no end")
		}
	}
}

// With HalfOpen a connection ends by itself when both sides have finished, over TLS as
// without it.
func TestHalfOpenEndsWhenBothHaveFinished(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("few systems tell")
	}
	for _, kind := range withTLS() {
		if kind == "tcp6" || kind == "abstract" {
			continue
		}
		for _, first := range []string{"the peer", "this side"} {
			t.Run(kind+", first "+first, func(t *testing.T) {
				s := newStand(t, nil, nil)
				l := s.listen(kind, &sockhub.ListenOptions{Mode: sockhub.Anonymous, HalfOpen: true})
				p := dialKind(t, kind, l, "")
				defer p.Close()
				p.SetDeadline(time.Now().Add(patience))
				c := s.first()
				theirs := func() {
					if err := p.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
						t.Fatal(err)
					}
					s.until("Ended", func() bool { return s.ended[c] > 0 })
				}
				ours := func() {
					if err := c.CloseWrite(); err != nil {
						t.Fatal(err)
					}
					if n, err := p.Read(make([]byte, 1)); err != io.EOF {
						t.Fatal(n, err)
					}
				}
				if first == "the peer" {
					theirs()
					ours()
				} else {
					ours()
					theirs()
				}
				p.Close()
				if d := s.end(c); d.Err != io.EOF {
					t.Errorf("ended with %v", d.Err)
				}
			})
		}
	}
}
