package sockhub

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sockhub/sockhub/internal/packet"
	"github.com/sockhub/sockhub/internal/peercred"
	"github.com/sockhub/sockhub/internal/pending"
	"github.com/sockhub/sockhub/internal/places"
	"github.com/sockhub/sockhub/internal/proxyproto"
	"github.com/sockhub/sockhub/internal/sockopt"
	"github.com/sockhub/sockhub/internal/transport"
	"github.com/sockhub/sockhub/internal/unixsock"
)

// Why a handshake failed.
var (
	// ErrNameTaken: the name belongs to a client that is connected.
	ErrNameTaken = errors.New("sockhub: name is taken")

	// ErrBadName: a name is 1 to MaxNameLen bytes.
	ErrBadName = errors.New("sockhub: bad name")

	// ErrReplaced: another peer has taken the name over, as ReplaceOld lets it.
	ErrReplaced = errors.New("sockhub: replaced by a new connection of the same name")

	// ErrRefused: the peer we dialed ended the connection instead of
	// answering OK. It does not say why: the Logger of the refusing side does.
	ErrRefused = errors.New("sockhub: refused by the peer")

	// ErrHandshakeTimeout: the handshake took longer than HandshakeTimeout, or
	// than DialOptions.Timeout.
	ErrHandshakeTimeout = errors.New("sockhub: handshake timed out")
)

// Listener accepts connections for a Hub. Its methods may be called from any
// goroutine.
type Listener struct {
	// Immutable after construction.
	hub     *Hub
	inner   net.Listener
	network string
	o       ListenOptions // resolved
	set     *settings
	proxies Rule          // admits who is believed as a proxy; nil: nobody
	closed  chan struct{} // closed by stop, once it has been taken out of hub.listeners
	gone    chan struct{} // closed by the accept loop at its end

	// Guarded by hub.mu.
	places places.Group                // of connections past their handshake, until they end
	tls    map[*tls.Config]*tls.Config // of Classify's options; see sameTLS
}

// Addr is the address it listens on, with the port that was chosen for 0.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// Close stops accepting, removes a Unix socket's file, and ends the handshakes
// under way. The listener's connections live on; but what is sent to the path of a
// unixgram socket, by programs that have not connected to it, does not arrive any more.
// On udp the port stays taken until the last of these connections has ended, and whoever
// else sends to it gets no answer; also where other sockets share it (ReusePort), as the
// system goes on choosing this one for some.
// Close returns when Accept of the net.Listener has. Closing again returns ErrClosed, and so
// does closing where the net.Listener was closed by somebody else; any other error is that
// of the net.Listener.
func (l *Listener) Close() error {
	stopped, err := l.stop()
	if !stopped { // but the handshakes may go on: see accept
		err = ErrClosed
	}
	<-l.gone
	closing := l.hub.failPrefaces(l) // first: they become connections
	conns, _ := l.hub.everything()
	for _, c := range conns {
		if c.listener == l {
			c.giveUp(ErrClosed)
		}
	}
	closing.Wait()
	return err
}

// abort closes a datagram socket that is still open for the sake of connections
// which are not waited for.
func (l *Listener) abort() {
	if p, ok := l.inner.(*packet.Listener); ok {
		p.Abort()
	}
}

// stop ends the accept loop, and reports whether this call did.
func (l *Listener) stop() (stopped bool, err error) {
	l.hub.mu.Lock()
	_, stopped = l.hub.listeners[l]
	delete(l.hub.listeners, l)
	if stopped {
		l.hub.stopping.Add(1)
	}
	l.hub.mu.Unlock()
	if stopped {
		defer l.hub.stopping.Done()
		close(l.closed)
		err = l.inner.Close()
	}
	return stopped, err
}

// Listen opens a listener on a network address, as net.Listen does, and accepts
// connections for the hub until it or the hub is closed.
//
// The networks are tcp, tcp4, tcp6, unix, and those of packets: udp, udp4, udp6,
// unixgram and unixpacket, where the system has them. On the Unix networks a path
// is a socket file, made with mode ListenOptions.FileMode; a file left by a server
// that is dead is replaced, one of a server that lives never. A name with a leading
// @ is abstract (Linux): it has no file and so no permissions. ctx bounds the call
// alone.
//
// A TLS configuration that could serve nobody, because it has no Certificates, no
// GetCertificate and no GetConfigForClient, is an error, as it is of tls.Listen.
//
// On networks of packets one packet is one message, up to 65,507 bytes on udp and
// about 200 KiB on the Unix networks. On udp and unixgram each remote address is a
// client of its own, from its first packet until nothing came from it for
// IdleTimeout (DefaultSessionIdle), or until there are more than MaxConns
// (DefaultMaxSessions) and it is the one that was silent for longest: then it ends
// with ErrTooManyConns (see also Options.MaxConns). There are no names, since anybody
// can send from any address, and nothing is sent before the program answers. Packets
// that are too long, and those for which a client has no room, are dropped and counted
// (Stats.ProtocolErrors, Stats.Dropped). On unixpacket there are connections, which
// can be Named.
//
// Errors: those of package net, with the system's inside; options that contradict
// each other or the network; a MaxMessage that InboundLimit has no room for; what
// matches errors.ErrUnsupported where the system lacks a network, ReusePort, FileMode
// or abstract names; ErrClosed.
func (h *Hub) Listen(ctx context.Context, network, address string, o *ListenOptions) (*Listener, error) {
	if o == nil {
		o = new(ListenOptions)
	}
	var config net.ListenConfig
	if o.Config != nil {
		config = *o.Config
	}
	if config.KeepAliveConfig == (net.KeepAliveConfig{}) && config.KeepAlive == 0 {
		config.KeepAliveConfig = keepAlive
	}
	var (
		inner net.Listener
		pc    net.PacketConn
		err   error
	)
	if o.ReusePort {
		if strings.HasPrefix(network, "unix") {
			return nil, unsupported("ListenOptions.ReusePort") // there is no port
		}
		config.Control = sockopt.Then(config.Control, sockopt.ReusePort)
	}
	switch network {
	case "tcp", "tcp4", "tcp6":
		inner, err = config.Listen(ctx, network, address)
	case "udp", "udp4", "udp6":
		pc, err = config.ListenPacket(ctx, network, address)
	case "unix", "unixpacket":
		inner, err = unixsock.Listen(ctx, &config, network, address, o.FileMode)
	case "unixgram":
		pc, err = unixsock.ListenPacket(ctx, &config, address, o.FileMode)
	default:
		return nil, &net.OpError{Op: "listen", Net: network, Err: net.UnknownNetworkError(network)}
	}
	if err != nil {
		return nil, err
	}
	if pc != nil {
		l, err := h.servePacket(pc, network, o)
		if err != nil {
			pc.Close()
		}
		return l, err
	}
	l, err := h.serve(inner, network, o)
	if err != nil {
		inner.Close()
	}
	return l, err
}

