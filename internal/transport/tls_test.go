package transport_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/sockhub/sockhub/internal/transport"
	"github.com/sockhub/sockhub/internal/transport/transporttest"
)

// selfSigned is a server's configuration. Nobody has to trust it.
func selfSigned(t *testing.T) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

// tlsLine is a transport for TLS on one end of a connection, with its handshake
// done, and TLS on the other end.
func tlsLine(t *testing.T, network string, direct bool) (transport.Conn, tlsPeer) {
	t.Helper()
	a, b := sockets(t, network)
	server := selfSigned(t)
	server.DynamicRecordSizingDisabled = true
	_, c := transport.NewTLS(a, nil, direct, func(nc net.Conn) *tls.Conn { return tls.Server(nc, server) })
	// Without tickets, so that nothing comes before what a test sends.
	peer := tls.Client(b, &tls.Config{InsecureSkipVerify: true, SessionTicketsDisabled: true})
	shaken := make(chan error, 1)
	go func() { shaken <- peer.Handshake() }()
	if err := transport.Handshake(c); err != nil {
		t.Fatal(err)
	}
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	return c, tlsPeer{peer, b}
}

type tlsPeer struct {
	*tls.Conn
	below net.Conn
}

func (p tlsPeer) Reset() error {
	tcp, ok := p.below.(*net.TCPConn)
	if !ok {
		return p.below.Close()
	}
	return resettable{tcp}.Reset()
}

func TestTLS(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		for _, direct := range []bool{true, false} {
			name := network
			if !direct {
				name += ", waiting inside of package tls"
			}
			t.Run(name, func(t *testing.T) {
				transporttest.Run(t, func(t *testing.T) (transport.Conn, io.ReadWriteCloser) {
					c, peer := tlsLine(t, network, direct)
					if network == "unix" {
						return c, peer.Conn // which knows no resets
					}
					return c, peer
				})
			})
		}
	}
}

// What the socket did not take of a record is not counted, and is not sent a
// second time when its bytes come again, together with others or not.
func TestTLSRecordIsCountedWhenItIsOut(t *testing.T) {
	c, peer := tlsLine(t, "tcp", true)
	defer c.Close()
	if !c.WritesWhole() {
		t.Error("what was given is not free to change")
	}
	all := make([]byte, 64<<20)
	for i := range all {
		all[i] = byte(i >> 10)
	}
	n := 0
	for n < len(all) {
		m, ok, err := c.WriteNow([][]byte{all[n:][:40000], nil, all[n:][40000:41000]})
		if !ok {
			t.Skip("this transport waits")
		}
		if err != nil {
			t.Fatal(err)
		}
		n += m
		if m < 41000 {
			break
		}
	}
	if m, _, err := c.WriteNow([][]byte{all[n : n+20000]}); m != 0 || err != nil {
		t.Fatalf("%d bytes, %v, where there is no room", m, err)
	}
	if unacked, ok := c.Unacked(); ok && unacked == 0 {
		t.Error("all is acknowledged")
	}
	got := make([]byte, 0, len(all))
	end := n + 100_000
	for buf := make([]byte, 10000); len(got) < end; {
		k, err := peer.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:k]...)
		if n < end {
			m, _, err := c.WriteNow([][]byte{all[n : n+(end-n)/2], all[n+(end-n)/2 : end]})
			if err != nil {
				t.Fatal(err)
			}
			n += m
		}
	}
	if !bytes.Equal(got, all[:end]) {
		t.Error("the peer got something else")
	}
}

