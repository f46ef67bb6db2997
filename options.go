package sockhub

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/sockhub/sockhub/internal/nofile"
	"github.com/sockhub/sockhub/internal/outq"
	"github.com/sockhub/sockhub/internal/packet"
)

// The documented defaults. A zero field of an options struct means the
// constant of its name here; a negative limit or duration means none.
//
// MaxConns and IdleTimeout have none of their name: Options.MaxConns is 65,536, or
// fewer where the process may open fewer descriptors, ListenOptions.MaxConns and
// IdleTimeout are no limit. But on udp and unixgram they are DefaultMaxSessions and
// DefaultSessionIdle.
const (
	DefaultMaxPending          = 1024      // handshakes under way in a hub
	DefaultMaxPendingPerSource = 64        // of them from one address or uid before it counts as heavy
	DefaultMaxMessage          = 64 << 20  // bytes of one buffered message
	DefaultConnInbound         = 4 << 20   // bytes charged to input that the user has not taken, per connection
	DefaultConnOutbound        = 4 << 20   // bytes charged to queued output, per connection
	DefaultInboundLimit        = 512 << 20 // bytes charged to input that the user has not taken, in all
	DefaultOutboundLimit       = 512 << 20 // bytes charged to queued output, in all
	DefaultMemoryLimit         = 2 << 30   // bytes of both, and of the unsent messages in reports
	DefaultHandshakeTimeout    = 5 * time.Second
	DefaultFrameTimeout        = 30 * time.Second
	DefaultWriteTimeout        = 10 * time.Second
	DefaultLinger              = 500 * time.Millisecond
	DefaultDialTimeout         = 5 * time.Second
	DefaultBackoffMin          = 100 * time.Millisecond
	DefaultBackoffMax          = 30 * time.Second
	DefaultBackoffFactor       = 1.6
	DefaultBackoffJitter       = 0.2
	DefaultFileMode            = fs.FileMode(0o600) // of a Unix socket file
	DefaultMaxSessions         = 65536              // ListenOptions.MaxConns on udp and unixgram
	DefaultSessionIdle         = 60 * time.Second   // ListenOptions.IdleTimeout there: after that, a client that is silent ends

	// MessageCharge is what each queued message counts against a limit
	// beside its length, so that tiny and empty messages are not free.
	MessageCharge = 64

	// MaxNameLen is the longest name, in bytes, that a peer may give itself.
	MaxNameLen = 255

	maxConnsCeiling = 65536 // default of Options.MaxConns where descriptors do not set a lower one: see defaultMaxConns
	handshakeBytes  = 1024  // read of a peer at most before its name is accepted

	// Charges made by either are added up.
	_ = uint(MessageCharge-outq.Overhead) + uint(outq.Overhead-MessageCharge)
)

