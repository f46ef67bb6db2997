package sockhub_test

// A TLS peer that asks for new keys and reads nothing.

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
)

type tlsKeys struct {
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

func tlsLabel(secret []byte, label string, n int) []byte {
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(info, byte(6+len(label)))
	info = append(append(info, "tls13 "+label...), 0)
	out, err := hkdf.Expand(sha256.New, secret, string(info), n)
	if err != nil {
		panic(err)
	}
	return out
}

func (k *tlsKeys) set(secret []byte) {
	block, _ := aes.NewCipher(tlsLabel(secret, "key", 16))
	k.aead, _ = cipher.NewGCM(block)
	k.secret, k.iv, k.seq = secret, tlsLabel(secret, "iv", 12), 0
}

func (k *tlsKeys) record(dst []byte, typ byte, plain []byte) []byte {
	inner := append(append([]byte(nil), plain...), typ)
	head := []byte{23, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(head[3:], uint16(len(inner)+16))
	nonce := append([]byte(nil), k.iv...)
	for i := range 8 {
		nonce[4+i] ^= byte(k.seq >> (56 - 8*i))
	}
	k.seq++
	return k.aead.Seal(append(dst, head...), nonce, inner, head)
}

// Package tls answers each such wish by itself.
func TestTLSPeerThatAsksForKeysAndReadsNothing(t *testing.T) {
	ca := newAuthority()
	hub := openHub(t, &sockhub.Options{WriteTimeout: time.Second})
	l, err := hub.Listen(t.Context(), "tcp", "127.0.0.1:0", &sockhub.ListenOptions{Mode: sockhub.Raw, Handler: func(*sockhub.Conn) sockhub.Handler {
		return &handlerFuncs{disconnected: func(d sockhub.Disconnection) { t.Log(time.Now().Format("05.000"), d.Err, d.Report) }}
	},
		TLS:    &tls.Config{Certificates: []tls.Certificate{ca.certify("127.0.0.1")}},
		Config: narrow})
	if err != nil {
		t.Fatal(err)
	}
	nc, k := dialWithKeys(t, l, ca)
	var m0, m1 runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m0)
	var sent int
	nc.SetWriteDeadline(time.Now().Add(20 * time.Second))
	for i := range 2000 {
		var out []byte
		for j := range 100 {
			if j%8 == 0 {
				out = k.record(out, 23, []byte{0})
			}
			out = k.wish(out)
		}
		n, err := nc.Write(out)
		if i%100 == 0 {
			t.Log(time.Now().Format("05.000"), sent)
		}
		sent += n
		if err != nil {
			t.Logf("after %d bytes: %v", sent, err)
			break
		}
	}
	<-time.After(300 * time.Millisecond)
	runtime.GC()
	runtime.ReadMemStats(&m1)
	grown := int64(m1.HeapAlloc) - int64(m0.HeapAlloc)
	t.Logf("%d KiB sent, heap grew by %d KiB; %+v", sent>>10, grown>>10, hub.Stats())
	if grown > 1<<20 {
		t.Fatalf("%d KiB are kept for a peer that reads nothing and was given no message", grown>>10)
	}
}

// dialWithKeys connects to a listener with little room for what is received, and returns
// the connection below TLS and what the peer's records are made with. It skips the test
// where another cipher was agreed on.
func dialWithKeys(t *testing.T, l *sockhub.Listener, ca *authority) (*net.TCPConn, *tlsKeys) {
	t.Helper()
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
	}}
	nc, err := dialer.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	var log strings.Builder
	tc := tls.Client(nc, &tls.Config{RootCAs: ca.pool, ServerName: "127.0.0.1", KeyLogWriter: &log})
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	if s := tc.ConnectionState().CipherSuite; s != tls.TLS_AES_128_GCM_SHA256 {
		t.Skip(tls.CipherSuiteName(s))
	}
	k := new(tlsKeys)
	for line := range strings.Lines(log.String()) {
		if f := strings.Fields(line); f[0] == "CLIENT_TRAFFIC_SECRET_0" {
			secret, _ := hex.DecodeString(f[2])
			k.set(secret)
		}
	}
	return nc.(*net.TCPConn), k
}

// wish is a wish for new keys.
func (k *tlsKeys) wish(dst []byte) []byte {
	dst = k.record(dst, 22, []byte{24, 0, 0, 1, 1})
	k.set(tlsLabel(k.secret, "traffic upd", 32))
	return dst
}

// narrow makes connections with little room for what is sent.
var narrow = &net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, 4096) })
}}

// A record that is out counts as written, though the answers to a peer that wants new keys
// wait behind it.
func TestRecordBeforeNewKeysIsWritten(t *testing.T) {
	const size = 16<<10 - 8 // a record each, with the header
	ca := newAuthority()
	s := newStand(t, nil, nil)
	l, err := s.Listen(soon(t), "tcp", "127.0.0.1:0", &sockhub.ListenOptions{Mode: sockhub.Anonymous, Config: narrow,
		TLS: &tls.Config{Certificates: []tls.Certificate{ca.certify("127.0.0.1")}, SessionTicketsDisabled: true}})
	if err != nil {
		t.Fatal(err)
	}
	nc, k := dialWithKeys(t, l, ca)
	c := s.first()
	for i := range 10 {
		if err := c.TrySend(body(1, i, size)); err != nil {
			t.Fatal(err)
		}
	}
	const wishes = 1600
	var out []byte
	for i := range wishes {
		if i%8 == 0 {
			out = k.record(out, 23, make([]byte, 8)) // an empty message
		}
		out = k.wish(out)
	}
	nc.SetDeadline(time.Now().Add(patience))
	if _, err := nc.Write(out); err != nil {
		t.Fatal(err)
	}
	s.got(c, wishes/8)
	// Up to the first record that is no message.
	whole := uint64(0)
	for header := make([]byte, 5); ; whole++ {
		if _, err := io.ReadFull(nc, header); err != nil {
			t.Fatal(err)
		}
		n := int64(binary.BigEndian.Uint16(header[3:]))
		if n < size {
			break
		}
		if _, err := io.CopyN(io.Discard, nc, n); err != nil {
			t.Fatal(err)
		}
	}
	nc.SetLinger(0)
	nc.Close()
	if r := s.end(c).Report; r.WrittenMessages < whole {
		t.Errorf("%d have come: %v", whole, r)
	}
}
