package sockhub_test

// TLS, and Classify by the first bytes.

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

// Certificates hold in a bubble of synctest too, where it is the year 2000.
var (
	validFrom  = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
	validUntil = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
)

func newAuthority() *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: validFrom, NotAfter: validUntil,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{cert, key, pool}
}

// certify makes a certificate for a DNS name, or for 127.0.0.1.
func (a *authority) certify(name string) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "not looked at"},
		NotBefore: validFrom, NotAfter: validUntil,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// echoHub is a hub with a listener on loopback that echoes.
func echoHub(t *testing.T, lo *sockhub.ListenOptions) (*sockhub.Hub, *sockhub.Listener) {
	t.Helper()
	hub, err := sockhub.New(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hub.Close() })
	lo.Handler = func(*sockhub.Conn) sockhub.Handler {
		return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(m) }}
	}
	l, err := hub.Listen(t.Context(), "tcp", "127.0.0.1:0", lo)
	if err != nil {
		t.Fatal(err)
	}
	return hub, l
}

// askEcho sends messages and expects them back.
func askEcho(t *testing.T, hub *sockhub.Hub, c *sockhub.Conn, msgs ...[]byte) {
	t.Helper()
	go func() {
		for _, m := range msgs {
			c.Send(context.Background(), m)
		}
	}()
	timeout := time.After(10 * time.Second)
	for i := 0; i < len(msgs); {
		select {
		case b := <-hub.Events():
			for _, m := range b.Messages() {
				if !bytes.Equal(m, msgs[i]) {
					t.Fatalf("message %d: %d bytes, want %d", i, len(m), len(msgs[i]))
				}
				i++
			}
			for _, d := range b.Disconnected {
				t.Fatal(d.Err)
			}
		case <-timeout:
			t.Fatalf("%d of %d messages came back", i, len(msgs))
		}
	}
}

func TestMutualTLSWithARuleOnTheCertificate(t *testing.T) {
	ca := newAuthority()
	_, l := echoHub(t, &sockhub.ListenOptions{
		TLS: &tls.Config{Certificates: []tls.Certificate{ca.certify("127.0.0.1")},
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool},
		Admit: sockhub.TLSName("worker.example"),
	})
	dialTLS := func(cert, name string, roots *x509.CertPool) (*sockhub.Hub, *sockhub.Conn, error) {
		hub, err := sockhub.New(context.Background(), &sockhub.Options{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { hub.Close() })
		c, err := hub.Dial(t.Context(), "tcp", l.Addr().String(), &sockhub.DialOptions{
			TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{ca.certify(cert)}}})
		return hub, c, err
	}
	hub, c, err := dialTLS("worker.example", "w", ca.pool)
	if err != nil {
		t.Fatal(err)
	}
	if c.Peer().TLS == nil || len(c.Peer().TLS.VerifiedChains) == 0 {
		t.Error("the server's certificate is not in Peer")
	}
	askEcho(t, hub, c, []byte("a"), nil, pattern(5<<20), []byte("z"))
	c.Finish()
	for b := range hub.Events() {
		for _, d := range b.Disconnected {
			if !errors.Is(d.Err, sockhub.ErrClosed) || d.Report.WrittenMessages != 4 {
				t.Errorf("%v, %+v", d.Err, d.Report)
			}
		}
		if len(b.Disconnected) > 0 {
			break
		}
	}
	if _, _, err := dialTLS("other.example", "w2", ca.pool); !errors.Is(err, sockhub.ErrRefused) {
		t.Errorf("another certificate: %v", err)
	}
	var unknown x509.UnknownAuthorityError
	if _, _, err := dialTLS("worker.example", "w3", x509.NewCertPool()); !errors.As(err, &unknown) {
		t.Errorf("unknown authority: %v", err)
	}
}