// keepAlive tells of a dead peer within half a minute, so that its name is
// free again.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}

// Serve accepts connections from a listener of the user's, which the hub
// closes: in Listener.Close, or when the hub is closed; but not if Serve fails. It
// may be one that was inherited (net.FileListener) or wrapped. What Listen does to a
// socket before it is bound (ReusePort, FileMode, Config) was up to whoever made it.
// The connections of a *net.TCPListener get the same keep-alive as those of Listen;
// one that is wrapped keeps its own. What ServeConn says of a tls.Conn holds for those
// of a tls.Listener.
//
// A listener of another's making must return from Accept when it is closed:
// Listener.Close, Hub.Close and Shutdown wait for that and for its Close, which so must
// not call one of them. An error that matches
// net.ErrClosed ends the accepting; after any other, which is logged and counted in
// Stats.AcceptErrors, Accept is called again within a second. Connections of network
// unixpacket have to be of type *net.UnixConn. If its address is of network udp, what a
// Read of a connection gives is taken for a datagram; streams over datagrams are for
// ServeConn.
//
// Errors: those of Listen for options, and ErrClosed.
func (h *Hub) Serve(l net.Listener, o *ListenOptions) (*Listener, error) {
	network := networkOf(l.Addr())
	if t, ok := l.(*net.TCPListener); ok {
		l = keptAlive{t}
	}
	return h.serve(l, network, o)
}

// keptAlive gives connections our keep-alive.
type keptAlive struct{ *net.TCPListener }

func (l keptAlive) Accept() (net.Conn, error) {
	c, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	c.SetKeepAliveConfig(keepAlive) // fails only if the connection has ended already
	return c, nil
}

// ServePacket is Serve of a datagram socket: see Listen on udp and unixgram. The
// hub owns the socket, unless ServePacket fails; if the hub is closed during the call,
// the socket may be closed too. Any net.PacketConn will do; those of package net are
// read and written with many datagrams at a time where the system can do that.
//
// Errors: those of Serve, and one that matches errors.ErrUnsupported for a Unix socket of
// connections (unix and unixpacket), which is for ServeConn.
func (h *Hub) ServePacket(pc net.PacketConn, o *ListenOptions) (*Listener, error) {
	network := networkOf(pc.LocalAddr())
	switch {
	case network == "unix", network == "unixpacket":
		return nil, fmt.Errorf("sockhub: a socket of network %s has one peer and is for ServeConn: %w", network, errors.ErrUnsupported)
	case packetMax(network) == 0:
		network = "udp" // the nearest to whatever it is
	}
	return h.servePacket(pc, network, o)
}

func (h *Hub) servePacket(pc net.PacketConn, network string, o *ListenOptions) (*Listener, error) {
	r, set, err := h.resolve(o, network)
	if err == nil {
		err = h.checkRunning()
	}
	if err != nil {
		return nil, err
	}
	inner := packet.Listen(pc, h.packetOptions(set, r.MaxConns))
	l, err := h.addListener(inner, network, r, set)
	if err != nil {
		inner.Close()
	}
	return l, err
}

// checkRunning returns ErrClosed once the hub takes nothing new.
func (h *Hub) checkRunning() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stage != running {
		return ErrClosed
	}
	return nil
}

func (h *Hub) packetOptions(set *settings, sessions int) packet.Options {
	return packet.Options{
		Max: int(set.maxMessage), Sessions: sessions, Evicted: errSessionEvicted, Stats: &h.packets,
		Room: h.budget.in.ReserveSpare, Free: h.budget.in.GiveSpare,
	}
}

var errSessionEvicted = fmt.Errorf("%w: silent for longer than all others", ErrTooManyConns)

func (h *Hub) serve(inner net.Listener, network string, o *ListenOptions) (*Listener, error) {
	r, set, err := h.resolve(o, network)
	if err != nil {
		return nil, err
	}
	return h.addListener(inner, network, r, set)
}

// resolve is ListenOptions.resolve, with the hub's budget asked.
func (h *Hub) resolve(o *ListenOptions, network string) (ListenOptions, *settings, error) {
	r, set, err := o.resolve(&h.o, network)
	if err == nil {
		err = h.budget.allow("ListenOptions.MaxMessage", set.maxMessage)
	}
	return r, set, err
}

