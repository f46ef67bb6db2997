package sockhub

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
)

// A Rule decides whether a peer may connect: nil means yes, an error means no
// and says why. A nil Rule admits everybody.
//
// A rule runs once per connection, after TLS and after the peer gave its name,
// and before the peer hears OK. It may run on several goroutines at once and
// must not change what p points to. It may call [Hub.Expect] for the peer's name,
// so that the peer is in Connected and not in Unknown.
//
// The peer learns nothing of the error: every refusal is the same plain close. The
// error goes to the Logger, wrapped in an [*AdmissionError].
//
// What a rule of this package cannot evaluate (no credentials, no verified
// certificate, no IP address) it denies.
type Rule func(p Peer) error

// Peer is who is at the other end of a connection, as far as it is known. It
// is a value: copies are independent, but share what the pointers point to,
// which nobody changes.
type Peer struct {
	Network string // as given to Listen or Dial: "tcp", "unix", ...
	Tag     string // of the listener, or of the DialOptions
	Name    string // what the peer calls itself, "" while or if unknown; not proof of anything by itself

	// Local and Remote are never nil in a Peer that the package made. They
	// are what the connection says, unchanged: an IPv4 peer of a dual-stack
	// listener may look like ::ffff:10.0.0.7 here. Decide on AddrPort. Of a
	// connection through one of ListenOptions.ProxyFrom, Remote is the client
	// as the proxy tells it, and Local our end of the proxy's connection.
	Local, Remote net.Addr

	// AddrPort is Remote in the one form that rules see: an IPv4-mapped IPv6
	// address is IPv4, and there is no zone. It is the zero AddrPort if the
	// peer has no IP address, as on a Unix socket, whatever name the peer
	// bound its end to. Addresses that embed an IPv4 address in another way
	// (NAT64's 64:ff9b::/96, 6to4) stay IPv6: a user of such a translator does
	// not own the address inside.
	AddrPort netip.AddrPort

	Cred   *Cred                // of a Unix peer's process when it connected; nil where the system cannot tell
	TLS    *tls.ConnectionState // nil without ListenOptions.TLS or DialOptions.TLS, so also where a tls.Listener was given to Serve
	Dialed bool                 // we dialed it
}

// Cred is what the kernel says about the process at the other end of a Unix
// socket, at the moment it connected. A process that inherited or was handed
// the descriptor since is not seen.
type Cred struct {
	PID      int    // 0 where the system does not tell. The number may have a new owner by now
	UID, GID uint32 // effective; an id that has no meaning in our user namespace shows as the overflow id, 65534
}

// newPeer returns a Peer with its addresses filled in and normalised. It is
// the only place where that happens, so no rule can meet an address in its
// second form. Nil addresses are replaced, since a net.Conn of somebody
// else's making may return them.
func newPeer(network string, local, remote net.Addr) Peer {
	if isNilAddr(local) {
		local = noAddr(network)
	}
	if isNilAddr(remote) {
		remote = noAddr(network)
	}
	p := Peer{Network: network, Local: local, Remote: remote}
	if !isUnixNetwork(network) {
		p.AddrPort = addrPortOf(remote)
	}
	return p
}

// String returns the peer as messages show it: its name, if it has one, and
// where it comes from, as in "alice" from 10.0.0.7:5123; else the address alone.
// What the peer chose itself is quoted, so that it cannot forge a line of a log.
func (p Peer) String() string {
	var b strings.Builder
	where := ""
	if p.Name != "" {
		b.WriteString(strconv.Quote(p.Name))
		b.WriteByte(' ')
		where = "from "
		if p.Dialed {
			where = "at "
		}
	}
	switch ap := p.remote(); {
	case ap.IsValid():
		b.WriteString(where)
		b.WriteString(ap.String())
	case p.unix():
		// A client's end mostly has no name; then the listener's says more.
		if name := addrText(p.Remote); name != "" && name != "@" {
			fmt.Fprintf(&b, "%sUnix socket %q", where, name)
		} else {
			fmt.Fprintf(&b, "on Unix socket %q", addrText(p.Local))
		}
	default:
		fmt.Fprintf(&b, "%s%q", where, addrText(p.Remote))
	}
	if p.Cred != nil {
		fmt.Fprintf(&b, " (uid %d, gid %d, pid %d)", p.Cred.UID, p.Cred.GID, p.Cred.PID)
	}
	return b.String()
}