// TestTLSThatCouldServeNobody: it is an error at once, wherever it is given.
func TestTLSThatCouldServeNobody(t *testing.T) {
	hub := openHub(t, nil)
	cert := newAuthority().certify("hub.example")
	for name, tt := range map[string]struct {
		config *tls.Config
		served bool
	}{
		"nothing":            {&tls.Config{}, false},
		"for clients":        {&tls.Config{ServerName: "hub.example", NextProtos: []string{"x"}}, false},
		"Certificates":       {&tls.Config{Certificates: []tls.Certificate{cert}}, true},
		"GetCertificate":     {&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }}, true},
		"GetConfigForClient": {&tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, nil }}, true},
	} {
		o := &sockhub.ListenOptions{TLS: tt.config}
		l, err := hub.Listen(t.Context(), "tcp", "127.0.0.1:0", o)
		if (err == nil) != tt.served {
			t.Errorf("%s: Listen: %v", name, err)
		}
		if tt.served {
			l.Close()
			continue
		}
		inner, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := hub.Serve(inner, o); err == nil {
			t.Errorf("%s: Serve", name)
		}
		if err := inner.Close(); err != nil {
			t.Errorf("%s: Serve has failed, and the listener is not its caller's: %v", name, err)
		}
		ours, theirs := net.Pipe()
		if _, err := hub.ServeConn(t.Context(), ours, o); err == nil || !strings.Contains(err.Error(), "ListenOptions.TLS") {
			t.Errorf("%s: ServeConn: %v", name, err)
		}
		theirs.Close()
	}
}

func TestStalledTLSHandshakeEndsInTime(t *testing.T) {
	ca := newAuthority()
	hub := openHub(t, &sockhub.Options{HandshakeTimeout: 100 * time.Millisecond})
	l, err := hub.Listen(t.Context(), "tcp", "127.0.0.1:0",
		&sockhub.ListenOptions{TLS: &tls.Config{Certificates: []tls.Certificate{ca.certify("127.0.0.1")}}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte{22, 3, 1}) // the beginning of a ClientHello
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, c); errors.Is(err, io.EOF) || isTimeout(err) {
		t.Error(err)
	}
	for hub.Stats().HandshakeTimeouts == 0 {
		<-time.After(time.Millisecond)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// Named clients, a browser, and TLS on one port.
func TestClassifyByFirstBytes(t *testing.T) {
	ca := newAuthority()
	secure := &sockhub.ListenOptions{Mode: sockhub.Anonymous,
		TLS: &tls.Config{Certificates: []tls.Certificate{ca.certify("127.0.0.1")}}}
	web := &sockhub.ListenOptions{Mode: sockhub.Raw, Handler: func(*sockhub.Conn) sockhub.Handler {
		return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
			if !bytes.HasSuffix(m, []byte("\r\n\r\n")) {
				r.Unread(m)
				return
			}
			r.Send([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"))
			r.Finish()
		}}
	}}
	lo := &sockhub.ListenOptions{Classify: func(p sockhub.Peer, first []byte) (*sockhub.ListenOptions, int, error) {
		switch {
		case !p.AddrPort.Addr().IsLoopback():
			return nil, 0, errors.New("from elsewhere")
		case len(first) < 4:
			return nil, 4, nil
		case string(first[:4]) == "GET ":
			return web, 0, nil
		case first[0] == 22:
			return secure, 0, nil
		case string(first[:4]) == "boom":
			panic("boom")
		}
		return nil, 0, nil
	}}
	hub, l := echoHub(t, lo)
	secure.Handler = func(*sockhub.Conn) sockhub.Handler {
		return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(m) }}
	}
	address := l.Addr().String()

	resp, err := http.Get("http://" + address)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(body) != "hello" || err != nil {
		t.Errorf("%q, %v", body, err)
	}

	client := openHub(t, &sockhub.Options{Name: "me"})
	c, err := client.Dial(t.Context(), "tcp", address, nil)
	if err != nil {
		t.Fatal(err)
	}
	askEcho(t, client, c, []byte("named"))
	c, err = client.Dial(t.Context(), "tcp", address, &sockhub.DialOptions{Mode: sockhub.Anonymous, TLS: &tls.Config{RootCAs: ca.pool}})
	if err != nil {
		t.Fatal(err)
	}
	askEcho(t, client, c, []byte("secure"))

	for _, bad := range []string{"boom", "GE"} {
		nc, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		nc.Write([]byte(bad))
		nc.(*net.TCPConn).CloseWrite()
		if line, err := bufio.NewReader(nc).ReadString('\n'); err == nil || !strings.EqualFold(line, "") {
			t.Errorf("%q was answered %q", bad, line)
		}
		nc.Close()
	}
	if n := hub.Stats().Panics; n != 1 {
		t.Errorf("%d panics", n)
	}
	// What has not said yet what it is ends with the hub.
	nc, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	hub.Close()
	if _, err := io.Copy(io.Discard, nc); isTimeout(err) {
		t.Error(err)
	}
}