// Options are the settings of a Hub. They are copied by New. A nil *Options
// and a zero field mean the defaults; a negative limit or duration means no
// limit. A contradiction is an error from New.
type Options struct {
	// Name is the name that this program gives when it dials in mode Named,
	// unless DialOptions.Name says otherwise. 1 to MaxNameLen bytes.
	Name string

	// Logger is told what has no event of its own: refused peers and dials that are
	// tried again at level Info, accept errors at Warn, an accepted connection of a kind
	// that cannot be served at Error. Nil means silence. Nothing is logged per message.
	// Its handler must not call Close or Shutdown, which wait for whoever is logging.
	Logger *slog.Logger

	// Admit is asked about every accepted connection, beside the listener's
	// and the name's own rules: all must admit. Nil admits everybody.
	Admit Rule

	Unexpected UnexpectedPolicy // what happens to names that nobody registered
	Duplicates DuplicatePolicy  // what happens to a second claim on a live name
	Overflow   OverflowPolicy   // what a Send does that finds the queue full

	// MaxConns bounds the connections past their handshake, those included
	// whose Disconnected was not taken yet. Default: 65,536, or fewer where
	// the process may open fewer descriptors (some are left free). Beyond it
	// others are refused with ErrTooManyConns; but while more than half of the
	// places are those of clients on udp and unixgram, one of these ends for each
	// that comes, on whatever network: of the socket that has most of them, the
	// one that was silent for longest.
	MaxConns int

	// MaxPending bounds the handshakes under way. When it is full, the
	// oldest one of the heaviest source makes room, if it is older than a
	// second; where none is, the newest of a heavy source, for one of another
	// source. Default 1,024. MaxConns leaves a 16th of the descriptors free: where
	// a process may open few, less is better.
	MaxPending int

	// MaxPendingPerSource is the number of handshakes under way from which
	// on a source (an IP address, or the uid behind a Unix socket) counts as
	// heavy. Default 64.
	MaxPendingPerSource int

	// MaxMessage is the largest message, in bytes, that is received into
	// memory or sent; a larger one ends its connection with
	// ErrMessageTooLarge. Default 64 MiB. InboundLimit must be at least twice
	// as much, and 128 KiB; so for no limit here, that must have none.
	MaxMessage int64

	// StreamOver is the size, in bytes, above which a message is delivered
	// as a *Stream instead, and MaxMessage does not hold for it. Each must be
	// read or closed: the connection's further input waits for that. It should
	// not be more than MaxMessage: a message larger than that, but not than
	// StreamOver, ends its connection. Default: never.
	StreamOver int64

	// ConnInbound is the charge (see MessageCharge) of one connection's
	// input that the user has not taken from Events, from which on its
	// reading pauses. ConnOutbound is the charge of one connection's queue
	// from which on a Send has to wait or is refused. One message always
	// enters an empty queue, whatever its size, where OutboundLimit has room for it.
	// Default 4 MiB each.
	//
	// A batch can bring ConnInbound from one connection, and a loop that answers
	// it, or passes it on, queues that much at a time. So with a ConnOutbound below
	// that, the OverflowPolicy meets peers that read, too.
	// Where many send to one, no ConnOutbound is enough for that: what holds the
	// senders back instead is a Handler that passes on by Conn.Send, with a timeout.
	ConnInbound, ConnOutbound int64

	// InboundLimit, OutboundLimit and MemoryLimit bound the same for all
	// connections of the hub together, in bytes: received and not taken,
	// queued and not written, and both with what unread reports hold. (Half of
	// OutboundLimit is divided among MaxConns connections. What a connection has
	// queued within its part of that does not count against MemoryLimit.) At
	// MemoryLimit nothing is read and nobody let in; a Send has OutboundLimit alone.
	// Beside InboundLimit each connection has 2 KiB of its own: at the limit, messages
	// that fit these with their header (and raw bytes, in pieces) are still received of
	// every connection of which nothing waits to be taken, however many others have
	// begun messages and do not complete them. So what is held is at most InboundLimit,
	// and for each connection 2 KiB and one MessageCharge. Larger messages are then
	// completed one at a time; whose turn it is has FrameTimeout, and a second for each
	// 64 KiB that are missing. On unixpacket one message of each
	// connection, of at most MaxMessage, was received before there is room for it, and
	// comes on top of that.
	// Defaults 512 MiB, 512 MiB, 2 GiB.
	InboundLimit, OutboundLimit, MemoryLimit int64

	// Budget, if set, is used instead of the three limits, which must then
	// be zero. Hubs that share a Budget share its limits.
	Budget *Budget

	HandshakeTimeout time.Duration // from accept to the accepted name, absolute: progress does not extend it. Default 5 s
	FrameTimeout     time.Duration // for a message that has begun and makes no progress; with TLS, one of which a record has come. Default 30 s
	WriteTimeout     time.Duration // for output that makes no progress at all; a slow peer is not a stuck one. Also for input that does not end after a write has failed, which has 10 s where this is none. Default 10 s
	IdleTimeout      time.Duration // without any input; from 10 s on it may be 0.1 s late. Default: none
	Linger           time.Duration // how long the input of a finished connection is drained, from when its output is with the kernel, so that a reset does not destroy our last output. A peer that goes on sending for longer than that, and has not read all by then, loses the rest: it needs a longer Linger. Default 500 ms

	// ReuseBuffers makes received messages borrowed memory: see
	// Batch.Release and Handler. Without it they are the user's for good.
	ReuseBuffers bool
}