func (h *Hub) addListener(inner net.Listener, network string, r ListenOptions, set *settings) (*Listener, error) {
	l := &Listener{
		hub: h, inner: inner, network: network, o: r, set: set,
		closed: make(chan struct{}), gone: make(chan struct{}),
		places: places.NewGroup(r.MaxConns),
	}
	if len(r.ProxyFrom) > 0 {
		l.proxies = CIDR(r.ProxyFrom...)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stage != running {
		return nil, ErrClosed
	}
	h.listeners[l] = struct{}{}
	h.tasks.Go(func() error { l.accept(); return nil })
	return l, nil
}

// accept is the listener's goroutine. Accept fails for many passing reasons
// (no descriptors, no memory, a peer that has gone), so that no error ends it
// but that of the listener being closed.
func (l *Listener) accept() {
	defer close(l.gone)
	const first, most = 5 * time.Millisecond, time.Second
	pause := first
	for {
		nc, err := l.inner.Accept()
		if nc == nil && err == nil {
			err = errNoConn
		}
		switch {
		case err == nil:
			pause = first
			l.hub.accepted(l, nc)
			continue
		case errors.Is(err, net.ErrClosed):
			l.stop() // by the user, perhaps
			return
		}
		l.hub.mu.Lock()
		l.hub.totals.AcceptErrors++
		l.hub.mu.Unlock()
		l.hub.log.Warn("accept failed", "listener", addrText(l.Addr()), "error", err, "retry", pause)
		select {
		case <-time.After(pause):
			pause = min(2*pause, most)
		case <-l.closed:
			return
		}
	}
}

// errNoConn is what nil is in place of a connection; it has the error of those of package net
// that have no socket.
var errNoConn = fmt.Errorf("sockhub: no connection: %w", syscall.EINVAL)

// accepted begins the handshake of a connection that a listener has accepted.
func (h *Hub) accepted(l *Listener, nc net.Conn) {
	if l.o.Classify != nil || l.proxies != nil {
		p := &preface{
			hub: h, l: l, nc: nc, born: h.watch.Now(), peer: peerOf(nc, l.network, l.set.tag), closed: make(chan struct{}),
		}
		p.proxied = l.proxies != nil && l.proxies(p.peer) == nil
		if l.o.Classify != nil || p.proxied {
			p.start()
			return
		}
	}
	h.startAccepted(l, nc, nil, l.set, l.o.Admit)
}

// startAccepted is accepted, when it is known what to serve the connection with, by its
// preface if there was one.
func (h *Hub) startAccepted(l *Listener, nc net.Conn, p *preface, set *settings, rule Rule) {
	var first []byte
	if p != nil {
		first = p.first
	}
	c, err := h.newConn(nc, l.network, set, first)
	if err != nil { // of a user's own net.Conn alone
		h.log.Error("connection cannot be served", "error", err)
		h.aside(func() {
			if p != nil {
				p.close()
			} else {
				nc.Close()
			}
		})
		return
	}
	if p != nil {
		c.born = p.born // HandshakeTimeout is for all of it
		c.peer = p.peer
		c.peer.Tag = set.tag
	}
	c.listener = l
	c.greet = &greeting{admit: rule, preface: p}
	if err := h.start(c); err != nil {
		h.log.Info("connection refused", "peer", c.peer, "error", err)
	}
}

// aside does what may wait for a net.Conn of the user's: its Close may say goodbye, and
// accepting goes on meanwhile.
func (h *Hub) aside(f func()) {
	h.mu.Lock()
	running := h.stage == running
	if running { // else tasks may be waited for
		h.tasks.Go(func() error { f(); return nil })
	}
	h.mu.Unlock()
	if !running {
		f()
	}
}

// ---- before the handshake ----

// preface is what comes before the handshake of an accepted connection: a proxy
// tells for whom it is, and Classify chooses its options. It has a goroutine of
// its own, and is one of the handshakes under way.
type preface struct {
	hub     *Hub
	l       *Listener
	nc      net.Conn
	born    time.Duration // on the hub's clock
	proxied bool          // it comes from a proxy, whose header is first
	peer    Peer
	first   []byte        // read so far, behind the proxy's header
	entry   *pendingEntry // guarded by hub.mu
	inCall  atomic.Bool   // it is in Classify, or in a Framing that this has chosen
	refused bool          // by Classify, or for what this has chosen
	late    *time.Timer   // HandshakeTimeout; nil: there is none
	failed  bool          // guarded by hub.mu
	handed  bool          // the hub has the connection, or had it; guarded by hub.mu

	closing atomic.Bool   // nc is being closed, or is
	closed  chan struct{} // closed when it is

	why atomic.Pointer[error] // of the first giveUp
}

// giveUp implements pendingPeer: it ends the preface.
func (p *preface) giveUp(err error) {
	p.why.CompareAndSwap(nil, &err)
	p.nc.SetDeadline(time.Unix(1, 0)) // Close may say goodbye first
	p.close()
}

// close closes the connection, and returns when it is closed. Several may call it, of
// whom the first does it: not every Close of another's making can be called again.
func (p *preface) close() {
	if p.closing.Swap(true) {
		<-p.closed
		return
	}
	defer close(p.closed) // deferred because a Close of another's making may end the goroutine
	p.nc.Close()
}

// start runs it, unless the hub has no place for it.
func (p *preface) start() {
	p.hub.mu.Lock()
	evicted, err := p.startLocked()
	p.hub.mu.Unlock()
	if err != nil {
		p.hub.log.Info("connection refused", "peer", p.peer, "error", err)
		p.hub.aside(p.close)
	}
	if evicted != nil {
		p.hub.aside(func() { evicted.giveUp(errEvicted) })
	}
}

func (p *preface) startLocked() (evicted pendingPeer, err error) {
	h := p.hub
	if h.stage != running {
		return nil, ErrClosed
	}
	if p.entry, evicted, err = h.pendLocked(p.peer, p); err != nil {
		return nil, err
	}
	h.prefaces[p] = struct{}{}
	go p.run() // Hub.join waits for it
	return evicted, nil
}

// failPrefaces ends those of a listener, or all for nil. It does not wait for their Close,
// which may say goodbye; its caller does, when everything else is under way.
func (h *Hub) failPrefaces(l *Listener) (closing *sync.WaitGroup) {
	closing = new(sync.WaitGroup)
	h.mu.Lock()
	defer h.mu.Unlock()
	for p := range h.prefaces {
		if !p.handed && (l == nil || p.l == l) {
			p.failed = true
			closing.Go(func() { p.giveUp(ErrClosed) })
		}
	}
	return closing
}

// run reads the proxy's header, asks Classify until it is content, and hands the
// connection on.
func (p *preface) run() {
	var (
		set  *settings
		rule Rule
		err  = errLeft
	)
	defer func() { p.end(set, rule, err) }() // deferred because Classify may end the goroutine
	p.nc.SetDeadline(time.Time{})            // one that is left from before would be taken for its end
	if t := p.hub.o.HandshakeTimeout; t > 0 {
		p.late = time.AfterFunc(t, func() { p.giveUp(ErrHandshakeTimeout) }) // not each net.Conn has deadlines
	}
	set, rule, err = p.serveWith()
}

var errLeft = errors.New("sockhub: Classify did not return")

// end hands the connection on, or closes it. Until then it is one of
// Hub.prefaces, so that whoever ends all finds it here or in Hub.live.
func (p *preface) end(set *settings, rule Rule, err error) {
	h := p.hub
	defer func() {
		h.mu.Lock()
		if p.entry != nil { // else it is the connection's
			h.pending.Remove(p.entry)
		}
		remove(&h.prefaces, p)
		h.mu.Unlock()
		h.someoneLeft()
	}()
	if p.late != nil && !p.late.Stop() {
		p.giveUp(ErrHandshakeTimeout) // as it does just now
	}
	if why := p.why.Load(); why != nil && !p.refused {
		err = *why
	}
	if err == nil {
		h.startAccepted(p.l, p.nc, p, set, rule)
		return
	}
	h.mu.Lock()
	p.countLocked(err)
	h.mu.Unlock()
	h.log.Info("connection refused", "peer", p.peer, "error", err)
	p.close()
}

// countLocked files why p did not come to a handshake. What Classify has refused comes
// before the errors of the transport, one of which it may have returned.
func (p *preface) countLocked(err error) {
	var broken *net.OpError
	switch t := &p.hub.totals; {
	case err == errEvicted:
		t.RefusedLimit++
	case p.refused:
		t.RefusedPolicy++
	case err == ErrHandshakeTimeout:
		t.HandshakeTimeouts++
	case err == ErrClosed, errors.As(err, &broken), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		// The listener was closed, or the peer has left.
	default:
		t.RefusedPolicy++
	}
}

// serveWith is what to serve the connection with, as soon as that is known.
func (p *preface) serveWith() (*settings, Rule, error) {
	if err := p.whom(); err != nil {
		return nil, nil, err
	}
	if p.l.o.Classify != nil {
		use, err := p.choose()
		if err != nil {
			return nil, nil, err
		}
		if use != nil {
			return p.chosen(*use)
		}
	}
	return p.l.set, p.l.o.Admit, nil
}

// whom reads the header of a proxy, and makes the peer the proxy's client. Local
// stays what it was: a client on the proxy's own machine is not on ours.
func (p *preface) whom() error {
	if !p.proxied {
		return nil
	}
	header, rest, err := proxyproto.Read(readerOf{p.nc})
	if err != nil {
		return err
	}
	p.first = rest
	if header.Source.IsValid() {
		p.peer.Remote = net.TCPAddrFromAddrPort(header.Source)
		p.peer.AddrPort = addrPortOf(p.peer.Remote)
	}
	return nil
}

// readerOf reads from a connection that may be of another's making.
type readerOf struct{ nc net.Conn }

// Read implements io.Reader.
func (r readerOf) Read(p []byte) (int, error) { return transport.ReadFrom(r.nc, p) }

// choose asks Classify, with as many bytes as it wants.
func (p *preface) choose() (use *ListenOptions, err error) {
	buf := append(make([]byte, 0, handshakeBytes), p.first...)
	for p.first = buf[:0]; ; p.first = buf {
		use, more, err := p.ask()
		if err != nil || more <= 0 {
			p.first = buf
			return use, err
		}
		if more <= len(p.first) || more > cap(buf) {
			return nil, fmt.Errorf("sockhub: Classify wants %d bytes, and has seen %d of at most %d", more, len(p.first), cap(buf))
		}
		n, err := io.ReadAtLeast(readerOf{p.nc}, buf[len(buf):cap(buf)], more-len(buf)) // none, if they came with the proxy's header
		buf = buf[:len(buf)+n]
		if err != nil {
			return nil, err
		}
	}
}

// ask calls Classify once.
func (p *preface) ask() (use *ListenOptions, more int, err error) {
	err = p.call(func() (err error) {
		use, more, err = p.l.o.Classify(p.peer, slices.Clip(p.first))
		return err
	})
	return use, more, err
}

// chosen is what options that Classify has chosen come to. The Framing among them, which
// is the user's, is asked.
func (p *preface) chosen(o ListenOptions) (set *settings, rule Rule, err error) {
	o.ProxyFrom = nil // not looked at, so nothing to refuse either
	err = p.call(func() error {
		r, s, err := p.hub.resolve(&o, p.l.network)
		if err == nil {
			s.tls = p.l.sameTLS(o.TLS, s.tls)
		}
		set, rule = s, r.Admit
		return err
	})
	return set, rule, err
}

// sameTLS is what fullRecords has made of a configuration that Classify has chosen: made,
// or what it was made before. A copy for each connection would have ticket keys of its
// own, and no session could be resumed.
func (l *Listener) sameTLS(chosen, made *tls.Config) *tls.Config {
	const most = 64 // who makes a new one for each connection does not fill the memory
	if chosen == nil {
		return nil
	}
	l.hub.mu.Lock()
	defer l.hub.mu.Unlock()
	if before := l.tls[chosen]; before != nil {
		return before
	}
	if l.tls == nil || len(l.tls) == most {
		l.tls = make(map[*tls.Config]*tls.Config)
	}
	l.tls[chosen] = made
	return made
}

// call calls what is, or calls, a function of the user's. A panic refuses.
func (p *preface) call(f func() error) (err error) {
	p.inCall.Store(true)
	defer func() {
		p.inCall.Store(false)
		p.refused = err != nil
	}()
	guarded(func() { err = f() }, func(left *PanicError) {
		err = left
		p.hub.countPanic()
	})
	return err
}

// ---- connections that are open already, and dialing ----

// ServeConn is the accepting side of a connection that is open already: a
// net.Conn, a pipe, anything that reads, writes and closes. The hub closes it,
// also when ServeConn fails. It returns after the handshake, with the reason
// if the peer was not let in; ctx bounds this call alone. While the Disconnected of the
// same client's last connection is still to be received from Events, ServeConn waits for
// that: so the goroutine that receives should not call it, or with a ctx that ends.
// ProxyFrom must be empty, and Classify nil: with a connection in hand, a program can
// read a proxy's header off it, and choose its options.
//
// What has neither a descriptor nor deadlines can be ended only by its Close;
// where that does not unblock a Read, the promises about closing in time do
// not hold. The options of a socket, keep-alive among them, stay as they are.
// Deadlines are how a Read is interrupted, by SetHandler for one. Where a deadline
// that has passed ends a connection for good, as it does some on WebSockets, hide
// them: struct{ io.ReadWriteCloser }{c} has none. None of its methods may call Hub.Close or
// Shutdown, which wait for them.
//
// A tls.Conn of the user's own, or what embeds one, does its handshake first, in any mode.
// It has HandshakeTimeout for that too; in Attach DialOptions.Timeout. What lies below that,
// or below anything with a NetConn method, may be closed twice.
//
// Errors: those of Listen for options, and one that matches errors.ErrUnsupported
// for TLS over what is no net.Conn, a UDP socket without a peer, and unixpacket over
// what is no *net.UnixConn; of the handshake *AdmissionError, ErrBadName,
// ErrNameTaken, ErrReplaced, ErrTooManyConns, ErrMemoryLimit, ErrHandshakeTimeout,
// *PanicError, those of TLS and of the transport, and io.ErrUnexpectedEOF where the
// peer has left; the cause of ctx's end; ErrClosed.
func (h *Hub) ServeConn(ctx context.Context, rwc io.ReadWriteCloser, o *ListenOptions) (*Conn, error) {
	if rwc == nil {
		return nil, errNoConn
	}
	r, set, err := h.resolve(o, packetNetwork(rwc))
	switch {
	case err != nil:
	case len(r.ProxyFrom) > 0:
		err = unsupported("ListenOptions.ProxyFrom")
	case r.Classify != nil:
		err = unsupported("ListenOptions.Classify")
	}
	var c *Conn
	if err == nil {
		c, err = h.newConn(rwc, "", set, nil)
	}
	if err != nil {
		rwc.Close()
		return nil, err
	}
	c.greet = &greeting{admit: r.Admit, done: make(chan error, 1)}
	return c.handshake(ctx)
}

// Dial connects to a network address, as net.Dial does, and returns after the
// handshake: in mode Named when the peer has answered OK, or with ErrRefused
// when it has not. The networks are those of Listen. The Connected that reports
// the connection may be in a batch before Dial returns.
//
// ctx bounds the call, and DialOptions.Timeout each attempt. Without Reconnect
// there is one attempt. With it, Dial tries until ctx ends, and from then on
// the client is dialed again whenever its connection has ended, under the same
// ID, until Forget, an end that this side asked for (Conn.Close, Conn.Finish),
// or the hub's end. Somebody has to receive from Events for that, unless Handler is set:
// the new connection waits until the Disconnected of the one before was taken.
//
// An option, a network or an address that is wrong in itself is an error at once. After
// any other error it tries again, also when it was refused or the host has no address.
// So ctx should have an end, or Options.Logger tell why it takes so long.
//
// Errors: those of package net, and of TLS; ErrRefused, also where the name is taken or not
// let in; ErrHandshakeTimeout when the peer did not answer within
// DialOptions.Timeout; the cause of ctx's end, with the last attempt's error;
// ErrBadName where mode Named lacks a name; options that are wrong in themselves;
// ErrTooManyConns; ErrMemoryLimit; ErrClosed.
func (h *Hub) Dial(ctx context.Context, network, address string, o *DialOptions) (*Conn, error) {
	r, set, err := o.resolve(&h.o, network)
	if err != nil {
		return nil, err
	}
	switch network {
	case "tcp", "tcp4", "tcp6", "unix", "udp", "udp4", "udp6", "unixgram", "unixpacket":
	default:
		return nil, &net.OpError{Op: "dial", Net: network, Err: net.UnknownNetworkError(network)}
	}
	var local net.Addr
	if r.Dialer != nil {
		local = r.Dialer.LocalAddr
	}
	if err := checkAddress(network, address, local); err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	if set.tls != nil && set.tls.ServerName == "" {
		// As tls.Dial does.
		set.tls = set.tls.Clone()
		if set.tls.ServerName, _, err = net.SplitHostPort(address); err != nil {
			set.tls.ServerName = address
		}
	}
	d := &dialing{hub: h, network: network, address: address, o: r, set: set}
	if r.Reconnect == nil {
		return d.attempt(ctx)
	}
	return d.begin(ctx)
}

// checkAddress finds what no further attempt would mend.
func checkAddress(network, address string, local net.Addr) error {
	if local != nil && local.Network() != strings.TrimRight(network, "46") {
		return &net.AddrError{Err: "mismatched local address type", Addr: local.String()}
	}
	if isUnixNetwork(network) {
		switch {
		case address == "":
			return &net.AddrError{Err: "missing address"}
		case strings.Contains(address[1:], "\x00") && address[0] != '@' && address[0] != 0:
			return &net.AddrError{Err: "a zero byte in a path", Addr: address} // the system would end it there
		}
		return nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if _, err = net.LookupPort(network, port); err != nil {
		return err
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		v4 := ip.Unmap().Is4()
		if v4 && strings.HasSuffix(network, "6") || !v4 && strings.HasSuffix(network, "4") && !ip.IsUnspecified() {
			return &net.AddrError{Err: "not an address of " + network, Addr: host}
		}
	}
	return nil
}

// dialing is one Dial, and what follows from it.
type dialing struct {
	// Immutable.
	hub              *Hub
	network, address string
	o                DialOptions // resolved
	set              *settings

	// Set by begin; nil without Reconnect.
	client *client         // that every attempt is for
	bound  *unixsock.Bound // of Dialer.LocalAddr
}

// dialer is the user's, or none, with our keep-alive, and on unixgram with a hook that
// gives our end an address to be answered at.
func (d *dialing) dialer() net.Dialer {
	var dialer net.Dialer
	if d.o.Dialer != nil {
		dialer = *d.o.Dialer
	}
	if dialer.KeepAliveConfig == (net.KeepAliveConfig{}) && dialer.KeepAlive == 0 {
		dialer.KeepAliveConfig = keepAlive
	}
	if d.network != "unixgram" || dialer.LocalAddr != nil {
		return dialer
	}
	first := dialer.ControlContext
	if first == nil {
		dialer.Control = sockopt.Then(dialer.Control, sockopt.Autobind)
		return dialer
	}
	dialer.ControlContext = func(ctx context.Context, network, address string, c syscall.RawConn) error { // takes the place of Control
		if err := first(ctx, network, address, c); err != nil {
			return err
		}
		return sockopt.Autobind(network, address, c)
	}
	return dialer
}

// attempt dials once.
func (d *dialing) attempt(all context.Context) (*Conn, error) {
	ctx, cancel := withTimeout(all, d.o.Timeout)
	defer cancel()
	defer context.AfterFunc(d.hub.dials, cancel)()
	dialer := d.dialer()
	nc, err := d.bound.Dial(func() (net.Conn, error) { return dialer.DialContext(ctx, d.network, d.address) })
	if err == nil {
		var c *Conn
		if c, err = d.hub.attach(ctx, nc, d.network, d); err == nil {
			return c, nil
		}
		switch {
		case all.Err() != nil: // without which it would look like the network
			err = fmt.Errorf("in the handshake: %w", err)
		case errors.Is(err, context.DeadlineExceeded):
			err = fmt.Errorf("%w: %w", ErrHandshakeTimeout, err)
		}
		err = &net.OpError{Op: "dial", Net: d.network, Addr: nc.RemoteAddr(), Err: err}
	}
	if d.hub.dials.Err() != nil {
		return nil, ErrClosed
	}
	if cause := context.Cause(all); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return nil, err
}

// begin dials until there is a connection or ctx ends, and leaves a goroutine
// behind that dials again.
func (d *dialing) begin(ctx context.Context) (*Conn, error) {
	h := d.hub
	if d.o.Dialer != nil {
		d.bound = unixsock.NewBound(d.o.Dialer.LocalAddr)
	}
	life, stop := context.WithCancel(h.dials)
	h.mu.Lock()
	if h.stage != running {
		h.mu.Unlock()
		stop()
		return nil, ErrClosed
	}
	d.client = h.newClientLocked("")
	d.client.redial = stop
	h.mu.Unlock()

	first, cancel := context.WithCancelCause(ctx)
	defer context.AfterFunc(life, func() { cancel(ErrClosed) })()
	c, wait, err := d.persist(first, 0)
	cancel(nil)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		h.letGoLocked(d.client)
		return nil, err
	}
	if h.stage == running { // else c ends, and life has
		h.tasks.Go(func() error { d.redial(life, c, wait); return nil })
	}
	return c, nil
}

// persist dials until there is a connection or ctx ends. It returns the last
// attempt's error then.
func (d *dialing) persist(ctx context.Context, wait time.Duration) (_ *Conn, waited time.Duration, _ error) {
	var last error
	for {
		c, err := d.attempt(ctx)
		if err == nil {
			return c, wait, nil
		}
		if ctx.Err() != nil {
			err := context.Cause(ctx)
			if last != nil {
				err = fmt.Errorf("%w; last attempt: %w", err, last)
			}
			return nil, 0, err
		}
		if isUnixNetwork(d.network) && errors.Is(err, syscall.EINVAL) {
			return nil, 0, err // the address is longer than the system has room for
		}
		last = err
		wait = d.o.Reconnect.next(wait)
		d.hub.log.Info("dial failed", "network", d.network, "address", d.address, "error", err, "retry", wait)
		if !sleep(ctx, d.o.Reconnect.vary(wait)) {
			return nil, 0, fmt.Errorf("%w; last attempt: %w", context.Cause(ctx), err)
		}
	}
}

// redial is the goroutine that dials again, until life ends.
func (d *dialing) redial(life context.Context, c *Conn, wait time.Duration) {
	defer func() {
		d.hub.mu.Lock()
		defer d.hub.mu.Unlock()
		d.hub.letGoLocked(d.client)
	}()
	for {
		select {
		case <-c.afterEnd():
		case <-life.Done():
			return
		}
		if c.endWasAsked() {
			return
		}
		// A peer that takes connections only to end them is no better than
		// one that refuses them.
		if d.hub.watch.Now()-c.born > wait {
			wait = 0
		}
		wait = d.o.Reconnect.next(wait)
		if !sleep(life, d.o.Reconnect.vary(wait)) {
			return
		}
		var err error
		if c, wait, err = d.persist(life, wait); err != nil {
			return
		}
	}
}

// sleep waits, and reports whether ctx did not end meanwhile.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Attach is the dialing side of a connection that is open already; see
// ServeConn. ctx and DialOptions.Timeout bound the call. DialOptions.Reconnect
// must be nil: there is nothing to dial. The hub closes the connection, also when
// Attach fails.
//
// Errors: those of Dial, but context.DeadlineExceeded when the peer did not answer
// within DialOptions.Timeout; options that are wrong; one that matches
// errors.ErrUnsupported where that of ServeConn does.
func (h *Hub) Attach(ctx context.Context, rwc io.ReadWriteCloser, o *DialOptions) (*Conn, error) {
	if rwc == nil {
		return nil, errNoConn
	}
	r, set, err := o.resolve(&h.o, packetNetwork(rwc))
	if err == nil && r.Reconnect != nil {
		err = optionError("DialOptions.Reconnect", "set for Attach, which has nothing to dial")
	}
	if err != nil {
		rwc.Close()
		return nil, err
	}
	ctx, cancel := withTimeout(ctx, r.Timeout)
	defer cancel()
	return h.attach(ctx, rwc, "", &dialing{o: r, set: set})
}

func (h *Hub) attach(ctx context.Context, rwc io.ReadWriteCloser, network string, d *dialing) (*Conn, error) {
	c, err := h.newConn(rwc, network, d.set, nil)
	if err != nil {
		rwc.Close()
		return nil, err
	}
	c.peer.Dialed = true
	if d.set.mode.named() {
		c.peer.Name = d.o.Name
	}
	c.greet = &greeting{client: d.client, done: make(chan error, 1)}
	return c.handshake(ctx)
}

func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d == 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, d)
}