// tlsLine is a hub's TLS connection in memory, and the peer's end of it.
func tlsLine(t *testing.T, o *sockhub.Options) (*room, *sockhub.Conn, *tls.Conn) {
	ca := newAuthority()
	r := newRoom(t, o, nil)
	ours, theirs := memnet.Pair(nil)
	t.Cleanup(func() { theirs.Close() })
	peer := tls.Client(theirs, &tls.Config{RootCAs: ca.pool, ServerName: "hub.example"})
	shaken := make(chan error, 1)
	go func() { shaken <- peer.Handshake() }()
	c, err := r.ServeConn(t.Context(), ours, &sockhub.ListenOptions{
		Mode: sockhub.Anonymous, TLS: &tls.Config{Certificates: []tls.Certificate{ca.certify("hub.example")}},
	})
	if err := errors.Join(err, <-shaken); err != nil {
		t.Fatal(err)
	}
	r.take()
	return r, c, peer
}

// A record that was cut off cannot be finished, so nobody may interrupt a write
// to see how it is getting on.
func TestSlowTLSPeerGetsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, c, peer := tlsLine(t, &sockhub.Options{WriteTimeout: time.Second})
		m := pattern(3 << 20)
		if err := c.Send(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		var got []byte
		for buf := make([]byte, 8<<10); len(got) < 8+len(m); {
			<-time.After(100 * time.Millisecond)
			n, err := peer.Read(buf)
			if err != nil {
				t.Fatalf("after %d bytes: %v", len(got), err)
			}
			got = append(got, buf[:n]...)
		}
		if !bytes.Equal(got[8:], m) {
			t.Error("not what was sent")
		}
	})
}

func TestTLSPeerThatNeverReadsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c, _ := tlsLine(t, &sockhub.Options{WriteTimeout: time.Second})
		for range 3 {
			if err := c.Send(t.Context(), pattern(1<<20)); err != nil {
				t.Fatal(err)
			}
		}
		if took := within(func() { <-c.Context().Done() }); took < time.Second || took > 1200*time.Millisecond {
			t.Errorf("after %v", took)
		}
		d := r.endOf(c)
		if p := d.Report; !errors.Is(d.Err, sockhub.ErrSlowPeer) || !p.Cut || p.UnsentMessages != 2 || p.WrittenMessages != 0 {
			t.Errorf("%v, %+v", d.Err, p)
		}
	})
}

// A message from a reader that waits behind another is withdrawn at once.
func TestSendFromIsWithdrawnBehindAStuckTLSWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, c, _ := tlsLine(t, nil)
		if err := c.Send(t.Context(), pattern(1<<20)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := c.SendFrom(ctx, 1<<20, bytes.NewReader(pattern(1<<20)))
		if !errors.Is(err, context.DeadlineExceeded) || context.Cause(c.Context()) != nil {
			t.Errorf("SendFrom: %v; the connection: %v", err, context.Cause(c.Context()))
		}
	})
}

// recordReader counts the records of application data that are read from it.
type recordReader struct {
	net.Conn
	header  []byte // of the record that begins, as far as it came
	left    int    // bytes of the record that has begun
	records int
}

func (r *recordReader) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	for in := p[:n]; len(in) > 0; {
		if r.left == 0 {
			if r.header, in = append(r.header, in[0]), in[1:]; len(r.header) < 5 {
				continue
			}
			if r.header[0] == 23 {
				r.records++
			}
			r.left, r.header = int(binary.BigEndian.Uint16(r.header[3:])), r.header[:0]
		}
		m := min(r.left, len(in))
		r.left, in = r.left-m, in[m:]
	}
	return n, err
}

func TestSmallMessagesShareTLSRecords(t *testing.T) {
	check := func(t *testing.T, ours, theirs net.Conn) {
		ca := newAuthority() // in a bubble it is another year
		cert := ca.certify("hub.example")
		hub := openHub(t, nil)
		defer theirs.Close()
		wire := &recordReader{Conn: theirs}
		peer := tls.Client(wire, &tls.Config{RootCAs: ca.pool, ServerName: "hub.example"})
		shaken := make(chan error, 1)
		go func() { shaken <- peer.Handshake() }()
		c, err := hub.ServeConn(t.Context(), ours, &sockhub.ListenOptions{
			Mode: sockhub.Anonymous,
			TLS:  &tls.Config{Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true},
		})
		if err := errors.Join(err, <-shaken); err != nil {
			t.Fatal(err)
		}
		wire.records = 0
		const n = 1000
		if got, err := c.SendMany(t.Context(), slices.Values(slices.Repeat([][]byte{[]byte("123456789")}, n))); got != n || err != nil {
			t.Fatal(got, err)
		}
		expect(t, peer, []byte(strings.Repeat(string(frame("123456789")), n)))
		if wire.records > 2 {
			t.Errorf("%d messages of 9 bytes came in %d records, want 2", n, wire.records)
		}
	}
	t.Run("memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := memnet.Pair(nil)
			check(t, ours, theirs)
		})
	})
	t.Run("socket", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		theirs, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		ours, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		check(t, ours, theirs)
	})
}