// ListenOptions are the settings of a Listener and of the connections that it
// accepts. They are copied. Where a field exists in Options too, zero means
// the hub's value.
type ListenOptions struct {
	Mode    Mode        // default Named, on packet networks Anonymous
	Framing Framing     // default LengthPrefix(8, binary.LittleEndian)
	TLS     *tls.Config // not nil: TLS on every connection. It needs Certificates, GetCertificate or GetConfigForClient. It is copied: ticket keys that change are for GetConfigForClient
	Admit   Rule        // nil admits; Options.Admit must admit too

	// Classify chooses, before the handshake, which options a connection is
	// served with. It sees the peer's address and the first bytes it sent
	// (none at the first call). use nil means this listener's own options;
	// more > 0 asks to be called again when that many bytes have come, of at most 1 KiB
	// (a peer that sends fewer and waits is refused after HandshakeTimeout); an
	// error refuses the connection, and so do options that are wrong. The listener's own
	// MaxConns holds for all of its connections; that of use is not looked at, nor are its
	// Classify, ProxyFrom, ReusePort, FileMode and Config. One TLS configuration is
	// best used for many connections: then sessions are resumed.
	Classify func(p Peer, first []byte) (use *ListenOptions, more int, err error)

	// Handler makes the Handler of a connection. Nil, or a nil result: the
	// connection reports to Events.
	Handler func(*Conn) Handler

	// ProxyFrom are the addresses of proxies (as CIDR sees them) that begin
	// each connection with a PROXY header, version 1 or 2, and are believed:
	// Peer.Remote and AddrPort are then what it says of the client, for rules
	// and Classify too, and stay the proxy's where it says nothing (UNKNOWN,
	// LOCAL, no IP address). Without a header they are refused. From anybody
	// else such bytes are data like any other. Only of Listen and Serve, and
	// not looked at in what Classify returns. Default: nobody is a proxy.
	ProxyFrom []netip.Prefix

	// ReusePort lets several processes, or hubs, listen on the same TCP port,
	// if all of them ask for it. Linux and FreeBSD spread new connections over
	// them; each has its own names and limits. Where the system has no safe way,
	// and on Unix sockets, Listen fails with errors.ErrUnsupported.
	ReusePort bool

	// FileMode is the mode of a Unix socket file, in force before anybody can
	// connect. Default 0600: its owner alone. While the listener lives, an
	// empty file with .lock after its name lies beside it and says that it is
	// not dead.
	FileMode fs.FileMode

	// HalfOpen keeps the connection of a peer that has finished sending until
	// the user calls Conn.Finish. Without it the connection ends when the
	// batch with its Ended was taken and what had been sent until then is
	// written. So it is for programs that answer later than that, such as one with a
	// goroutine that reads a Delivery.Stream.
	HalfOpen bool

	Tag          string            // told to rules as Peer.Tag, so that they can tell listeners apart
	ReuseBuffers bool              // as Options.ReuseBuffers; either one turns it on
	Config       *net.ListenConfig // socket options of the user's own

	MaxConns                                          int            // connections of this listener alone. Default: no limit of its own
	MaxMessage, StreamOver, ConnInbound, ConnOutbound int64          // as in Options
	IdleTimeout                                       time.Duration  // as Options.IdleTimeout
	Overflow                                          OverflowPolicy // as Options.Overflow
}

// DialOptions are the settings of one dialed client. They are copied. What is
// not here, such as limits and StreamOver, is as the hub's Options say.
type DialOptions struct {
	Name         string              // given to the peer in modes Named and NamedRaw. Default Options.Name
	Mode         Mode                // default Named, on packet networks Anonymous
	Framing      Framing             // default LengthPrefix(8, binary.LittleEndian)
	TLS          *tls.Config         // not nil: TLS. ServerName is the host of the address, if it is not set
	Handler      func(*Conn) Handler // nil, or a nil result: Events
	Tag          string              // kept as Peer.Tag
	Reconnect    *Backoff            // nil: the connection is not dialed again
	Timeout      time.Duration       // of each attempt, connecting and handshake together. Default 5 s; negative: only ctx bounds it
	HalfOpen     bool                // as ListenOptions.HalfOpen; the Finish that it asks for ends Reconnect
	ReuseBuffers bool                // as Options.ReuseBuffers
	Dialer       *net.Dialer         // socket options of the user's own; its functions must not call Close or Shutdown
}

// ClientOptions are the settings of one expected client. They are copied.
type ClientOptions struct {
	Admit      Rule                // nil admits; the hub's and the listener's rules must admit too
	Duplicates DuplicatePolicy     // zero: the hub's
	Overflow   OverflowPolicy      // zero: the listener's
	Handler    func(*Conn) Handler // beats the listener's; for connections that begin later, not for one that Expect adopts
}