// ---- the handshake ----

// greeting is a handshake under way.
type greeting struct {
	// Owned by the reader goroutine.
	admit    Rule           // the listener's
	asked    *ClientOptions // the name's registration whose rule was asked, or nil
	client   *client        // that is dialed again; nil: a new one
	claiming bool           // it is in claims of the name's client, and waits for the end of the owner
	done     chan error     // capacity 1, sent to once by the reader; nil: nobody waits

	// Of who waits for the outcome; guarded by the connection's mu. At most one is true.
	told bool // he is told, or about to be, that all went well
	left bool // he waits no longer, and has ended the connection

	// Guarded by hub.mu.
	entry   *pendingEntry  // nil: not in hub.pending
	place   places.Promise // see promiseLocked
	outbid  bool           // place is that of a later one's, see outbidLocked
	seq     uint64         // of the claim, from 1 on; 0: there was none
	preface *preface       // that came before; nil once the hub has the connection
}

// pendingPeer is a peer of which it is not known yet whether it gets in.
type pendingPeer interface{ giveUp(err error) }

type pendingEntry = pending.Entry[source, pendingPeer]

var errEvicted = fmt.Errorf("%w: MaxPending", ErrTooManyConns)

// tell tells the outcome to whom waits for it.
func (g *greeting) tell(err error) {
	if g.done != nil {
		g.done <- err
	}
}