// LogValue implements slog.LogValuer: what String says.
func (p Peer) LogValue() slog.Value { return slog.StringValue(p.String()) }

// remote is the peer's address, normalised again: a Peer need not come from
// newPeer (users write tests for their rules), and the cost is nothing beside
// that of a connection.
func (p Peer) remote() netip.AddrPort {
	if p.AddrPort.IsValid() {
		return netip.AddrPortFrom(plainAddr(p.AddrPort.Addr()), p.AddrPort.Port())
	}
	if p.unix() {
		return netip.AddrPort{}
	}
	return addrPortOf(p.Remote)
}

// unix reports whether the peer is at the other end of a Unix socket.
func (p Peer) unix() bool {
	if p.Network != "" {
		return isUnixNetwork(p.Network)
	}
	return !isNilAddr(p.Local) && isUnixNetwork(p.Local.Network())
}

// An AdmissionError says which peer was not admitted, and why: Err is the
// answer of the rule that denied.
type AdmissionError struct {
	Peer Peer  // as the rule saw it
	Err  error // why
}

// Error returns one line with the peer and the reason.
func (e *AdmissionError) Error() string {
	s := "sockhub: peer " + e.Peer.String() + " not admitted"
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns Err.
func (e *AdmissionError) Unwrap() error { return e.Err }

// admit asks the rules in order and returns the first denial as an
// *AdmissionError, or nil. A rule that panics denies, with a *PanicError: it
// runs on a goroutine of the hub, and one peer that a user's rule did not
// foresee must not take the others down.
func admit(p Peer, rules ...Rule) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &AdmissionError{Peer: p, Err: &PanicError{Value: v, Stack: debug.Stack()}}
		}
	}()
	if err := All(rules...)(p); err != nil {
		return &AdmissionError{Peer: p, Err: err}
	}
	return nil
}

// Unix admits peers on Unix sockets, with a path or an abstract name. What
// guards a path is its file mode; an abstract name has none, so combine it
// with UID or GID.
func Unix() Rule {
	return func(p Peer) error {
		if !p.unix() {
			return errors.New("not on a Unix socket")
		}
		return nil
	}
}

// Loopback admits IP peers that are on this machine: both ends of the
// connection have loopback addresses. The remote end alone would not do, since
// a router or a namespace set up carelessly can deliver packets from 127.0.0.1
// to an outer address. A Unix socket has no IP address and is denied: write
// Any(Loopback(), Unix()) for everything local.
func Loopback() Rule {
	return func(p Peer) error {
		remote := p.remote().Addr()
		if !remote.IsValid() {
			return errNoAddr
		}
		if !remote.IsLoopback() {
			return fmt.Errorf("address %v is not loopback", remote)
		}
		local := addrPortOf(p.Local).Addr()
		if !local.IsValid() {
			return errors.New("our end has no IP address")
		}
		if !local.IsLoopback() {
			return fmt.Errorf("address %v is loopback, but our end %v is not", remote, local)
		}
		return nil
	}
}

// CIDR admits peers whose IP address lies in one of the prefixes. Without
// prefixes it admits nobody.
//
// Addresses are compared in the form of Peer.AddrPort, and a prefix of
// IPv4-mapped IPv6 (::ffff:10.0.0.0/104) means the IPv4 prefix it maps
// (10.0.0.0/8). The families are apart: 0.0.0.0/0 holds no IPv6 address, ::/0
// no IPv4 address however it arrived, and 10.0.0.0/8 does not hold
// 64:ff9b::10.0.0.1. Bits below the prefix length are ignored, an invalid
// Prefix holds nothing.
func CIDR(prefixes ...netip.Prefix) Rule {
	prefixes = slices.Clone(prefixes)
	for i, f := range prefixes {
		// With fewer bits than 96 it is a range of IPv6 that happens to be
		// written with a mapped address, and stays one.
		if f.Addr().Is4In6() && f.Bits() >= 96 {
			f = netip.PrefixFrom(f.Addr().Unmap(), f.Bits()-96)
		}
		prefixes[i] = f.Masked()
	}
	return func(p Peer) error {
		addr := p.remote().Addr()
		if !addr.IsValid() {
			return errNoAddr
		}
		for _, f := range prefixes {
			if f.Contains(addr) {
				return nil
			}
		}
		return notListed(fmt.Sprintf("address %v is in", addr), prefixes)
	}
}