// Backoff says how long to wait before dialing again: Min after the first
// failure, Factor times as long after each further one, Max at most, each
// wait varied at random by ± Jitter of itself. A connection that lasted longer
// than the wait before it starts it anew.
type Backoff struct {
	Min    time.Duration // default 100 ms
	Max    time.Duration // default 30 s, or Min if that is more
	Factor float64       // default 1.6; 1 or more
	Jitter float64       // default 0.2; from 0 to 1; negative: none
}

// Mode is what a connection speaks. Both sides must use the same one, as nothing on
// the wire tells which it is. A program that dials Anonymous where the listener is Named
// has its first message taken for its name, and if that is let in, gets OK as a message.
// One that dials Named where the listener is Anonymous has its name taken for a message:
// Dial fails with ErrHandshakeTimeout, or with ErrRefused when something else than
// OK comes back. Between messages and raw bytes, lengths are taken for bytes and
// bytes for lengths; what announces too much ends with ErrMessageTooLarge.
//
// Raw bytes come in pieces whose borders mean nothing, mostly of no more than 16 KiB, or
// 128 KiB with ReuseBuffers; memory that another connection had for a larger message can
// make one larger, and so can an Unread. MaxMessage is the limit of each Send, while
// Framing and StreamOver do nothing. A Handler that parses what comes gives back with
// Reply.Unread what is not complete: FrameTimeout and MaxMessage hold for that, and do not
// for what a program keeps itself. Where output was cut, its peer may see the same end as
// of all of it.
//
// On packet networks only unixpacket can be Named, and none is Raw or NamedRaw.
type Mode int

// The values of Mode. Zero means the default: Named, and on packet networks
// Anonymous.
const (
	Named     Mode = iota + 1 // the dialing side gives its name first
	Anonymous                 // messages, no handshake
	Raw                       // bytes, no handshake
	NamedRaw                  // a name first, then bytes
)

// String returns the constant's name.
func (m Mode) String() string {
	switch m {
	case Named:
		return "Named"
	case Anonymous:
		return "Anonymous"
	case Raw:
		return "Raw"
	case NamedRaw:
		return "NamedRaw"
	}
	return fmt.Sprintf("Mode(%d)", int(m))
}

func (m Mode) named() bool { return m == Named || m == NamedRaw }
func (m Mode) raw() bool   { return m == Raw || m == NamedRaw }

// settings are the resolved options of a group of connections: those of one
// listener or one dialed client. They never change and are shared.
type settings struct {
	mode        Mode
	framing     Framing // nil: the default, which has a path without interface calls
	handler     func(*Conn) Handler
	tls         *tls.Config // nil: no TLS
	reuse       bool        // received messages are borrowed
	dials       bool        // the dialing side
	tag         string
	halfOpen    bool
	overflow    OverflowPolicy
	maxMessage  uint64
	streamOver  uint64 // 0: never
	connIn      int64
	connOut     int64
	idleTimeout time.Duration // 0: none
	network     string        // if it is of packets, else ""
}

// packets reports whether each message is a packet; else they are cut from a stream.
func (s *settings) packets() bool { return s.network != "" }

// sessions reports whether the connections are sessions of datagrams, without a
// beginning or end that the system knows of.
func (s *settings) sessions() bool { return s.packets() && s.network != "unixpacket" }

// packetMax is the longest packet of a network, and 0 if it has none.
func packetMax(network string) int {
	switch network {
	case "udp", "udp4", "udp6":
		return packet.MaxUDP
	case "unixgram", "unixpacket":
		return packet.MaxUnix
	}
	return 0
}

// ofPackets makes settings for a network of packets: one packet is one message,
// and what this side keeps between them never leaves it.
func (s *settings) ofPackets(network string) {
	s.network = network
	s.framing = LengthPrefix(packet.HeaderSize, binary.LittleEndian)
	s.maxMessage = min(s.maxMessage, uint64(packetMax(network)))
	s.streamOver = 0
}

// fullRecords is a copy of a TLS configuration whose records are as large as they
// may be from the first on. Small ones are for browsers, which begin to show a
// page before all of it is there; a message is of use as a whole, and each record
// costs the peer a system call or more. And transport.NewTLS relies on a write's
// being one record, also with a configuration that is chosen for the client.
func fullRecords(c *tls.Config) *tls.Config {
	if c == nil {
		return nil
	}
	c = c.Clone()
	c.DynamicRecordSizingDisabled = true
	if choose := c.GetConfigForClient; choose != nil {
		c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			chosen, err := choose(hello)
			if chosen != nil && !chosen.DynamicRecordSizingDisabled {
				chosen = chosen.Clone()
				chosen.DynamicRecordSizingDisabled = true
			}
			return chosen, err
		}
	}
	return c
}