// newConn makes a connection that is not running yet, of which first was read already.
func (h *Hub) newConn(rwc io.ReadWriteCloser, network string, set *settings, first []byte) (*Conn, error) {
	if _, ok := rwc.(*net.UnixConn); !ok && set.network == "unixpacket" {
		return nil, fmt.Errorf("sockhub: unixpacket by a %T, which is no *net.UnixConn: %w", rwc, errors.ErrUnsupported)
	}
	nc, isConn := rwc.(net.Conn)
	if n := packetNetwork(rwc); isConn && (n == "udp" || n == "unixgram") && isNilAddr(nc.RemoteAddr()) {
		return nil, fmt.Errorf("sockhub: a socket that is not connected to one peer is for ServePacket: %w", errors.ErrUnsupported)
	}
	c := &Conn{hub: h, set: set, born: h.watch.Now()}
	c.mu.c = c
	c.peer = peerOf(rwc, network, set.tag)
	c.dec = decoder{framing: set.framing, max: set.maxMessage}
	if set.tls == nil {
		c.t = h.transport(rwc, set)
		c.dec.rest = first
	} else {
		if !isConn {
			return nil, fmt.Errorf("sockhub: TLS over a %T, which is no net.Conn: %w", rwc, errors.ErrUnsupported)
		}
		side, config := tls.Server, set.tls
		if set.dials {
			side = tls.Client
			if s := config.ClientSessionCache; s != nil {
				config = config.Clone()
				config.ClientSessionCache = sessions{s, c}
			}
		}
		direct := config.Renegotiation == tls.RenegotiateNever
		c.tls, c.t = transport.NewTLS(nc, first, direct, func(nc net.Conn) *tls.Conn { return side(nc, config) })
	}
	if set.mode.named() {
		c.dec.max = MaxNameLen
	}
	if set.reuse {
		c.dec.borrow, c.dec.lender = true, h.budget
		lends.Store(true)
	}
	c.out.framing = set.header(false)
	c.out.limit, c.out.policy = set.connOut, set.overflow
	c.out.bePatient(transport.Patience(c.t))
	if p, ok := rwc.(*packet.Conn); ok && !p.Answerable() {
		c.refuseLocked(errNoAddress) // which nobody else has yet
	}
	c.lastRead, c.quiet, c.shaking, c.out.unheard = c.born, c.born, true, true
	return c, nil
}