// UID admits Unix peers whose process had one of these effective user ids when
// it connected. Where the system does not tell, nobody is admitted. Do not list
// the overflow id 65534: every user of a foreign user namespace may show as it.
func UID(uids ...uint32) Rule {
	uids = slices.Clone(uids)
	return func(p Peer) error {
		if p.Cred == nil {
			return errNoCred
		}
		if !slices.Contains(uids, p.Cred.UID) {
			return notListed(fmt.Sprintf("uid %d is", p.Cred.UID), uids)
		}
		return nil
	}
}

// GID is like UID for the effective group id. Supplementary groups do not
// count: not every system tells them, and a membership taken away stays in
// processes that run.
func GID(gids ...uint32) Rule {
	gids = slices.Clone(gids)
	return func(p Peer) error {
		if p.Cred == nil {
			return errNoCred
		}
		if !slices.Contains(gids, p.Cred.GID) {
			return notListed(fmt.Sprintf("gid %d is", p.Cred.GID), gids)
		}
		return nil
	}
}

// TLSName admits peers whose verified certificate carries one of the names.
// Verified means that crypto/tls built a chain, which a listener must ask for
// with tls.Config.ClientAuth (and ClientCAs).
//
// A name with a colon is a URI (spiffe://prod.example/worker) and is compared,
// exactly, with the URIs of the leaf, as net/url writes them. Any other is a
// DNS name and is compared with its DNS names, without regard to the case of
// ASCII letters. The common name, IP addresses and mail addresses of the leaf
// are not looked at: anybody's text may stand in a common name.
//
// The rule func(p Peer) error { return TLSName(p.Name)(p) } admits a peer under the
// names of its certificate alone. But names of peers differ by case: with a
// certificate for alice, ALICE is another name.
//
// Wildcards do not match anything but themselves, on neither side. A server's
// certificate for *.example.com says that it may answer for all those names;
// as the answer to who a peer is, it would let the holder of one wildcard pass
// for every single name.
func TLSName(names ...string) Rule {
	names = slices.Clone(names)
	return func(p Peer) error {
		if p.TLS == nil {
			return errors.New("no TLS")
		}
		if len(p.TLS.VerifiedChains) == 0 || len(p.TLS.VerifiedChains[0]) == 0 {
			return errors.New("no verified certificate")
		}
		leaf := p.TLS.VerifiedChains[0][0] // every chain begins with the same leaf
		has := make([]string, 0, len(leaf.DNSNames)+len(leaf.URIs))
		for _, dns := range leaf.DNSNames {
			for _, name := range names {
				if name != "" && !strings.Contains(name, ":") && equalASCIIFold(dns, name) {
					return nil
				}
			}
			has = append(has, strconv.Quote(dns))
		}
		for _, u := range leaf.URIs {
			uri := u.String()
			if strings.Contains(uri, ":") && slices.Contains(names, uri) {
				return nil
			}
			has = append(has, strconv.Quote(uri))
		}
		if len(has) == 0 {
			return errors.New("the certificate has no DNS name and no URI")
		}
		return notListed("the certificate is for "+listText(has)+",", quotedAll(names))
	}
}

// Tag admits peers of the listeners that have one of these tags
// (ListenOptions.Tag). With it, the rule of a name can say through which
// listener the name may come in.
func Tag(tags ...string) Rule {
	tags = slices.Clone(tags)
	return func(p Peer) error {
		if !slices.Contains(tags, p.Tag) {
			return notListed(fmt.Sprintf("tag %q is", p.Tag), quotedAll(tags))
		}
		return nil
	}
}

