package sockhub_test

// What the tests on real sockets have in common: a hub whose events are kept
// for the test, listeners of every kind, and the peers' side of the wire.

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
)

// patience bounds every wait of these tests. It is for what hangs.
const patience = 30 * time.Second

// openHub makes a hub that lives as long as the test.
func openHub(t *testing.T, o *sockhub.Options) *sockhub.Hub {
	t.Helper()
	hub, err := sockhub.New(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hub.Close() })
	return hub
}

// stand is a hub and what it has reported.
type stand struct {
	*sockhub.Hub
	t      *testing.T
	closed chan struct{} // closed when Events was

	// on is called with every batch, before it is entered below. It must not
	// wait for the stand.
	on func(*sockhub.Batch)

	mu      sync.Mutex
	changed *sync.Cond
	conns   []*sockhub.Conn // in the order in which they were reported
	msgs    map[*sockhub.Conn][][]byte
	count   int // messages of all
	drained map[*sockhub.Conn]int
	ended   map[*sockhub.Conn]int
	gone    map[*sockhub.Conn][]sockhub.Disconnection
	stray   []string // reports about connections that were not reported before
	readers bool     // a message that is cut, or one of the unsent, is a SendFrom's
}

// newStand makes a hub that lives as long as the test, and receives from it.
func newStand(t *testing.T, o *sockhub.Options, on func(*sockhub.Batch)) *stand {
	t.Helper()
	hub, err := sockhub.New(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	s := &stand{
		Hub: hub, t: t, on: on, closed: make(chan struct{}),
		msgs:    make(map[*sockhub.Conn][][]byte),
		drained: make(map[*sockhub.Conn]int),
		ended:   make(map[*sockhub.Conn]int),
		gone:    make(map[*sockhub.Conn][]sockhub.Disconnection),
	}
	s.changed = sync.NewCond(&s.mu)
	go s.receive()
	t.Cleanup(s.close)
	return s
}

// close ends the hub, and checks that every connection was reported as ended
// exactly once.
func (s *stand) close() {
	s.Hub.Close()
	<-s.closed
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		if n := len(s.gone[c]); n != 1 {
			s.t.Errorf("%v: %d Disconnections, want 1", c, n)
		}
	}
	for _, what := range s.stray {
		s.t.Error(what)
	}
	for c, ds := range s.gone {
		for _, d := range ds {
			checkReport(s.t, c, d, s.readers)
		}
	}
}

// checkReport checks that a report agrees with itself. The message of a SendFrom that was
// cut, or not sent at all, is counted, and not kept.
func checkReport(t *testing.T, c *sockhub.Conn, d sockhub.Disconnection, fromReader bool) {
	r := d.Report
	cut := uint64(0)
	if r.Cut {
		cut = 1
	}
	if d.Err == nil {
		t.Errorf("%v: no reason for the end", c)
	}
	if r.AcceptedMessages != r.WrittenMessages+r.UnsentMessages+r.DroppedMessages+cut ||
		r.AcceptedBytes != r.WrittenBytes+r.UnsentBytes+r.DroppedBytes+r.CutSize {
		t.Errorf("%v: the report does not add up: %+v", c, r)
	}
	var n, bytes uint64
	for m := range r.Unsent() {
		n, bytes = n+1, bytes+uint64(len(m))
	}
	if fromReader && n+1 == r.UnsentMessages {
		n, bytes = n+1, max(bytes, r.UnsentBytes)
	}
	if n != r.UnsentMessages || bytes != r.UnsentBytes || !fromReader && uint64(len(r.CutMessage())) != r.CutSize {
		t.Errorf("%v: yields %d unsent messages of %d bytes and a cut one of %d: %+v", c, n, bytes, len(r.CutMessage()), r)
	}
}

func (s *stand) receive() {
	defer close(s.closed)
	for b := range s.Events() {
		if s.on != nil {
			s.on(b)
		}
		s.note(b)
	}
}