// sessions is a ClientSessionCache, of which package tls calls Put when the handshake is
// over too: from TryRead, where nothing else is the user's.
type sessions struct {
	tls.ClientSessionCache
	c *Conn
}

// Put implements tls.ClientSessionCache. A panic ends the connection.
func (s sessions) Put(key string, state *tls.ClientSessionState) {
	guarded(func() { s.ClientSessionCache.Put(key, state) }, s.c.callLeft)
}

// errNoAddress is what a Send gets to those who have sent from a unixgram socket
// without an address; they are one client.
var errNoAddress = fmt.Errorf("%w: the sender has no address to answer to", ErrNotConnected)

// transport is what a connection without TLS is served by.
func (h *Hub) transport(rwc io.ReadWriteCloser, set *settings) transport.Conn {
	nc, _ := rwc.(net.Conn) // one, if set.network says that it is of packets
	_, isSession := rwc.(*packet.Conn)
	switch {
	case !set.packets() || isSession:
	case set.network == "unixpacket":
		longest := int(set.maxMessage)
		if set.mode.named() { // the handshake's packets may be longer
			longest = max(longest, MaxNameLen)
		}
		rwc = packet.NewSeq(nc.(*net.UnixConn), longest, ErrMessageTooLarge) // as newConn has seen
	default:
		rwc = packet.Connect(nc, h.packetOptions(set, 1))
	}
	return transport.New(rwc)
}