// A peer that wants new keys is obeyed from within the reader, which cannot wait
// for the socket. Only OpenSSL asks for it at a user's wish.
func TestPeerThatWantsNewKeys(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip(err)
	}
	server, _ := secure()
	_, l := echoHub(t, &sockhub.ListenOptions{Mode: sockhub.Raw, TLS: server})
	cmd := exec.CommandContext(soon(t), openssl, "s_client", "-connect", l.Addr().String())
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, said, err := os.Pipe() // all that it says, in order
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = said, said
	err = cmd.Start()
	said.Close()
	if err != nil {
		t.Fatal(err)
	}
	text := bufio.NewReader(out)
	until := func(word string) {
		for line := ""; !strings.Contains(line, word); {
			if line, err = text.ReadString('\n'); err != nil {
				t.Fatalf("before %q: %v", word, err)
			}
		}
	}
	// A line that begins with K is a command, and so alone.
	for i := range 3 {
		word := fmt.Sprint("message ", i)
		io.WriteString(in, word+"\n")
		until(word)
		io.WriteString(in, "K\n")
		until("KEYUPDATE")
	}
	io.WriteString(in, "the last\n")
	until("the last")
	in.Close()
	cmd.Process.Kill()
	cmd.Wait()
}

func TestTLSSessionIsResumed(t *testing.T) {
	ca := newAuthority()
	asked := 0
	server := &tls.Config{Certificates: []tls.Certificate{ca.certify("hub.example")}}
	perClient := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { asked++; return server, nil }}
	secure := &sockhub.ListenOptions{Mode: sockhub.Anonymous, TLS: server, Handler: func(*sockhub.Conn) sockhub.Handler {
		return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(m) }}
	}}
	for what, o := range map[string]*sockhub.ListenOptions{
		"a listener's":          secure,
		"GetConfigForClient's":  {Mode: sockhub.Anonymous, TLS: perClient},
		"what Classify chooses": {Classify: func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) { return secure, 0, nil }},
	} {
		t.Run(what, func(t *testing.T) {
			_, l := echoHub(t, o)
			client := &tls.Config{RootCAs: ca.pool, ServerName: "hub.example", ClientSessionCache: tls.NewLRUClientSessionCache(1)}
			for i := range 2 {
				peer, err := tls.Dial("tcp", l.Addr().String(), client)
				if err != nil {
					t.Fatal(err)
				}
				peer.Write(frame("x"))
				expect(t, peer, frame("x")) // and the ticket came before
				if resumed := peer.ConnectionState().DidResume; resumed != (i == 1) {
					t.Errorf("connection %d: resumed %v", i, resumed)
				}
				peer.CloseWrite()
				if n, err := peer.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("%d bytes, %v; want the end that close_notify tells", n, err)
				}
				peer.Close()
			}
		})
	}
	if asked != 2 {
		t.Errorf("GetConfigForClient was called %d times", asked)
	}
}

// What a report calls unsent was not sent, whichever configuration was chosen for
// the client: a call of package tls makes one record, which is out or is not.
func TestUnsentOverTLSWithAConfigForTheClient(t *testing.T) {
	server, client := secure()
	for _, chosen := range []bool{false, true} {
		config := server
		if chosen {
			config = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return server, nil }}
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		below, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		below.(*net.TCPConn).SetReadBuffer(4096)
		peer := tls.Client(below, client)
		defer peer.Close()
		peer.SetDeadline(time.Now().Add(patience))
		shaken := make(chan error, 1)
		go func() { shaken <- peer.Handshake() }()
		nc, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		nc.(*net.TCPConn).SetWriteBuffer(16 << 10)
		s := newStand(t, nil, nil)
		c, err := s.ServeConn(soon(t), nc, &sockhub.ListenOptions{Mode: sockhub.Anonymous, TLS: config})
		if err != nil {
			t.Fatal(err)
		}
		if err := <-shaken; err != nil {
			t.Fatal(err)
		}
		if _, err := c.SendMany(soon(t), func(yield func([]byte) bool) {
			for k := range 2000 {
				if !yield(numbered(k, 100)) {
					return
				}
			}
		}); err != nil {
			t.Fatal(err)
		}
		for begun := time.Now(); c.Stats().MessagesOut == 0 && time.Since(begun) < time.Second; {
			<-time.After(10 * time.Millisecond) // the socket is full
		}
		c.Close()
		r := s.end(c).Report
		msgs, _, _ := readAll(peer)
		if n := uint64(len(msgs)); n > r.WrittenMessages || r.UnsentMessages == 0 {
			t.Errorf("config for the client %v: the peer got %d messages, and the report %+v", chosen, n, r)
		}
	}
}