// Any admits a peer that one of the rules admits; they are asked in order until then.
// Any() of nothing admits nobody, as an empty sum is 0. A nil rule admits, here
// as everywhere.
func Any(rules ...Rule) Rule {
	rules = slices.Clone(rules)
	return func(p Peer) error {
		if len(rules) == 0 {
			return errors.New("there is no rule that could admit")
		}
		denials := make(anyError, 0, len(rules))
		for _, r := range rules {
			if r == nil {
				return nil
			}
			err := r(p)
			if err == nil {
				return nil
			}
			denials = append(denials, err)
		}
		if len(denials) == 1 {
			return denials[0]
		}
		return denials
	}
}

// All admits a peer that every rule admits; they are asked in order until one denies.
// All() of nothing admits everybody, as an empty product is 1. A nil rule
// admits.
func All(rules ...Rule) Rule {
	rules = slices.Clone(rules)
	return func(p Peer) error {
		for _, r := range rules {
			if r == nil {
				continue
			}
			if err := r(p); err != nil {
				return err
			}
		}
		return nil
	}
}

// Nobody admits nobody: for a name that is registered to be kept from use.
func Nobody() Rule {
	return func(Peer) error { return errors.New("nobody is admitted") }
}

// UnexpectedPolicy says what happens to a peer whose name nobody registered
// with Expect. Zero means HoldUnexpected. It holds for the whole hub: what differs
// between listeners is for their rules.
type UnexpectedPolicy int

// The values of UnexpectedPolicy.
const (
	HoldUnexpected   UnexpectedPolicy = iota + 1 // default: a full connection, in Batch.Unknown with its name, adopted by a later Expect
	RefuseUnexpected                             // closed before OK
)

// String returns the constant's name, or "inherit" for zero, which is the default.
func (u UnexpectedPolicy) String() string {
	return policyName("UnexpectedPolicy", int(u), "HoldUnexpected", "RefuseUnexpected")
}

// DuplicatePolicy says what happens when a peer claims a name whose owner is
// connected. Zero inherits: a client's from the hub, and there RefuseNew.
//
// With RefuseNew, a peer that comes back after its network has failed is refused until
// its old connection is found to be dead: after some 30 s by the keep-alive of TCP, or by
// IdleTimeout. With ReplaceOld it gets in. But the peer that is replaced sees a plain
// close, and if it dials again, it replaces the other in turn: two programs that run
// with one name do so for ever. Of those that come faster than Disconnected is taken, all
// hear OK, and only the last is reported. A peer that has connected before the owner, and
// has finished sending by the time that its name is read, does not replace it: it may have
// come back as that.
//
// If the owner's connection is about to end, since its peer has finished, and only its
// Ended was not taken or the rest of its output not written, RefuseNew makes the new
// one wait for that, for HandshakeTimeout at most; and ReplaceOld does so, for half of it
// (2.5 s, if it is none), until all that the peer had sent before was read. (That its peer has finished is known of
// package net's connections at once, and of others when they were read to that.)
type DuplicatePolicy int

// The values of DuplicatePolicy.
const (
	RefuseNew  DuplicatePolicy = iota + 1 // default: the second is closed before OK
	ReplaceOld                            // the first ends, on this side with ErrReplaced
)

// String returns the constant's name, or "inherit" for zero.
func (d DuplicatePolicy) String() string {
	return policyName("DuplicatePolicy", int(d), "RefuseNew", "ReplaceOld")
}

// OverflowPolicy says what happens to a message when the queue of its
// connection is full. Zero inherits: a client's from its listener, that from
// the hub, and there BlockSender. Reply.Send never blocks, whatever the policy.
//
// A full queue does not prove that its peer is slow. A loop over Events that
// answers a batch, or passes it on, can queue ConnInbound at a time: with a
// ConnOutbound below that, the policy meets peers that read, too, and under
// DisconnectPeer they are gone.
//
// Where OutboundLimit has no room, and not this queue, DisconnectPeer acts as
// BlockSender, since the peer is not to blame.
type OverflowPolicy int

// The values of OverflowPolicy.
const (
	BlockSender    OverflowPolicy = iota + 1 // default: Send waits until there is room or its ctx ends
	DropNewest                               // Send refuses with ErrBackpressure
	DropOldest                               // what waited longest is dropped, and counted in the Report
	DisconnectPeer                           // the connection ends with ErrSlowPeer; see above which peers that can meet
)