// checkPackets returns an error for what cannot be had with packets.
func checkPackets(options, network string, mode Mode, tls *tls.Config, framing Framing) error {
	switch {
	case mode == Raw || mode == NamedRaw:
		return optionError(options+".Mode", "raw bytes on %s, where a packet is a message", network)
	case mode.named() && network != "unixpacket":
		return optionError(options+".Mode", "names on %s, where anybody can send in another's name", network)
	case tls != nil:
		return optionError(options+".TLS", "set on %s", network)
	case plainFraming(framing) != nil: // the default is what one has without asking
		return optionError(options+".Framing", "set on %s, where a packet is a message", network)
	}
	return nil
}

// header is how the length of a message is written; nil for raw bytes.
func (s *settings) header(raw bool) *outq.Framing {
	switch {
	case raw:
		return nil
	case s.framing == nil:
		return outq.Default
	}
	return &outq.Framing{Append: s.framing.AppendHeader}
}

// or resolves a field of the "zero means default, negative means none" kind;
// none becomes the largest value that an int holds too.
func or(v, def int64) int64 {
	switch {
	case v == 0:
		return def
	case v < 0:
		return math.MaxInt
	}
	return v
}

// streamOver resolves Options.StreamOver, which has no default.
func streamOver(v int64) uint64 {
	return uint64(max(v, 0))
}

// orDuration is or for durations, where 0 in the result means none.
func orDuration(v, def time.Duration) time.Duration {
	switch {
	case v == 0:
		return def
	case v < 0:
		return 0
	}
	return v
}