// packetNetwork is the network of an open connection, if it is one of packets.
func packetNetwork(rwc io.ReadWriteCloser) string {
	switch x := rwc.(type) {
	case *net.UDPConn:
		return "udp"
	case *net.UnixConn:
		if n := networkOf(x.LocalAddr()); packetMax(n) > 0 {
			return n
		}
	case net.Conn:
		// Of another type, and so refused. But a stream over datagrams may well have an
		// address of network udp.
		if networkOf(x.LocalAddr()) == "unixpacket" {
			return "unixpacket"
		}
	}
	return ""
}

// peerOf is what can be known of a peer before it says anything.
func peerOf(rwc io.ReadWriteCloser, network, tag string) Peer {
	var p Peer
	if nc, ok := rwc.(net.Conn); ok {
		if network == "" {
			network = networkOf(nc.LocalAddr())
		}
		p = newPeer(network, nc.LocalAddr(), nc.RemoteAddr())
		if cred, err := peercred.Of(nc); err == nil {
			p.Cred = &Cred{PID: cred.PID, UID: cred.UID, GID: cred.GID}
		}
	} else {
		p = newPeer(orElse(network, "pipe"), nil, nil)
	}
	p.Tag = tag
	return p
}

// start runs a new connection, unless the hub has no place for it.
func (h *Hub) start(c *Conn) error {
	p := c.greet.preface
	evicted, err := h.add(c)
	switch {
	case err == nil:
	case p != nil:
		h.aside(p.close) // who has failed it may be doing that
		return err
	case c.listener != nil:
		h.aside(func() { c.t.Close() })
		return err
	default:
		c.t.Close()
		return err
	}
	if evicted != nil {
		h.aside(func() { evicted.giveUp(errEvicted) })
	}
	if !c.peer.Dialed && h.o.HandshakeTimeout > 0 {
		c.mu.Lock()
		c.deadline = c.born + h.o.HandshakeTimeout
		c.mu.Unlock()
		c.arm(c.born + h.o.HandshakeTimeout)
	}
	go c.serve()
	return nil
}

// add enters a connection among those that the hub has to end, and among the
// handshakes under way.
func (h *Hub) add(c *Conn) (evicted pendingPeer, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := c.greet.preface
	if h.stage != running || p != nil && p.failed {
		return nil, ErrClosed
	}
	switch c.greet.preface = nil; {
	case c.peer.Dialed:
	case p != nil && !p.proxied: // its age goes on
		if !p.entry.Hand(c) {
			return nil, h.noRoomLocked()
		}
		c.greet.entry, p.entry = p.entry, nil
	default:
		// It was the proxy's, if p is one, and is its client's from now on.
		if p != nil && !h.pending.Remove(p.entry) { // it has made room for another
			return nil, h.noRoomLocked()
		}
		if c.greet.entry, evicted, err = h.pendLocked(c.peer, c); err != nil {
			return nil, err
		}
	}
	if p != nil {
		p.handed = true
	}
	h.live[c] = struct{}{}
	return evicted, nil
}

// pendLocked enters a handshake among those under way, and returns the one that has to
// make room for it, or nil.
func (h *Hub) pendLocked(peer Peer, p pendingPeer) (entry *pendingEntry, evicted pendingPeer, err error) {
	entry, out := h.pending.Add(sourceOf(peer), p, time.Now())
	if entry == nil {
		return nil, nil, h.noRoomLocked()
	}
	if out != nil {
		evicted = out.Value()
	}
	return entry, evicted, nil
}

// noRoomLocked counts a handshake for which there is no place.
func (h *Hub) noRoomLocked() error {
	h.totals.RefusedLimit++
	return errEvicted
}

// source is who accounts for a handshake: an IPv4 address, an IPv6 network of
// 64 bits, the user behind a Unix socket.
type source struct {
	net netip.Prefix
	uid int64
}

func sourceOf(p Peer) source {
	switch addr := p.AddrPort.Addr(); {
	case addr.Is4():
		return source{net: netip.PrefixFrom(addr, 32)}
	case addr.Is6():
		net, _ := addr.Prefix(64)
		return source{net: net}
	case p.Cred != nil:
		return source{uid: int64(p.Cred.UID)}
	}
	return source{uid: -1}
}

// handshake runs a new connection until it is admitted, fails, or ctx ends.
func (c *Conn) handshake(ctx context.Context) (*Conn, error) {
	g := c.greet // the reader's, but for done, from now on
	if err := c.hub.start(c); err != nil {
		return nil, err
	}
	var end error
	select {
	case err := <-g.done:
		return c.orNil(err)
	case <-ctx.Done():
		end = context.Cause(ctx)
	case <-c.hub.closed:
		end = ErrClosed
	}
	if c.failIf(func() bool { g.left = !g.told; return g.left }, end) {
		return nil, c.notLetIn(c.endReason()) // its reader may be in a callback, and is not waited for
	}
	return c.orNil(<-g.done)
}

func (c *Conn) orNil(err error) (*Conn, error) {
	if err != nil {
		return nil, err
	}
	return c, nil
}