func (s *stand) note(b *sockhub.Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.changed.Broadcast()
	known := func(c *sockhub.Conn, what string) {
		if !slices.Contains(s.conns, c) {
			s.stray = append(s.stray, fmt.Sprintf("%s of %v, which was not reported", what, c))
		}
	}
	s.conns = append(append(s.conns, b.Connected...), b.Unknown...)
	for _, d := range b.Received {
		s.msgs[d.Conn] = append(s.msgs[d.Conn], d.Messages...)
		s.count += len(d.Messages)
		if len(s.gone[d.Conn]) > 0 {
			s.stray = append(s.stray, fmt.Sprintf("messages of %v after its end", d.Conn))
		}
	}
	for _, c := range b.Drained {
		s.drained[c]++
	}
	for _, c := range b.Ended {
		s.ended[c]++
	}
	for _, d := range b.Disconnected {
		if len(s.conns) < 100 {
			known(d.Conn, "the end")
		}
		s.gone[d.Conn] = append(s.gone[d.Conn], d)
	}
}

// until waits for cond, which is asked with mu held after every batch.
func (s *stand) until(what string, cond func() bool) {
	s.t.Helper()
	var late atomic.Bool
	timer := time.AfterFunc(patience, func() {
		late.Store(true)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.changed.Broadcast()
	})
	defer timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for !cond() {
		if late.Load() {
			s.t.Fatalf("waited in vain: %s; %d connections, %d messages, %d ends; %+v", what, len(s.conns), s.count, len(s.gone), s.Stats())
		}
		s.changed.Wait()
	}
}

// first waits for the first connection.
func (s *stand) first() *sockhub.Conn { s.t.Helper(); return s.nth(0) }

// nth waits for the connection with this number, from 0.
func (s *stand) nth(i int) *sockhub.Conn {
	s.t.Helper()
	s.until(fmt.Sprintf("connection %d", i), func() bool { return len(s.conns) > i })
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns[i]
}

// end waits for the end of c.
func (s *stand) end(c *sockhub.Conn) sockhub.Disconnection {
	s.t.Helper()
	s.until("the end of "+c.String(), func() bool { return len(s.gone[c]) > 0 })
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gone[c][0]
}

// got waits for n messages of c and returns all that came.
func (s *stand) got(c *sockhub.Conn, n int) [][]byte {
	s.t.Helper()
	s.until(fmt.Sprintf("%d messages of %v", n, c), func() bool { return len(s.msgs[c]) >= n })
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.msgs[c])
}

// echo answers every message with itself.
func echo(b *sockhub.Batch) {
	for c, m := range b.Messages() {
		c.Send(context.Background(), m) // its failure is in c's report
	}
}

// soon is a context that ends when the test waits in vain.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// kinds are the kinds of stream sockets of this system.
func kinds() []string {
	k := []string{"tcp4"}
	if l, err := net.Listen("tcp6", "[::1]:0"); err == nil {
		l.Close()
		k = append(k, "tcp6")
	}
	if runtime.GOOS != "windows" {
		k = append(k, "unix")
	}
	if runtime.GOOS == "linux" {
		k = append(k, "abstract")
	}
	return k
}

// withTLS are the kinds of sockets, and TLS.
func withTLS() []string { return append(kinds(), "tls") }

var abstractNames atomic.Int64

// address is where to listen for a socket of this kind.
func address(t *testing.T, kind string) (network, address string) {
	switch kind {
	case "tcp4", "tcp":
		return kind, "127.0.0.1:0"
	case "tls":
		return "tcp4", "127.0.0.1:0"
	case "tcp6":
		return kind, "[::1]:0"
	case "unix":
		// Not t.TempDir, whose name is too long for a socket below it.
		dir, err := os.MkdirTemp("", "s")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		return kind, filepath.Join(dir, "s")
	case "abstract":
		return "unix", fmt.Sprintf("@sockhub-test-%d-%d", os.Getpid(), abstractNames.Add(1))
	}
	panic("no such kind: " + kind)
}

// secure is of a pair of TLS configurations for a listener of the kind "tls", and
// for who dials it.
var secure = sync.OnceValues(func() (server, client *tls.Config) {
	ca := newAuthority()
	return &tls.Config{Certificates: []tls.Certificate{ca.certify("127.0.0.1")}}, &tls.Config{RootCAs: ca.pool, ServerName: "127.0.0.1"}
})

// listen opens a listener of the given kind.
func (s *stand) listen(kind string, o *sockhub.ListenOptions) *sockhub.Listener {
	s.t.Helper()
	network, address := address(s.t, kind)
	if kind == "tls" {
		var copied sockhub.ListenOptions
		if o != nil {
			copied = *o
		}
		o = &copied
		o.TLS, _ = secure()
	}
	l, err := s.Hub.Listen(soon(s.t), network, address, o)
	if err != nil {
		s.t.Fatal(err)
	}
	return l
}