// orElse returns v, or def if v is the zero value.
func orElse[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// optionError says which field of which options is wrong, and why.
func optionError(field, format string, args ...any) error {
	return fmt.Errorf("sockhub: %s: %w", field, fmt.Errorf(format, args...))
}

func unsupported(field string) error { return optionError(field, "%w", errors.ErrUnsupported) }

// resolve copies o and fills in the defaults.
func (o *Options) resolve() (Options, error) {
	var r Options
	if o != nil {
		r = *o
	}
	if r.Name != "" {
		if err := checkName(r.Name); err != nil {
			return r, err
		}
	}
	switch {
	case r.Unexpected < 0 || r.Unexpected > RefuseUnexpected:
		return r, optionError("Options.Unexpected", "no such policy: %d", r.Unexpected)
	case r.Duplicates < 0 || r.Duplicates > ReplaceOld:
		return r, optionError("Options.Duplicates", "no such policy: %d", r.Duplicates)
	case r.Overflow < 0 || r.Overflow > DisconnectPeer:
		return r, optionError("Options.Overflow", "no such policy: %d", r.Overflow)
	case r.Budget != nil && (r.InboundLimit != 0 || r.OutboundLimit != 0 || r.MemoryLimit != 0):
		return r, optionError("Options.Budget", "set beside InboundLimit, OutboundLimit or MemoryLimit, which it replaces")
	}
	r.Unexpected = orElse(r.Unexpected, HoldUnexpected)
	r.Duplicates = orElse(r.Duplicates, RefuseNew)
	r.Overflow = orElse(r.Overflow, BlockSender)
	r.MaxConns = int(or(int64(r.MaxConns), int64(defaultMaxConns())))
	r.MaxPending = int(or(int64(r.MaxPending), DefaultMaxPending))
	r.MaxPendingPerSource = int(or(int64(r.MaxPendingPerSource), DefaultMaxPendingPerSource))
	r.MaxMessage = or(r.MaxMessage, DefaultMaxMessage)
	r.ConnInbound = or(r.ConnInbound, DefaultConnInbound)
	r.ConnOutbound = or(r.ConnOutbound, DefaultConnOutbound)
	r.HandshakeTimeout = orDuration(r.HandshakeTimeout, DefaultHandshakeTimeout)
	r.FrameTimeout = orDuration(r.FrameTimeout, DefaultFrameTimeout)
	r.WriteTimeout = orDuration(r.WriteTimeout, DefaultWriteTimeout)
	r.Linger = orDuration(r.Linger, DefaultLinger)
	return r, nil
}

// resolve copies o, fills in the defaults and makes the settings of the
// connections that a listener with these options accepts.
func (o *ListenOptions) resolve(hub *Options, network string) (ListenOptions, *settings, error) {
	var r ListenOptions
	if o != nil {
		r = *o
	}
	switch {
	case r.Mode < 0 || r.Mode > NamedRaw:
		return r, nil, optionError("ListenOptions.Mode", "no such mode: %d", r.Mode)
	case r.Overflow < 0 || r.Overflow > DisconnectPeer:
		return r, nil, optionError("ListenOptions.Overflow", "no such policy: %d", r.Overflow)
	case r.FileMode != r.FileMode.Perm():
		return r, nil, optionError("ListenOptions.FileMode", "%v has more than permissions", r.FileMode)
	case slices.ContainsFunc(r.ProxyFrom, func(p netip.Prefix) bool { return !p.IsValid() }):
		return r, nil, optionError("ListenOptions.ProxyFrom", "an invalid prefix among %v", r.ProxyFrom)
	}
	if err := checkFraming("ListenOptions.Framing", r.Framing); err != nil {
		return r, nil, err
	}
	if isUnixNetwork(network) && len(r.ProxyFrom) > 0 {
		return r, nil, optionError("ListenOptions.ProxyFrom", "set on %s, where nobody has an address", network)
	}
	packets := packetMax(network) > 0
	if packets {
		r.Mode = orElse(r.Mode, Anonymous)
		if err := checkPackets("ListenOptions", network, r.Mode, r.TLS, r.Framing); err != nil {
			return r, nil, err
		}
		switch {
		case r.Classify != nil:
			return r, nil, optionError("ListenOptions.Classify", "set on %s", network)
		case len(r.ProxyFrom) > 0:
			return r, nil, optionError("ListenOptions.ProxyFrom", "set on %s", network)
		case r.StreamOver > 0:
			return r, nil, optionError("ListenOptions.StreamOver", "set on %s", network)
		}
		if network != "unixpacket" {
			r.MaxConns = orElse(r.MaxConns, DefaultMaxSessions)
			if hub.IdleTimeout == 0 { // not "none", which is less
				r.IdleTimeout = orElse(r.IdleTimeout, DefaultSessionIdle)
			}
		}
	}
	if c := r.TLS; c != nil && len(c.Certificates) == 0 && c.GetCertificate == nil && c.GetConfigForClient == nil {
		// As tls.Listen does: every handshake would fail, and only the Logger know why.
		return r, nil, optionError("ListenOptions.TLS", "neither Certificates, GetCertificate, nor GetConfigForClient is set")
	}
	r.Mode = orElse(r.Mode, Named)
	r.MaxConns = int(or(int64(r.MaxConns), math.MaxInt))
	set := &settings{
		mode:        r.Mode,
		framing:     plainFraming(r.Framing),
		handler:     r.Handler,
		tls:         fullRecords(r.TLS),
		reuse:       r.ReuseBuffers || hub.ReuseBuffers,
		tag:         r.Tag,
		halfOpen:    r.HalfOpen,
		overflow:    orElse(r.Overflow, hub.Overflow),
		maxMessage:  uint64(or(r.MaxMessage, hub.MaxMessage)),
		streamOver:  streamOver(orElse(r.StreamOver, hub.StreamOver)),
		connIn:      or(r.ConnInbound, hub.ConnInbound),
		connOut:     or(r.ConnOutbound, hub.ConnOutbound),
		idleTimeout: max(0, orDuration(r.IdleTimeout, hub.IdleTimeout)),
	}
	if packets {
		set.ofPackets(network)
	}
	return r, set, nil
}

// resolve copies o, fills in the defaults and makes the settings of the
// connections that are dialed with these options.
func (o *DialOptions) resolve(hub *Options, network string) (DialOptions, *settings, error) {
	var r DialOptions
	if o != nil {
		r = *o
	}
	switch {
	case r.Mode < 0 || r.Mode > NamedRaw:
		return r, nil, optionError("DialOptions.Mode", "no such mode: %d", r.Mode)
	}
	if r.Reconnect != nil {
		b, err := r.Reconnect.resolve()
		if err != nil {
			return r, nil, err
		}
		r.Reconnect = b
	}
	if err := checkFraming("DialOptions.Framing", r.Framing); err != nil {
		return r, nil, err
	}
	packets := packetMax(network) > 0
	if packets {
		r.Mode = orElse(r.Mode, Anonymous)
		if err := checkPackets("DialOptions", network, r.Mode, r.TLS, r.Framing); err != nil {
			return r, nil, err
		}
	}
	if r.Dialer != nil {
		d := *r.Dialer
		r.Dialer = &d
	}
	r.Mode = orElse(r.Mode, Named)
	r.Name = orElse(r.Name, hub.Name)
	if r.Mode.named() {
		if err := checkName(r.Name); err != nil {
			return r, nil, err
		}
	}
	r.Timeout = orDuration(r.Timeout, DefaultDialTimeout)
	set := &settings{
		mode:        r.Mode,
		framing:     plainFraming(r.Framing),
		handler:     r.Handler,
		tls:         fullRecords(r.TLS),
		reuse:       r.ReuseBuffers || hub.ReuseBuffers,
		dials:       true,
		tag:         r.Tag,
		halfOpen:    r.HalfOpen,
		overflow:    hub.Overflow,
		maxMessage:  uint64(hub.MaxMessage),
		streamOver:  streamOver(hub.StreamOver),
		connIn:      hub.ConnInbound,
		connOut:     hub.ConnOutbound,
		idleTimeout: max(0, hub.IdleTimeout),
	}
	if packets {
		set.ofPackets(network)
	}
	return r, set, nil
}

// resolve copies o.
func (o *ClientOptions) resolve() (*ClientOptions, error) {
	var r ClientOptions
	if o != nil {
		r = *o
	}
	switch {
	case r.Duplicates < 0 || r.Duplicates > ReplaceOld:
		return nil, optionError("ClientOptions.Duplicates", "no such policy: %d", r.Duplicates)
	case r.Overflow < 0 || r.Overflow > DisconnectPeer:
		return nil, optionError("ClientOptions.Overflow", "no such policy: %d", r.Overflow)
	}
	return &r, nil
}

// resolve copies b and fills in the defaults.
func (b *Backoff) resolve() (*Backoff, error) {
	r := *b
	switch {
	case r.Min < 0 || r.Max < 0:
		return nil, optionError("Backoff", "negative wait")
	case r.Factor != 0 && !(r.Factor >= 1 && r.Factor <= math.MaxFloat32):
		return nil, optionError("Backoff.Factor", "%v is less than 1 or not a number", r.Factor)
	case !(r.Jitter <= 1):
		return nil, optionError("Backoff.Jitter", "%v is more than 1 or not a number", r.Jitter)
	}
	r.Min = orElse(r.Min, DefaultBackoffMin)
	r.Max = orElse(r.Max, max(r.Min, DefaultBackoffMax))
	if r.Max < r.Min {
		return nil, optionError("Backoff.Max", "%v is less than Min, %v", r.Max, r.Min)
	}
	r.Factor = orElse(r.Factor, DefaultBackoffFactor)
	r.Jitter = max(0, orElse(r.Jitter, DefaultBackoffJitter))
	return &r, nil
}

// next is the wait after one of the given length, 0 for the first, without
// jitter.
func (b *Backoff) next(wait time.Duration) time.Duration {
	return max(b.Min, time.Duration(min(float64(wait)*b.Factor, float64(b.Max))))
}

// vary applies the jitter.
func (b *Backoff) vary(wait time.Duration) time.Duration {
	const most = 1 << 62 // nanoseconds: more than a century, and a Duration
	return time.Duration(min(float64(wait)*(1+b.Jitter*(2*rand.Float64()-1)), most))
}

// checkFraming refuses a framing whose header has no sensible size.
func checkFraming(field string, f Framing) error {
	if f == nil {
		return nil
	}
	if n := f.MaxHeader(); n < 1 || n > maxHeader {
		return optionError(field, "%T.MaxHeader is %d, not 1 to %d", f, n, maxHeader)
	}
	return nil
}

// checkName refuses what is no name.
func checkName(name string) error {
	if name == "" {
		return fmt.Errorf("%w: it is empty", ErrBadName)
	}
	if len(name) > MaxNameLen {
		return fmt.Errorf("%w: %d bytes, not 1 to %d", ErrBadName, len(name), MaxNameLen)
	}
	return nil
}

// defaultMaxConns is the default of Options.MaxConns: some descriptors stay
// free, for the program's files and for telling a peer that there are too many.
func defaultMaxConns() int {
	n := nofile.Limit()
	return max(1, min(maxConnsCeiling, n-max(8, n/16)))
}