// tellSuccess tells who waits for the outcome of the handshake that all went well, unless
// he waits no longer, and has ended the connection.
func (c *Conn) tellSuccess(g *greeting) error {
	c.mu.Lock()
	g.told = !g.left
	c.mu.Unlock()
	if !g.told {
		return c.endReason()
	}
	c.greet = nil
	g.tell(nil)
	return nil
}

// answer is what an accepting side sends to a peer that is let in.
const answer = "OK"

// errTLSHandshake: the peers cannot agree on TLS, or one has left meanwhile.
var errTLSHandshake = errors.New("sockhub: TLS handshake")

// startHandshake is the first act of the reader.
func (c *Conn) startHandshake() error {
	c.inCall.Store(true)            // it calls the user's functions in tls.Config
	err := transport.Handshake(c.t) // Hangup ends it
	c.inCall.Store(false)
	if err != nil {
		return fmt.Errorf("%w: %w", errTLSHandshake, err)
	}
	if c.tls != nil {
		state := c.tls.ConnectionState()
		c.peer.TLS = &state
	}
	switch {
	case c.set.mode.named() && c.peer.Dialed:
		c.say(c.peer.Name)
		return nil
	case c.set.mode.named():
		return nil // the peer begins
	case !c.peer.Dialed:
		if err := c.ask(c.hub.o.Admit, c.greet.admit); err != nil {
			return err
		}
	}
	return c.enter()
}

// greeted is told the first message: the name, or the answer to ours.
func (c *Conn) greeted(msg []byte) error {
	if c.peer.Dialed {
		if string(msg) != answer {
			return fmt.Errorf("%w: answered %.20q and not %q; is it in mode %v?", ErrRefused, msg, answer, c.set.mode)
		}
		return c.enter()
	}
	name := string(msg)
	if err := checkName(name); err != nil {
		return err
	}
	c.peer.Name = name
	if err := c.ask(c.hub.o.Admit, c.greet.admit); err != nil {
		return err
	}
	return c.enter()
}

// ask asks the rules about the peer.
func (c *Conn) ask(rules ...Rule) error {
	c.inCall.Store(true)
	err := admit(c.peer, rules...)
	c.inCall.Store(false) // if they have returned: see recoverCall
	return err
}

// enter goes on with the handshake when nothing but the hub can be in its
// way, as far as that lets it.
func (c *Conn) enter() error {
	g := c.greet
	for c.client == nil {
		if c.set.mode.named() && !c.peer.Dialed {
			if o := c.hub.nameOptions(c.peer.Name); o != g.asked {
				if o != nil {
					if err := c.ask(o.Admit); err != nil {
						return err
					}
				}
				g.asked = o
			}
		}
		if err := c.endReason(); err != nil {
			return err // while a rule was asked
		}
		a, replaced, err := c.hub.admit(c)
		if err != nil {
			return err
		}
		if replaced != nil {
			replaced.fail(ErrReplaced)
		}
		if g.claiming = a == nameBusy; g.claiming {
			c.mu.Lock() // the owner may be sent something meanwhile that its peer does not take
			c.reclaim = true
			c.mu.Unlock()
			c.arm(c.hub.watch.Now() + doubt)
			return nil
		}
		if a == admitted {
			c.welcome()
			c.makeHandler()
		}
	}
	if c.handler != nil {
		c.hub.fan.present(c)
		c.gated = false
	} else {
		c.gated = !c.hub.fan.publish(c)
	}
	if !c.gated {
		c.client.giver = nil
		c.heard()
	}
	// A dial that is repeated is not to time out because the user takes his
	// time to take the end of the connection before.
	if g != nil && (!c.gated || g.client != nil) {
		return c.tellSuccess(g)
	}
	return nil
}

// heard has Drained told that was due while there was nobody to tell, unless another is
// about to get the connection: see output.unheard.
func (c *Conn) heard() {
	c.mu.Lock()
	if ch := c.change.Load(); ch != nil && ch.setHandler {
		c.mu.Unlock()
		return // attend comes back to it
	}
	o := &c.out
	o.unheard = false
	due := false
	if o.empty() && !o.writing && !o.frozen {
		waited := o.waited
		if o.lacked != 0 {
			c.arm(c.hub.watch.Now()) // check tells when there is room, which is all that it waited for
			o.waited = false
		}
		if o.drainedDue() {
			o.drainedTold()
			due = !c.tellDrainedLocked()
		}
		if o.lacked != 0 {
			o.waited = waited
		}
	}
	c.mu.Unlock()
	if due {
		c.drainedForHub()
	}
}

// makeHandler asks the user for the connection's Handler.
func (c *Conn) makeHandler() {
	factory := c.set.handler
	if o := c.greet.asked; o != nil && o.Handler != nil {
		factory = o.Handler
	}
	if factory == nil {
		return
	}
	c.inCall.Store(true)
	h := factory(c)
	c.listening()
	c.inCall.Store(false)
	if h != nil {
		c.useHandler(h)
	}
}

// welcome ends the handshake proper: the answer is queued, as the first of
// the output, and the limits of what may come are lifted.
func (c *Conn) welcome() {
	if c.set.mode.named() && !c.peer.Dialed {
		c.say(answer)
	}
	c.dec.max, c.dec.streamOver = c.set.maxMessage, c.set.streamOver
	c.dec.setRaw(c.set.mode.raw())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.framing = c.set.header(c.dec.raw)
	if o := c.greet.asked; o != nil && o.Overflow != 0 {
		c.out.policy = o.Overflow
	}
}

// letIn lifts the limits of the handshake's time, unless it has ended already.
func (c *Conn) letIn() error {
	now := c.hub.watch.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closeErr != nil {
		return c.closeErr
	}
	c.shaking, c.deadline, c.quiet = false, 0, now
	return nil
}

// say queues a message of the handshake, which no report counts.
func (c *Conn) say(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.out.refuse != nil {
		return // the end is near
	}
	c.inCall.Store(true) // a Framing may panic where it cannot express this; see recoverCall
	c.out.q.Append(c.out.framing, []byte(text))
	c.inCall.Store(false)
	c.out.said = uint16(len(text)) + 1 // a name, or OK
	c.startWriterLocked()
}

// notLetIn makes ErrRefused of the ways in which a peer can end a connection before its
// answer. The handshake has failed with err.
func (c *Conn) notLetIn(err error) error {
	if !c.peer.Dialed || !c.set.mode.named() || errors.Is(err, ErrRefused) {
		return err
	}
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED} {
		if errors.Is(err, end) {
			return fmt.Errorf("%w: %w", ErrRefused, err)
		}
	}
	return err
}
