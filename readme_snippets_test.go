package sockhub_test

// The functions in the first part of this file are the snippets of README.md,
// word for word; those in the second part run them.

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
)

// keep dials a server until it answers, and again whenever the connection has
// ended: after 100 ms, and then more and more, up to 5 s. The first batch with the
// client in Connected may come before keep returns.
func keep(ctx context.Context, hub *sockhub.Hub, address string) (sockhub.ID, error) {
	c, err := hub.Dial(ctx, "tcp", address, &sockhub.DialOptions{
		Reconnect: &sockhub.Backoff{Max: 5 * time.Second},
	})
	if err != nil {
		return 0, err // ctx has ended, and this says what the last attempt met
	}
	return c.ID(), nil
}

// guard listens for this machine and one subnet, and on a Unix socket. The name
// backup is for a process of our own user alone.
func guard(ctx context.Context, hub *sockhub.Hub, address, socket string) (backup sockhub.ID, err error) {
	lan := netip.MustParsePrefix("10.1.0.0/16")
	if _, err := hub.Listen(ctx, "tcp", address, &sockhub.ListenOptions{
		Admit: sockhub.Any(sockhub.Loopback(), sockhub.CIDR(lan)),
	}); err != nil {
		return 0, err
	}
	if _, err := hub.Listen(ctx, "unix", socket, nil); err != nil {
		return 0, err
	}
	return hub.Expect("backup", &sockhub.ClientOptions{
		Admit: sockhub.UID(uint32(os.Getuid())), // which only a Unix socket tells
	})
}

// upper answers messages on the goroutine that reads its connection.
type upper struct{ sockhub.BaseHandler }

func (upper) Message(r *sockhub.Reply, msg []byte) {
	if err := r.Send(bytes.ToUpper(msg)); err != nil {
		r.Close() // it cannot be answered
	}
}

func serveUpper(ctx context.Context, hub *sockhub.Hub, address string) (*sockhub.Listener, error) {
	return hub.Listen(ctx, "tcp", address, &sockhub.ListenOptions{
		Handler:      func(*sockhub.Conn) sockhub.Handler { return upper{} },
		ReuseBuffers: true, // msg is lent until Message returns
	})
}

// totaler adds numbers, one to a line, and answers with what they have come to.
type totaler struct {
	sockhub.BaseHandler
	total int
}

func (t *totaler) Message(r *sockhub.Reply, b []byte) {
	whole := bytes.LastIndexByte(b, '\n') + 1
	for line := range bytes.Lines(b[:whole]) {
		n, err := strconv.Atoi(string(bytes.TrimSpace(line)))
		if err != nil {
			r.Close()
			return
		}
		t.total += n
	}
	r.Unread(b[whole:]) // comes again with what follows; FrameTimeout and MaxMessage hold for it
	if whole > 0 {
		r.Send(fmt.Appendf(nil, "%d\n", t.total)) // one answer always has room
	}
}

func serveSums(ctx context.Context, hub *sockhub.Hub, address string) (*sockhub.Listener, error) {
	return hub.Listen(ctx, "tcp", address, &sockhub.ListenOptions{
		Mode:       sockhub.Raw,
		MaxMessage: 1 << 10, // as much of a line may wait for the rest, and no answer is longer
		Handler:    func(*sockhub.Conn) sockhub.Handler { return new(totaler) },
	})
}

// TestSums tests the server of sums over a pipe, without a network. In a bubble of
// synctest the 30 s of FrameTimeout are over as soon as nothing else goes on.
func TestSums(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, err := sockhub.New(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer hub.Close() // inside the bubble, which waits for its goroutines
		ours, peer := net.Pipe()
		if _, err := hub.ServeConn(t.Context(), ours, &sockhub.ListenOptions{
			Mode:    sockhub.Raw,
			Handler: func(*sockhub.Conn) sockhub.Handler { return new(totaler) },
		}); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		go io.WriteString(peer, "1\n2\n30") // the last line has no end
		answers, err := io.ReadAll(peer)
		if string(answers) != "3\n" || err != nil || time.Since(begun) != 30*time.Second {
			t.Errorf("%q, %v, after %v", answers, err, time.Since(begun))
		}
	})
}

// sensors listens for datagrams.
func sensors(ctx context.Context, hub *sockhub.Hub, address string) (*sockhub.Listener, error) {
	return hub.Listen(ctx, "udp", address, &sockhub.ListenOptions{
		MaxConns:    10_000, // more than there are: beyond it, the one that was silent for longest has to go
		IdleTimeout: 30 * time.Second,
	})
}

// serveTLS lets in peers with a certificate for worker.example that one of our
// authorities has signed.
func serveTLS(ctx context.Context, hub *sockhub.Hub, address string, cert tls.Certificate, ours *x509.CertPool) (*sockhub.Listener, error) {
	return hub.Listen(ctx, "tcp", address, &sockhub.ListenOptions{
		TLS: &tls.Config{
			Certificates: []tls.Certificate{cert},
			ClientCAs:    ours,
			ClientAuth:   tls.RequireAndVerifyClientCert,
		},
		Admit: sockhub.TLSName("worker.example"),
	})
}