// String returns the constant's name, or "inherit" for zero.
func (o OverflowPolicy) String() string {
	return policyName("OverflowPolicy", int(o), "BlockSender", "DropNewest", "DropOldest", "DisconnectPeer")
}

func policyName(typ string, v int, names ...string) string {
	switch {
	case v == 0:
		return "inherit"
	case v > 0 && v <= len(names):
		return names[v-1]
	default:
		return typ + "(" + strconv.Itoa(v) + ")"
	}
}

var (
	errNoAddr = errors.New("the peer has no IP address")
	errNoCred = errors.New("no peer credentials")
)

// anyError holds the denials of all alternatives of an Any.
type anyError []error

func (e anyError) Error() string {
	parts := make([]string, len(e))
	for i, err := range e {
		parts[i] = err.Error()
	}
	return "no rule of " + strconv.Itoa(len(e)) + " admits: " + strings.Join(parts, "; ")
}

func (e anyError) Unwrap() []error { return e }

// notListed returns the denial "<what> none of <list>". It is built when a
// peer is denied, not when the rule is, so that admission costs nothing.
func notListed[T any](what string, list []T) error {
	if len(list) == 0 {
		return errors.New(what + " none of an empty list")
	}
	return errors.New(what + " none of " + listText(list))
}

// listText joins what is in a list, but no more than a line should hold: a
// rule may have thousands of prefixes, a certificate hundreds of names.
func listText[T any](list []T) string {
	const most = 8
	var b strings.Builder
	for i, v := range list[:min(len(list), most)] {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprint(&b, v)
	}
	if more := len(list) - most; more > 0 {
		fmt.Fprintf(&b, " and %d more", more)
	}
	return b.String()
}

func quotedAll(list []string) []string {
	q := make([]string, len(list))
	for i, s := range list {
		q[i] = strconv.Quote(s)
	}
	return q
}

// equalASCIIFold compares DNS names. strings.EqualFold would do too much: it
// takes the Kelvin sign for a k.
func equalASCIIFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	lower := func(c byte) byte {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		return c
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

// addrPortOf returns a's IP address and port in normal form, or the zero
// AddrPort if it has none. Addresses of types that it does not know are
// parsed, since listeners and connections may be somebody else's.
func addrPortOf(a net.Addr) netip.AddrPort {
	if isNilAddr(a) {
		return netip.AddrPort{}
	}
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case *net.UDPAddr:
		ap = a.AddrPort()
	default:
		// The name of a Unix socket is its owner's choice: a client may
		// bind its end to a file called 127.0.0.1:80.
		if isUnixNetwork(a.Network()) {
			return netip.AddrPort{}
		}
		ap, _ = netip.ParseAddrPort(a.String()) // zero if it is something else
	}
	if !ap.IsValid() {
		return netip.AddrPort{} // a port alone
	}
	return netip.AddrPortFrom(plainAddr(ap.Addr()), ap.Port())
}

// plainAddr is the form of an address that rules see: IPv4 wherever it is an IPv4
// address in disguise, and without the zone, which is the name of one of our
// own interfaces and would keep fe80::1%eth0 out of fe80::/10 (netip.Prefix
// holds no address with a zone).
func plainAddr(a netip.Addr) netip.Addr { return a.WithZone("").Unmap() }

func isUnixNetwork(network string) bool {
	switch network {
	case "unix", "unixgram", "unixpacket":
		return true
	}
	return false
}

// isNilAddr reports whether a is nil, or an interface that holds a nil pointer:
// a struct of somebody's own net.Conn that was never filled in. Most methods
// would panic on it.
func isNilAddr(a net.Addr) bool {
	if a == nil {
		return true
	}
	v := reflect.ValueOf(a)
	return v.Kind() == reflect.Pointer && v.IsNil()
}

// networkOf is the network of an address, or "" if there is none.
func networkOf(a net.Addr) string {
	if isNilAddr(a) {
		return ""
	}
	return a.Network()
}

func addrText(a net.Addr) string {
	if isNilAddr(a) {
		return ""
	}
	return a.String()
}

// noAddr stands for an address that a connection did not tell. It holds the
// network.
type noAddr string

func (n noAddr) Network() string { return string(n) }
func (noAddr) String() string    { return "unknown" }