// The end of the output waits for room.
func TestTLSCloseNotifyAfterAFullSocket(t *testing.T) {
	c, peer := tlsLine(t, "tcp", true)
	defer c.Close()
	chunk, sent := make([]byte, 10000), 0
	err := c.Write(func() (park bool) {
		for {
			n, err := c.TryWritev([][]byte{chunk[sent%len(chunk):]})
			sent += n
			switch {
			case err != nil:
				t.Error(err)
				return false
			case sent > 1<<20 && sent%len(chunk) == 0:
				return false // there may be no room for more
			case n == 0:
				go io.CopyN(io.Discard, peer, 1<<20)
				return true
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.CloseWrite() }()
	if _, err := io.Copy(io.Discard, peer); err != nil { // others may have read it all
		t.Errorf("%v; want an orderly end", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A peer that has closed in an orderly way answers a close_notify with a reset. Without TLS
// there is none, as a FIN is no data.
func TestTLSCloseNotifyToAPeerThatHasClosed(t *testing.T) {
	c, peer := tlsLine(t, "tcp", true)
	defer c.Close()
	peer.Close()
	buf := make([]byte, 1)
	err := c.Read(func() (park bool) {
		n, _, err := c.TryRead(buf)
		if n > 0 || err != nil && err != io.EOF {
			t.Errorf("%d, %v", n, err)
		}
		return n == 0 && err == nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.Unacked(); !ok {
		t.Skip("what has become of the output cannot be known")
	}
	eventually(t, "gone", func() bool { err = c.Gone(); return err != nil })
	if err != io.EOF {
		t.Error(err)
	}
}

// A record that comes in pieces is no news until its last byte is there, and a
// park in the middle of it is woken.
func TestTLSRecordInPieces(t *testing.T) {
	a, b := sockets(t, "tcp")
	server := selfSigned(t)
	_, c := transport.NewTLS(a, nil, true, func(nc net.Conn) *tls.Conn { return tls.Server(nc, server) })
	defer c.Close()
	slow := &byteByByte{Conn: b}
	peer := tls.Client(slow, &tls.Config{InsecureSkipVerify: true})
	shaken := make(chan error, 1)
	go func() { shaken <- peer.Handshake() }()
	if err := transport.Handshake(c); err != nil {
		t.Fatal(err)
	}
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	slow.on = true
	go peer.Write([]byte("in pieces"))
	got, buf := []byte(nil), make([]byte, 100)
	err := c.Read(func() (park bool) {
		n, drained, err := c.TryRead(buf)
		got = append(got, buf[:n]...)
		if err != nil || n == 0 && !drained {
			t.Errorf("%d, %v, %v", n, drained, err)
			return false
		}
		return len(got) == 0
	})
	if err != nil || string(got) != "in pieces" {
		t.Errorf("%q, %v", got, err)
	}
}

type byteByByte struct {
	net.Conn
	on bool
}

func (b *byteByByte) Write(p []byte) (n int, err error) {
	if !b.on {
		return b.Conn.Write(p)
	}
	for n < len(p) && err == nil {
		_, err = b.Conn.Write(p[n : n+1])
		n++
		<-time.After(100 * time.Microsecond) // or they come together
	}
	return n, err
}

// What was read before the handshake is a part of it.
func TestTLSHelloThatWasReadBefore(t *testing.T) {
	for _, direct := range []bool{true, false} {
		a, b := sockets(t, "tcp")
		peer := tls.Client(b, &tls.Config{InsecureSkipVerify: true})
		go peer.Write([]byte("hello"))
		first := make([]byte, 100)
		if _, err := io.ReadFull(a, first); err != nil {
			t.Fatal(err)
		}
		server := selfSigned(t)
		_, c := transport.NewTLS(a, first, direct, func(nc net.Conn) *tls.Conn { return tls.Server(nc, server) })
		if err := transport.Handshake(c); err != nil {
			t.Fatal(err)
		}
		got, buf := 0, make([]byte, 10)
		if err := c.Read(func() bool { n, _, _ := c.TryRead(buf); got += n; return n == 0 }); err != nil || string(buf[:got]) != "hello" {
			t.Errorf("%q, %v", buf[:got], err)
		}
		c.Close()
	}
}

// A kick interrupts a Read by a deadline. After that package tls goes on only where the error
// calls itself temporary, which those of others' connections need not.
func TestTLSOverAConnWhoseTimeoutsAreWrapped(t *testing.T) {
	a, b := sockets(t, "tcp")
	server := selfSigned(t)
	_, c := transport.NewTLS(wrapping{a}, nil, true, func(nc net.Conn) *tls.Conn { return tls.Server(nc, server) })
	defer c.Close()
	peer := tls.Client(b, &tls.Config{InsecureSkipVerify: true})
	shaken := make(chan error, 1)
	go func() { shaken <- peer.Handshake() }()
	if err := transport.Handshake(c); err != nil {
		t.Fatal(err)
	}
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	c.Kick(transport.ReadSide)
	for kicks := 0; kicks < 2; kicks++ {
		turns := 0
		err := c.Read(func() (park bool) {
			if turns++; turns == 1 {
				time.AfterFunc(time.Millisecond, func() { c.Kick(transport.ReadSide) })
			}
			return true
		})
		if err != transport.ErrKicked {
			t.Fatal(err)
		}
	}
	if _, err := peer.Write([]byte("still here")); err != nil {
		t.Fatal(err)
	}
	got, buf := []byte(nil), make([]byte, 100)
	err := c.Read(func() (park bool) {
		n, _, err := c.TryRead(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			t.Error(err)
			return false
		}
		return len(got) == 0
	})
	if err != nil || string(got) != "still here" {
		t.Errorf("%q, %v", got, err)
	}
}

// wrapping says more about its errors, as many do that are not package net's.
type wrapping struct{ net.Conn }

func (w wrapping) Read(p []byte) (n int, err error) {
	if n, err = w.Conn.Read(p); err != nil && err != io.EOF {
		err = fmt.Errorf("wrapping: %w", err)
	}
	return n, err
}