// dialTLS is the other side. The server's name is that of the address.
func dialTLS(ctx context.Context, hub *sockhub.Hub, address string, cert tls.Certificate, theirs *x509.CertPool) (*sockhub.Conn, error) {
	return hub.Dial(ctx, "tcp", address, &sockhub.DialOptions{
		Name: "worker",
		TLS:  &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: theirs},
	})
}

// ownName is a Rule: a peer has to have the name in its certificate.
func ownName(p sockhub.Peer) error {
	if p.Name != strings.ToLower(p.Name) {
		return errors.New("names are in lower case") // WORKER is worker in a certificate, but not here
	}
	return sockhub.TLSName(p.Name)(p)
}

// sendFile sends a file of any size as one message. 256 KiB of it are in memory
// at most.
func sendFile(ctx context.Context, c *sockhub.Conn, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return c.SendFrom(ctx, uint64(info.Size()), f)
}

// store is the Handler of a listener with StreamOver set: it writes messages
// above that to files, while they come.
type store struct {
	sockhub.BaseHandler
	dir string
}

func (s store) Stream(r *sockhub.Reply, m *sockhub.Stream) {
	f, err := os.CreateTemp(s.dir, "message-")
	if err == nil {
		_, err = io.Copy(f, m)
		if err = errors.Join(err, f.Close()); err != nil {
			os.Remove(f.Name()) // a part of a message is of no use
		}
	}
	if err != nil {
		r.Close() // Disconnected has ErrClosed then: log err here, if it is of interest
		return
	}
	r.Send(fmt.Appendf(nil, "%d bytes stored", m.Size()))
}

// share listens on a port on which other processes listen too, if all of them
// ask for it.
func share(ctx context.Context, hub *sockhub.Hub, address string) (*sockhub.Listener, error) {
	return hub.Listen(ctx, "tcp", address, &sockhub.ListenOptions{ReusePort: true})
}

// serve echoes until the process is told to end. What was read from peers until then
// is answered, if no batch takes longer than Linger, and every answer that TrySend has
// accepted is written, if they take it within 5 seconds.
func serve(ctx context.Context, hub *sockhub.Hub) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	done := make(chan error, 1)
	context.AfterFunc(ctx, func() {
		patience, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		done <- hub.Shutdown(patience)
	})
	for b := range hub.Events() { // until everything has ended
		for c, msg := range b.Messages() {
			if err := c.TrySend(msg); errors.Is(err, sockhub.ErrBackpressure) {
				c.Close() // after ErrClosed it would discard what was accepted
			}
		}
	}
	stop()
	return <-done
}

// ---- what runs them ----

// readmeHub is a hub for a snippet.
func readmeHub(t *testing.T) *sockhub.Hub {
	t.Helper()
	hub, err := sockhub.New(context.Background(), &sockhub.Options{Name: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hub.Close() })
	return hub
}

// readmeDial dials, and fails the test if that fails.
func readmeDial(t *testing.T, hub *sockhub.Hub, l *sockhub.Listener, o *sockhub.DialOptions) *sockhub.Conn {
	t.Helper()
	c, err := hub.Dial(soon(t), l.Addr().Network(), l.Addr().String(), o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestReadmeRedialing(t *testing.T) {
	server := readmeHub(t)
	hub, err := sockhub.New(t.Context(), &sockhub.Options{Name: "client"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hub.Close() })
	l, err := server.Listen(soon(t), "tcp", "127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	id, err := keep(soon(t), hub, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for range hub.Events() {
		}
	}()
	for range 3 {
		c := (<-server.Events()).Unknown
		for len(c) == 0 {
			c = (<-server.Events()).Unknown
		}
		c[0].Close()
	}
	for err = sockhub.ErrNotConnected; err == sockhub.ErrNotConnected; <-time.After(time.Millisecond) {
		err = hub.Send(soon(t), id, []byte("again"))
	}
	if err != nil {
		t.Error(err)
	}
	if err := hub.Forget(id); err != nil {
		t.Error(err)
	}
}

func TestReadmeNames(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("credentials are not known everywhere")
	}
	hub, client := readmeHub(t), readmeHub(t)
	_, socket := address(t, "unix")
	probe, err := net.Listen("tcp", "127.0.0.1:0") // its port, since guard does not tell
	if err != nil {
		t.Fatal(err)
	}
	at := probe.Addr().String()
	probe.Close()
	backup, err := guard(soon(t), hub, at, socket)
	if err != nil {
		t.Fatal(err)
	}
	asBackup := &sockhub.DialOptions{Name: "backup"}
	if _, err := client.Dial(soon(t), "tcp", at, asBackup); !errors.Is(err, sockhub.ErrRefused) {
		t.Errorf("over TCP: %v", err)
	}
	if _, err := client.Dial(soon(t), "tcp", at, nil); err != nil {
		t.Errorf("another name over TCP: %v", err)
	}
	if err := hub.TrySend(backup, nil); !errors.Is(err, sockhub.ErrNotConnected) {
		t.Errorf("sent to nobody: %v", err)
	}
	if _, err := client.Dial(soon(t), "unix", socket, asBackup); err != nil {
		t.Errorf("over the Unix socket: %v", err)
	}
	eventually(t, "backup is there, which may be a moment after its OK", func() bool {
		return hub.TrySend(backup, []byte("start")) == nil
	})
}