// peer is the other end of a connection, without a hub.
type peer struct {
	net.Conn
	t *testing.T
}

// dial connects to another hub's listener of the given kind.
func (s *stand) dial(kind string, l *sockhub.Listener, o sockhub.DialOptions) (*sockhub.Conn, error) {
	if kind == "tls" {
		_, o.TLS = secure()
	}
	return s.Hub.Dial(soon(s.t), l.Addr().Network(), l.Addr().String(), &o)
}

// dialHub connects a peer to a listener. The peer gives a name, if that is not
// empty, and waits for OK.
func dialHub(t *testing.T, l *sockhub.Listener, name string) *peer {
	t.Helper()
	return dialKind(t, "", l, name)
}

// dialKind is dialHub for a listener that may be of the kind "tls".
func dialKind(t *testing.T, kind string, l *sockhub.Listener, name string) *peer {
	t.Helper()
	nc, err := net.Dial(l.Addr().Network(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if kind == "tls" {
		_, client := secure()
		secured := tls.Client(nc, client)
		if err := secured.HandshakeContext(soon(t)); err != nil {
			t.Fatal(err)
		}
		nc = secured
	}
	return greet(t, nc, name)
}

func greet(t *testing.T, nc net.Conn, name string) *peer {
	t.Helper()
	nc.SetDeadline(time.Now().Add(patience))
	p := &peer{nc, t}
	t.Cleanup(func() { nc.Close() })
	if name != "" {
		p.send([]byte(name))
		if m := p.receive(); string(m) != "OK" {
			t.Fatalf("the answer to the name is %q", m)
		}
	}
	return p
}

// wire is messages as they are sent.
func wire(msgs ...[]byte) (w []byte) {
	for _, m := range msgs {
		w = append(binary.LittleEndian.AppendUint64(w, uint64(len(m))), m...)
	}
	return w
}

func (p *peer) send(msgs ...[]byte) {
	p.t.Helper()
	if _, err := p.Write(wire(msgs...)); err != nil {
		p.t.Fatal(err)
	}
}

// receive reads one message.
func (p *peer) receive() []byte {
	p.t.Helper()
	m, err := p.tryReceive()
	if err != nil {
		p.t.Fatal(err)
	}
	return m
}

// tryReceive is receive. An end within a message is io.ErrUnexpectedEOF.
func (p *peer) tryReceive() ([]byte, error) {
	var header [8]byte
	if _, err := io.ReadFull(p, header[:]); err != nil {
		return nil, err
	}
	m := make([]byte, binary.LittleEndian.Uint64(header[:]))
	if n, err := io.ReadFull(p, m); err == io.EOF {
		return m[:n], io.ErrUnexpectedEOF
	} else if err != nil {
		return m[:n], err
	}
	return m, nil
}

// closeWrite ends the peer's output.
func (p *peer) closeWrite() {
	p.t.Helper()
	if err := p.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		p.t.Fatal(err)
	}
}

// atEnd checks that nothing comes any more.
func (p *peer) atEnd() {
	p.t.Helper()
	if n, err := p.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		p.t.Fatalf("read %d bytes, %v; want the end", n, err)
	}
}

// body is the content of message k of a stream called seed, as
// testdata/README.md has it.
func body(seed, k, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(31*i + 7*k + seed)
	}
	return b
}

func bodies(seed int, sizes []int) (all [][]byte) {
	for k, size := range sizes {
		all = append(all, body(seed, k, size))
	}
	return all
}

// sameBodies reports the first difference.
func sameBodies(got, want [][]byte) error {
	for k := range min(len(got), len(want)) {
		if len(got[k]) != len(want[k]) {
			return fmt.Errorf("message %d has %d bytes, want %d", k, len(got[k]), len(want[k]))
		}
		if string(got[k]) != string(want[k]) {
			return fmt.Errorf("message %d of %d bytes differs", k, len(got[k]))
		}
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d messages, want %d", len(got), len(want))
	}
	return nil
}

// conns yields a connection of the hub when there is one.
func conns(hub *sockhub.Hub) <-chan *sockhub.Conn {
	found := make(chan *sockhub.Conn, 1)
	go func() {
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-time.After(time.Millisecond) {
			for c := range hub.Conns() {
				found <- c
				return
			}
		}
		close(found)
	}()
	return found
}