func TestTLSHandshakeThatFailsIsCounted(t *testing.T) {
	a := newAuthority()
	hub, l := echoHub(t, &sockhub.ListenOptions{Mode: sockhub.Anonymous, TLS: &tls.Config{Certificates: []tls.Certificate{a.certify("127.0.0.1")}}})
	talk := func(with func(net.Conn)) {
		t.Helper()
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		eventually(t, "it is there", func() bool { return hub.Stats().Connecting == 1 })
		with(nc)
		nc.Close()
		eventually(t, "it has left", func() bool { return hub.Stats().Connecting == 0 })
	}
	talk(func(net.Conn) {}) // who only looks whether somebody listens
	if n := hub.Stats().ProtocolErrors; n != 0 {
		t.Errorf("one who has left counts %d times", n)
	}
	talk(func(nc net.Conn) {
		io.WriteString(nc, "GET / HTTP/1.1\r\n\r\n")
		io.Copy(io.Discard, nc)
	})
	talk(func(nc net.Conn) { // who does not trust the certificate
		if tls.Client(nc, &tls.Config{ServerName: "127.0.0.1"}).Handshake() == nil {
			t.Error("a certificate of nobody's is trusted")
		}
		io.Copy(io.Discard, nc)
	})
	if n := hub.Stats().ProtocolErrors; n != 2 {
		t.Errorf("%d are counted, want 2", n)
	}
}

// leaving is a ClientSessionCache that leaves as it should not.
type leaving struct{ how string }

func (leaving) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (l leaving) Put(string, *tls.ClientSessionState)      { leave(l.how) }

// In TLS 1.3 the session comes when the handshake is long over.
func TestSessionCacheThatPanics(t *testing.T) {
	server, client := secure()
	for _, how := range []string{"panic", "Goexit"} {
		_, l := echoHub(t, &sockhub.ListenOptions{Mode: sockhub.Anonymous, TLS: server})
		s := newStand(t, nil, nil)
		config := client.Clone()
		config.ClientSessionCache = leaving{how}
		c, err := s.Dial(soon(t), "tcp", l.Addr().String(), &sockhub.DialOptions{Mode: sockhub.Anonymous, TLS: config})
		if err != nil {
			t.Fatal(err)
		}
		c.TrySend([]byte("x"))
		if d := s.end(c); !isPanic(d.Err) {
			t.Errorf("%s: %v", how, d.Err)
		}
	}
}

func isPanic(err error) bool {
	_, ok := errors.AsType[*sockhub.PanicError](err)
	return ok
}

// A TLS handshake that fails on a connection that was dialed is no input that is wrong:
// who dials is told.
func TestDialedTLSHandshakeThatFailsIsNotCounted(t *testing.T) {
	s, server := newStand(t, nil, nil), newStand(t, nil, nil)
	l := server.listen("tls", nil)
	_, err := s.Dial(soon(t), "tcp", l.Addr().String(), &sockhub.DialOptions{Name: "w", TLS: &tls.Config{RootCAs: x509.NewCertPool()}})
	if !errors.As(err, new(*tls.CertificateVerificationError)) || !errors.As(err, new(*net.OpError)) || errors.Is(err, sockhub.ErrRefused) {
		t.Error(err)
	}
	eventually(t, "the handshake that has failed", func() bool { return server.Stats().ProtocolErrors == 1 })
	if st := s.Stats(); st.ProtocolErrors != 0 || st.Dialed != 0 {
		t.Errorf("%+v", st)
	}
}

// ErrRefused is of handshakes in which a name is answered.
func TestEndOfAnAnonymousTLSHandshakeIsNotRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		ours, peer := memnet.Pair(nil)
		go func() {
			peer.Read(make([]byte, 1000))
			peer.Close()
		}()
		_, err := r.Attach(t.Context(), ours, &sockhub.DialOptions{Mode: sockhub.Anonymous, TLS: &tls.Config{InsecureSkipVerify: true}})
		if err == nil || errors.Is(err, sockhub.ErrRefused) {
			t.Error(err)
		}
	})
}