func TestReadmeHandler(t *testing.T) {
	hub, client := readmeHub(t), readmeHub(t)
	l, err := serveUpper(soon(t), hub, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	readmeDial(t, client, l, nil).TrySend([]byte("hello"))
	if msg, err := receive(client); string(msg) != "HELLO" {
		t.Errorf("%q, %v", msg, err)
	}
}

func TestReadmeRawBytes(t *testing.T) {
	hub := readmeHub(t)
	l, err := serveSums(soon(t), hub, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "1\n2\n3")
	expect(t, c, []byte("3\n"))
	io.WriteString(c, "0\n")
	expect(t, c, []byte("33\n"))
	io.WriteString(c, strings.Repeat("1", 2<<10)) // a line that is too long
	if rest, _ := io.ReadAll(c); len(rest) > 0 {
		t.Errorf("%q", rest)
	}
}

func TestReadmeTLS(t *testing.T) {
	hub, client := readmeHub(t), readmeHub(t)
	ca := newAuthority()
	l, err := serveTLS(soon(t), hub, "127.0.0.1:0", ca.certify("127.0.0.1"), ca.pool)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"worker.example", "other.example"} {
		_, err := dialTLS(soon(t), client, l.Addr().String(), ca.certify(name), ca.pool)
		if (err == nil) != (name == "worker.example") {
			t.Errorf("%s: %v", name, err)
		}
	}

	l, err = hub.Listen(soon(t), "tcp", "127.0.0.1:0", &sockhub.ListenOptions{
		TLS: &tls.Config{
			Certificates: []tls.Certificate{ca.certify("127.0.0.1")},
			ClientCAs:    ca.pool,
			ClientAuth:   tls.RequireAndVerifyClientCert,
		},
		Admit: ownName,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"alice.example", "ALICE.example", "bob.example"} {
		_, err := client.Dial(soon(t), "tcp", l.Addr().String(), &sockhub.DialOptions{
			Name: name,
			TLS:  &tls.Config{Certificates: []tls.Certificate{ca.certify("alice.example")}, RootCAs: ca.pool},
		})
		if (err == nil) != (name == "alice.example") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadmeLargeMessages(t *testing.T) {
	dir, size := t.TempDir(), 3<<20
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, body(1, 0, size), 0o600); err != nil {
		t.Fatal(err)
	}
	hub, client := readmeHub(t), readmeHub(t)
	l, err := hub.Listen(soon(t), "tcp", "127.0.0.1:0", &sockhub.ListenOptions{
		StreamOver: 1 << 20,
		Handler:    func(*sockhub.Conn) sockhub.Handler { return store{dir: dir} },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := sendFile(soon(t), readmeDial(t, client, l, nil), file); err != nil {
		t.Fatal(err)
	}
	if msg, err := receive(client); string(msg) != fmt.Sprint(size, " bytes stored") {
		t.Fatalf("%q, %v", msg, err)
	}
	names, _ := filepath.Glob(filepath.Join(dir, "message-*"))
	if len(names) != 1 {
		t.Fatalf("stored: %q", names)
	}
	if stored, err := os.ReadFile(names[0]); !bytes.Equal(stored, body(1, 0, size)) {
		t.Errorf("stored are %d bytes, %v", len(stored), err)
	}
}

func TestReadmeDatagrams(t *testing.T) {
	hub, err := sockhub.New(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer hub.Close()
	l, err := sensors(t.Context(), hub, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("21.5"))
	for b := range hub.Events() {
		for _, m := range b.Messages() {
			if string(m) != "21.5" {
				t.Errorf("%q", m)
			}
			return
		}
	}
}

func TestReadmeSharedPort(t *testing.T) {
	one, two := readmeHub(t), readmeHub(t)
	l, err := share(soon(t), one, "127.0.0.1:0")
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := share(soon(t), two, l.Addr().String()); err != nil {
		t.Error(err)
	}
}

func TestReadmeShutdown(t *testing.T) {
	hub, client := readmeHub(t), readmeHub(t)
	l, err := hub.Listen(soon(t), "tcp", "127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- serve(ctx, hub) }()
	readmeDial(t, client, l, nil).TrySend([]byte("hello"))
	if msg, err := receive(client); string(msg) != "hello" {
		t.Errorf("%q, %v", msg, err)
	}
	interrupt()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := receive(client); !errors.Is(err, io.EOF) {
		t.Errorf("the client's end: %v", err)
	}
}
