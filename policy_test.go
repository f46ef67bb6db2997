package sockhub

// Rules, and what a Peer is.

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// anyText, as a wanted denial, stands for any text.
const anyText = "*"

func mustPrefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// tcpPeer makes a peer as an accepted TCP connection does. A mapped address stays
// one on its way into newPeer: net.IP of 16 bytes.
func tcpPeer(local, remote string) Peer {
	return newPeer("tcp", tcpAddr(local), tcpAddr(remote))
}

func tcpAddr(s string) *net.TCPAddr {
	ap := netip.MustParseAddrPort(s)
	ip := ap.Addr().As16()
	if ap.Addr().Is4() {
		return net.TCPAddrFromAddrPort(ap)
	}
	return &net.TCPAddr{IP: ip[:], Port: int(ap.Port()), Zone: ap.Addr().Zone()}
}

func peerFrom(remote string) Peer { return tcpPeer("192.0.2.1:1", remote) }

func unixPeer(local, remote string, c *Cred) Peer {
	p := newPeer("unix", &net.UnixAddr{Name: local, Net: "unix"}, &net.UnixAddr{Name: remote, Net: "unix"})
	p.Cred = c
	return p
}

// textAddr is an address of somebody else's net.Conn.
type textAddr struct{ network, text string }

func (a textAddr) Network() string { return a.network }
func (a textAddr) String() string  { return a.text }

type ptrAddr struct{ text string }

func (a *ptrAddr) Network() string { return "x" }
func (a *ptrAddr) String() string  { return a.text }

func TestRulesAdmitAndDeny(t *testing.T) {
	yes := Rule(func(Peer) error { return nil })
	no := func(s string) Rule { return func(Peer) error { return errors.New(s) } }
	custom := func(local, remote string) Peer {
		return newPeer("tcp", textAddr{"tcp", local}, textAddr{"tcp", remote})
	}
	cred := func(uid, gid uint32) Peer { return unixPeer("/run/a.sock", "", &Cred{PID: 7, UID: uid, GID: gid}) }
	tagged := func(tag string) Peer { p := peerFrom("10.0.0.7:1"); p.Tag = tag; return p }

	type ask struct {
		peer Peer
		want string // the denial, "" if admitted
	}
	for _, group := range []struct {
		name string
		rule Rule
		asks []ask
	}{
		{"CIDR of IPv4", CIDR(mustPrefixes("10.0.0.0/8", "192.168.1.0/24")...), []ask{
			{peerFrom("10.0.0.7:5123"), ""},
			{peerFrom("10.255.255.255:1"), ""},
			{peerFrom("10.0.0.0:1"), ""},
			{peerFrom("192.168.1.200:1"), ""},
			{peerFrom("192.168.2.1:1"), "address 192.168.2.1 is in none of 10.0.0.0/8, 192.168.1.0/24"},
			{peerFrom("9.255.255.255:1"), anyText},
			{peerFrom("11.0.0.0:1"), anyText},
			{peerFrom("[::ffff:10.0.0.7]:1"), ""},
			{peerFrom("[::ffff:0a00:0007]:1"), ""},
			{peerFrom("[::ffff:11.0.0.7]:1"), "address 11.0.0.7 is in none of 10.0.0.0/8, 192.168.1.0/24"},
			{peerFrom("[::ffff:10.0.0.7%eth0]:1"), ""},
			{peerFrom("[64:ff9b::10.0.0.7]:1"), "address 64:ff9b::a00:7 is in none of 10.0.0.0/8, 192.168.1.0/24"},
			{peerFrom("[::10.0.0.7]:1"), anyText},        // IPv4-compatible, deprecated
			{peerFrom("[2002:0a00:0007::1]:1"), anyText}, // 6to4
			{peerFrom("[::ffff:0:10.0.0.7]:1"), anyText}, // SIIT: one group beside the mapped range
			{peerFrom("[2001:0:a00:7::1]:1"), anyText},   // Teredo
			{unixPeer("/run/a", "", nil), errNoAddr.Error()},
			{unixPeer("@a", "10.0.0.7:80", nil), errNoAddr.Error()},
			{custom("10.0.0.1:1", "10.0.0.7:1"), ""},
			{custom("10.0.0.1:1", "[::ffff:10.0.0.7]:1"), ""},
			{custom("10.0.0.1:1", "10.0.0.7"), errNoAddr.Error()}, // no port: not an address that we know how to read
			{custom("10.0.0.1:1", "010.0.0.7:1"), errNoAddr.Error()},
			{custom("10.0.0.1:1", "10.0.0.7:http"), errNoAddr.Error()},
			{custom("10.0.0.1:1", "host.example:1"), errNoAddr.Error()},
			{custom("10.0.0.1:1", ""), errNoAddr.Error()},
			{newPeer("tcp", nil, nil), errNoAddr.Error()},
			{newPeer("udp", nil, &net.UDPAddr{IP: net.IPv4(10, 1, 1, 1), Port: 5}), ""},
			{newPeer("udp", nil, &net.UDPAddr{Port: 5}), errNoAddr.Error()},
			{newPeer("ip", nil, &net.IPAddr{IP: net.IPv4(10, 1, 1, 1)}), errNoAddr.Error()},
			{newPeer("unix", nil, textAddr{"tcp", "10.0.0.7:1"}), errNoAddr.Error()},
			{newPeer("tcp", nil, textAddr{"unix", "10.0.0.7:1"}), errNoAddr.Error()},
			{Peer{}, errNoAddr.Error()},
			{Peer{AddrPort: netip.MustParseAddrPort("10.0.0.7:1")}, ""},
			{Peer{AddrPort: netip.MustParseAddrPort("[::ffff:10.0.0.7]:1")}, ""},
			{Peer{AddrPort: netip.MustParseAddrPort("[::ffff:10.0.0.7%a]:1")}, ""},
			{Peer{Remote: tcpAddr("10.0.0.7:1")}, ""},
			{Peer{Remote: (*net.TCPAddr)(nil)}, errNoAddr.Error()},
			{Peer{Network: "unix", Remote: tcpAddr("10.0.0.7:1")}, errNoAddr.Error()},
		}},
		{"CIDR of one address", CIDR(mustPrefixes("10.0.0.7/32")...), []ask{
			{peerFrom("10.0.0.7:65535"), ""},
			{peerFrom("10.0.0.6:1"), anyText},
			{peerFrom("[::ffff:10.0.0.7]:1"), ""},
		}},
		{"CIDR with bits set below the length", CIDR(netip.MustParsePrefix("10.9.8.7/8")), []ask{
			{peerFrom("10.0.0.7:1"), ""},
			{peerFrom("11.0.0.7:1"), "address 11.0.0.7 is in none of 10.0.0.0/8"},
		}},
		{"CIDR given as mapped", CIDR(mustPrefixes("::ffff:10.0.0.0/104", "::ffff:192.168.1.1/128")...), []ask{
			{peerFrom("10.0.0.7:1"), ""},
			{peerFrom("[::ffff:10.0.0.7]:1"), ""},
			{peerFrom("192.168.1.1:1"), ""},
			{peerFrom("192.168.1.2:1"), "address 192.168.1.2 is in none of 10.0.0.0/8, 192.168.1.1/32"},
			{peerFrom("[64:ff9b::a00:7]:1"), anyText},
		}},
		{"CIDR of all mapped", CIDR(mustPrefixes("::ffff:0:0/96")...), []ask{
			{peerFrom("203.0.113.9:1"), ""},
			{peerFrom("[2001:db8::1]:1"), "address 2001:db8::1 is in none of 0.0.0.0/0"},
		}},
		{"CIDR wider than mapped", CIDR(mustPrefixes("::ffff:0:0/90")...), []ask{
			{peerFrom("10.0.0.7:1"), anyText},
			{peerFrom("[::fffe:0:1]:1"), ""},
		}},
		{"CIDR of all IPv6", CIDR(mustPrefixes("::/0")...), []ask{
			{peerFrom("[2001:db8::1]:1"), ""},
			{peerFrom("[64:ff9b::10.0.0.7]:1"), ""},
			{peerFrom("10.0.0.7:1"), "address 10.0.0.7 is in none of ::/0"},
			{peerFrom("[::ffff:10.0.0.7]:1"), anyText},
		}},
		{"CIDR of all IPv4", CIDR(mustPrefixes("0.0.0.0/0")...), []ask{
			{peerFrom("10.0.0.7:1"), ""},
			{peerFrom("[::ffff:10.0.0.7]:1"), ""},
			{peerFrom("[::1]:1"), anyText},
		}},
		{"CIDR of link-local", CIDR(mustPrefixes("fe80::/10")...), []ask{
			{peerFrom("[fe80::1%eth0]:1"), ""},
			{peerFrom("[fe80::1%2]:1"), ""},
			{peerFrom("[fe80::1]:1"), ""},
			{peerFrom("[fec0::1%eth0]:1"), "address fec0::1 is in none of fe80::/10"},
			{custom("[::1]:1", "[fe80::1%en0]:1"), ""},
			{Peer{AddrPort: netip.MustParseAddrPort("[fe80::1%eth0]:1")}, ""},
		}},
		{"CIDR of a made prefix with a zone", CIDR(netip.PrefixFrom(netip.MustParseAddr("fe80::%eth0"), 10)), []ask{
			{peerFrom("[fe80::1%eth1]:1"), ""},
		}},
		{"CIDR of NAT64", CIDR(mustPrefixes("64:ff9b::/96")...), []ask{
			{peerFrom("[64:ff9b::10.0.0.7]:1"), ""},
			{peerFrom("10.0.0.7:1"), anyText},
		}},
		{"CIDR of nothing", CIDR(), []ask{
			{peerFrom("10.0.0.7:1"), "address 10.0.0.7 is in none of an empty list"},
			{peerFrom("[::1]:1"), anyText},
		}},
		{"CIDR of an invalid prefix", CIDR(netip.Prefix{}), []ask{
			{peerFrom("10.0.0.7:1"), "address 10.0.0.7 is in none of invalid Prefix"},
			{peerFrom("0.0.0.0:1"), anyText},
			{peerFrom("[::]:1"), anyText},
		}},
		{"CIDR of too many bits", CIDR(netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 33)), []ask{
			{peerFrom("10.0.0.0:1"), anyText},
		}},
		{"Loopback", Loopback(), []ask{
			{tcpPeer("127.0.0.1:1", "127.0.0.1:2"), ""},
			{tcpPeer("127.0.0.1:1", "127.9.9.9:2"), ""},
			{tcpPeer("[::1]:1", "[::1]:2"), ""},
			{tcpPeer("[::ffff:127.0.0.1]:1", "[::ffff:127.0.0.1]:2"), ""},
			{tcpPeer("[::ffff:127.0.0.1]:1", "127.0.0.1:2"), ""},
			{tcpPeer("[::1%lo]:1", "[::1%lo]:2"), ""},
			{tcpPeer("192.0.2.1:1", "127.0.0.1:2"), "address 127.0.0.1 is loopback, but our end 192.0.2.1 is not"},
			{tcpPeer("127.0.0.1:1", "192.0.2.1:2"), "address 192.0.2.1 is not loopback"},
			{tcpPeer("192.0.2.1:1", "192.0.2.1:2"), anyText}, // this machine, but how would we know
			{tcpPeer("0.0.0.0:1", "127.0.0.1:2"), anyText},
			{tcpPeer("[::]:1", "[::1]:2"), anyText},
			{tcpPeer("127.0.0.1:1", "128.0.0.1:2"), anyText},
			{tcpPeer("127.0.0.1:1", "126.255.255.255:2"), anyText},
			{tcpPeer("[::1]:1", "[::2]:2"), anyText},
			{tcpPeer("[::1]:1", "[::127.0.0.1]:2"), anyText},
			{tcpPeer("[::1]:1", "[64:ff9b::127.0.0.1]:2"), anyText},
			{tcpPeer("[::1]:1", "[fe80::1%lo]:2"), anyText},
			{newPeer("tcp", nil, tcpAddr("127.0.0.1:2")), "our end has no IP address"},
			{newPeer("tcp", tcpAddr("127.0.0.1:2"), nil), errNoAddr.Error()},
			{newPeer("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}), ""},
			{custom("127.0.0.1:1", "127.0.0.1:2"), ""},
			{custom("localhost:1", "127.0.0.1:2"), anyText},
			{custom("127.0.0.1:1", "localhost:2"), anyText},
			{unixPeer("/run/a", "", nil), errNoAddr.Error()},
			{unixPeer("@a", "", nil), errNoAddr.Error()},
			{unixPeer("127.0.0.1:1", "127.0.0.1:2", nil), errNoAddr.Error()},
			{Peer{AddrPort: netip.MustParseAddrPort("127.0.0.1:1")}, "our end has no IP address"},
			{Peer{AddrPort: netip.MustParseAddrPort("[::ffff:127.0.0.1]:1"), Local: tcpAddr("127.0.0.1:1")}, ""},
			{Peer{}, errNoAddr.Error()},
		}},
		{"Unix", Unix(), []ask{
			{unixPeer("/run/a.sock", "", nil), ""},
			{unixPeer("@abstract", "", nil), ""},
			{unixPeer("@abstract", "@", nil), ""},
			{newPeer("unixpacket", nil, nil), ""},
			{newPeer("unixgram", nil, nil), ""},
			{peerFrom("127.0.0.1:1"), "not on a Unix socket"},
			{tcpPeer("127.0.0.1:1", "127.0.0.1:1"), anyText},
			{newPeer("unixfoo", nil, nil), anyText},
			{newPeer("UNIX", nil, nil), anyText},
			{newPeer("pipe", textAddr{"pipe", "pipe"}, textAddr{"pipe", "pipe"}), anyText},
			{newPeer("tcp", &net.UnixAddr{Name: "/x", Net: "unix"}, nil), anyText},
			{Peer{Local: &net.UnixAddr{Name: "/x", Net: "unix"}}, ""},
			{Peer{}, anyText},
		}},
		{"UID", UID(0, 1000), []ask{
			{cred(0, 5), ""},
			{cred(1000, 5), ""},
			{cred(1001, 0), "uid 1001 is none of 0, 1000"},
			{cred(65534, 0), anyText},
			{cred(4294967295, 0), anyText},
			{unixPeer("/run/a", "", nil), "no peer credentials"},
			{peerFrom("127.0.0.1:1"), "no peer credentials"},
		}},
		{"UID of nothing", UID(), []ask{{cred(0, 0), "uid 0 is none of an empty list"}}},
		{"UID -1", UID(4294967295), []ask{{cred(4294967295, 0), ""}, {cred(0, 0), anyText}}},
		{"GID", GID(5), []ask{
			{cred(0, 5), ""},
			{cred(5, 0), "gid 0 is none of 5"},
			{unixPeer("/run/a", "", nil), "no peer credentials"},
		}},
		{"GID of nothing", GID(), []ask{{cred(0, 0), anyText}}},
		{"Tag", Tag("inner", "admin"), []ask{
			{tagged("inner"), ""},
			{tagged("admin"), ""},
			{tagged("Inner"), `tag "Inner" is none of "inner", "admin"`},
			{tagged(""), `tag "" is none of "inner", "admin"`},
		}},
		{"Tag of listeners without one", Tag(""), []ask{{tagged(""), ""}, {tagged("x"), anyText}}},
		{"Tag of nothing", Tag(), []ask{{tagged(""), anyText}, {tagged("x"), anyText}}},
		{"Nobody", Nobody(), []ask{
			{peerFrom("127.0.0.1:1"), "nobody is admitted"},
			{cred(0, 0), "nobody is admitted"},
			{Peer{}, "nobody is admitted"},
		}},
		{"Any of nothing", Any(), []ask{{peerFrom("10.0.0.7:1"), "there is no rule that could admit"}}},
		{"Any of nil", Any(nil), []ask{{peerFrom("10.0.0.7:1"), ""}, {Peer{}, ""}}},
		{"Any of denial and nil", Any(Nobody(), nil), []ask{{Peer{}, ""}}},
		{"Any of nil and denial", Any(nil, Nobody()), []ask{{Peer{}, ""}}},
		{"Any of one denial", Any(Nobody()), []ask{{Peer{}, "nobody is admitted"}}},
		{"Any of denials", Any(no("a"), no("b"), no("c")), []ask{{Peer{}, "no rule of 3 admits: a; b; c"}}},
		{"Any with an admission", Any(no("a"), yes), []ask{{Peer{}, ""}}},
		{"All of nothing", All(), []ask{{Peer{}, ""}, {peerFrom("10.0.0.7:1"), ""}}},
		{"All of nil", All(nil, nil), []ask{{Peer{}, ""}}},
		{"All with a denial", All(yes, nil, no("a"), no("b")), []ask{{Peer{}, "a"}}},
		{"All of admissions", All(yes, nil, yes), []ask{{Peer{}, ""}}},
		{"Any of All of nothing", Any(All()), []ask{{Peer{}, ""}}},
		{"All of Any of nothing", All(Any()), []ask{{Peer{}, anyText}}},
		{"Any of Any of nothing", Any(Any(), Any()), []ask{{Peer{}, anyText}}},
		{"All of All of nothing", All(All(), All(nil)), []ask{{Peer{}, ""}}},
		{"everything local", Any(Loopback(), Unix()), []ask{
			{tcpPeer("127.0.0.1:1", "127.0.0.1:2"), ""},
			{unixPeer("/run/a", "", nil), ""},
			{unixPeer("@a", "", nil), ""},
			{peerFrom("10.0.0.7:1"), "no rule of 2 admits: address 10.0.0.7 is not loopback; not on a Unix socket"},
		}},
		{"nested", Any(All(Unix(), UID(1000)), All(Tag("inner"), CIDR(mustPrefixes("10.0.0.0/8")...)), All(Loopback(), Any(Nobody(), Tag("dev")))), []ask{
			{cred(1000, 0), ""},
			{cred(1001, 0), anyText},
			{tagged("inner"), ""},
			{tagged("outer"), anyText},
			{func() Peer { p := tcpPeer("[::1]:1", "[::1]:2"); p.Tag = "dev"; return p }(), ""},
			{tcpPeer("[::1]:1", "[::1]:2"), anyText},
			{Peer{}, anyText},
		}},
		{"TLSName without TLS", TLSName("a.example"), []ask{
			{peerFrom("10.0.0.7:1"), "no TLS"},
			{unixPeer("@a", "", nil), "no TLS"},
		}},
	} {
		for i, a := range group.asks {
			t.Run(fmt.Sprintf("%s/%d %v", group.name, i, a.peer), func(t *testing.T) {
				checkDenial(t, group.rule, a.peer, a.want)
			})
		}
	}
}

func checkDenial(t *testing.T, r Rule, p Peer, want string) {
	t.Helper()
	got := ""
	if err := r(p); err != nil {
		if got = err.Error(); got == "" {
			t.Fatal("denied without a reason")
		}
	}
	if want == anyText && got != "" {
		return
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("denial of %v (-want +got):\n%s", p, d)
	}
}

// authority signs leaves with every kind of name.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{cert, key, pool}
}

func (a *authority) leaf(t *testing.T, tmpl x509.Certificate) tls.Certificate {
	t.Helper()
	tmpl.SerialNumber = big.NewInt(2)
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, &tmpl, a.cert, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.key}
}

// accepted returns what a server learns of a client that shows cert.
func (a *authority) accepted(t *testing.T, auth tls.ClientAuthType, cert ...tls.Certificate) Peer {
	t.Helper()
	c, s := net.Pipe()
	defer c.Close()
	defer s.Close()
	srv := tls.Server(s, &tls.Config{
		Certificates: []tls.Certificate{a.leaf(t, x509.Certificate{DNSNames: []string{"server.example"}})},
		ClientAuth:   auth, ClientCAs: a.pool,
	})
	cli := tls.Client(c, &tls.Config{RootCAs: a.pool, ServerName: "server.example", Certificates: cert})
	done := make(chan error, 1)
	go func() {
		err := cli.Handshake()
		if err == nil {
			_, err = io.Copy(io.Discard, c) // TLS 1.3: session tickets
		}
		done <- err
	}()
	if err := srv.Handshake(); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	p := newPeer("tcp", s.LocalAddr(), s.RemoteAddr())
	state := srv.ConnectionState()
	p.TLS = &state
	return p
}

func TestTLSNameReadsOnlyVerifiedNames(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	verify := tls.RequireAndVerifyClientCert
	peer := func(tmpl x509.Certificate) Peer { return ca.accepted(t, verify, ca.leaf(t, tmpl)) }
	cn := func(s string) pkix.Name { return pkix.Name{CommonName: s} }

	plain := peer(x509.Certificate{Subject: cn("cn.example"), DNSNames: []string{"w1.example", "W2.Example"}})
	spiffe := peer(x509.Certificate{URIs: []*url.URL{uri("spiffe://prod.example/Worker"), uri("urn:uuid:1")}})
	cnOnly := peer(x509.Certificate{Subject: cn("w1.example")})
	wild := peer(x509.Certificate{DNSNames: []string{"*.example"}})
	ip := peer(x509.Certificate{IPAddresses: []net.IP{net.IPv4(10, 0, 0, 7)}})
	mail := peer(x509.Certificate{EmailAddresses: []string{"w1@example"}})
	mixed := peer(x509.Certificate{DNSNames: []string{"a.example"}, URIs: []*url.URL{uri("spiffe://x/b")}, IPAddresses: []net.IP{net.IPv4(10, 0, 0, 7)}})
	posing := peer(x509.Certificate{DNSNames: []string{"spiffe://prod.example/Worker"}})
	none := ca.accepted(t, tls.VerifyClientCertIfGiven)
	unverified := ca.accepted(t, tls.RequireAnyClientCert, other.leaf(t, x509.Certificate{DNSNames: []string{"w1.example"}}))
	if len(unverified.TLS.PeerCertificates) == 0 {
		t.Fatal("the unverified certificate is missing: the case below proves nothing")
	}

	for i, test := range []struct {
		peer  Peer
		names []string
		want  string
	}{
		{plain, []string{"w1.example"}, ""},
		{plain, []string{"W1.EXAMPLE"}, ""},
		{plain, []string{"w2.example"}, ""},
		{plain, []string{"x.example", "w2.example"}, ""},
		{plain, []string{"w3.example"}, `the certificate is for "w1.example", "W2.Example", none of "w3.example"`},
		{plain, []string{"cn.example"}, anyText},
		{plain, []string{"w1.example."}, anyText},
		{plain, []string{"*.example"}, anyText},
		{plain, []string{"example"}, anyText},
		{plain, []string{".example"}, anyText},
		{plain, []string{""}, anyText},
		{plain, nil, `the certificate is for "w1.example", "W2.Example", none of an empty list`},
		{spiffe, []string{"spiffe://prod.example/Worker"}, ""},
		{spiffe, []string{"urn:uuid:1"}, ""},
		{spiffe, []string{"spiffe://prod.example/worker"}, `the certificate is for "spiffe://prod.example/Worker", "urn:uuid:1", none of "spiffe://prod.example/worker"`},
		{spiffe, []string{"spiffe://PROD.example/Worker"}, anyText},
		{spiffe, []string{"spiffe://prod.example/Worker/"}, anyText},
		{spiffe, []string{"spiffe://prod.example/"}, anyText},
		{spiffe, []string{"prod.example"}, anyText},
		{cnOnly, []string{"w1.example"}, "the certificate has no DNS name and no URI"},
		{cnOnly, []string{""}, anyText},
		{wild, []string{"w1.example"}, `the certificate is for "*.example", none of "w1.example"`},
		{wild, []string{"*.example"}, ""},
		{wild, []string{"*.EXAMPLE"}, ""},
		{ip, []string{"10.0.0.7"}, "the certificate has no DNS name and no URI"},
		{mail, []string{"w1@example"}, anyText},
		{mixed, []string{"a.example"}, ""},
		{mixed, []string{"spiffe://x/b"}, ""},
		{mixed, []string{"10.0.0.7"}, anyText},
		{posing, []string{"spiffe://prod.example/Worker"}, anyText}, // a DNS name is not a URI, whatever it spells
		{none, []string{"w1.example"}, "no verified certificate"},
		{unverified, []string{"w1.example"}, "no verified certificate"},
		{Peer{TLS: &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{}}}}, []string{"w1.example"}, "no verified certificate"},
		{Peer{TLS: &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{DNSNames: []string{"\u212a.example"}}}}}}, []string{"k.example"}, anyText},
		{Peer{TLS: &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{DNSNames: []string{"k.example"}}}}}}, []string{"\u212a.example"}, anyText},
		{Peer{TLS: &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{DNSNames: []string{"AZ.example"}}}}}}, []string{"az.example"}, ""},
		{Peer{TLS: &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{URIs: []*url.URL{{Path: "w1.example"}}}}}}}, []string{"w1.example"}, anyText},
		{Peer{TLS: &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{DNSNames: []string{""}}}}}}, []string{""}, anyText},
	} {
		t.Run(fmt.Sprintf("%d %v", i, test.names), func(t *testing.T) {
			checkDenial(t, TLSName(test.names...), test.peer, test.want)
		})
	}
}

func TestRulesKeepCopiesOfTheirArguments(t *testing.T) {
	nets, uids, strs := mustPrefixes("10.0.0.0/8"), []uint32{1}, []string{"a"}
	rules := []Rule{nil}
	cidr, uid, gid, tag, tagAny, tagAll := CIDR(nets...), UID(uids...), GID(uids...), Tag(strs...), Any(rules...), All(rules...)
	nets[0], uids[0], strs[0], rules[0] = netip.MustParsePrefix("11.0.0.0/8"), 2, "b", Nobody()
	p := peerFrom("10.0.0.7:1")
	p.Tag, p.Cred = "a", &Cred{UID: 1, GID: 1}
	for i, r := range []Rule{cidr, uid, gid, tag, tagAny, tagAll} {
		if err := r(p); err != nil {
			t.Errorf("rule %d follows the caller's slice: %v", i, err)
		}
	}
}

func TestRulesAreAskedInOrderUntilDecided(t *testing.T) {
	var asked []string
	rule := func(name string, err error) Rule {
		return func(Peer) error { asked = append(asked, name); return err }
	}
	denied := errors.New("denied")
	for _, test := range []struct {
		rule func(...Rule) Rule
		want []string
	}{
		{Any, []string{"deny", "admit"}},
		{All, []string{"deny"}},
	} {
		asked = nil
		_ = test.rule(rule("deny", denied), rule("admit", nil), rule("late", nil))(Peer{})
		if d := cmp.Diff(test.want, asked); d != "" {
			t.Errorf("asked (-want +got):\n%s", d)
		}
	}
	first, second := errors.New("first"), errors.New("second")
	err := Any(rule("1", first), All(rule("2", second)))(Peer{})
	if !errors.Is(err, first) || !errors.Is(err, second) {
		t.Errorf("%v does not wrap both denials", err)
	}
}

func TestAdmissionErrorReadsWell(t *testing.T) {
	named := func(p Peer, name string) Peer { p.Name = name; return p }
	reason := errors.New("reason")
	for _, test := range []struct {
		peer Peer
		want string
	}{
		{named(peerFrom("10.0.0.7:5123"), "w1"), `sockhub: peer "w1" from 10.0.0.7:5123 not admitted: reason`},
		{peerFrom("[::ffff:10.0.0.7]:5123"), `sockhub: peer 10.0.0.7:5123 not admitted: reason`},
		{peerFrom("[fe80::1%eth0]:1"), `sockhub: peer [fe80::1]:1 not admitted: reason`},
		{named(peerFrom("10.0.0.7:1"), "a\nb"), `sockhub: peer "a\nb" from 10.0.0.7:1 not admitted: reason`},
		{unixPeer("/run/a.sock", "", nil), `sockhub: peer on Unix socket "/run/a.sock" not admitted: reason`},
		{unixPeer("/run/a.sock", "@", nil), `sockhub: peer on Unix socket "/run/a.sock" not admitted: reason`},
		{unixPeer("@a", "/tmp/x\ny", &Cred{1, 2, 3}), `sockhub: peer Unix socket "/tmp/x\ny" (uid 2, gid 3, pid 1) not admitted: reason`},
		{newPeer("pipe", nil, nil), `sockhub: peer "unknown" not admitted: reason`},
		{newPeer("x", nil, textAddr{"x", "far away"}), `sockhub: peer "far away" not admitted: reason`},
		{Peer{}, `sockhub: peer "" not admitted: reason`},
		{Peer{Network: "unix"}, `sockhub: peer on Unix socket "" not admitted: reason`},
	} {
		err := &AdmissionError{Peer: test.peer, Err: reason}
		if d := cmp.Diff(test.want, err.Error()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		if !errors.Is(err, reason) {
			t.Errorf("%v does not wrap its reason", err)
		}
	}
	if d := cmp.Diff(`sockhub: peer "" not admitted`, (&AdmissionError{}).Error()); d != "" {
		t.Errorf("without a reason (-want +got):\n%s", d)
	}
}

func TestAdmitWrapsTheFirstDenial(t *testing.T) {
	p := peerFrom("10.0.0.7:5123")
	p.Name = "w1"
	if err := admit(p); err != nil {
		t.Errorf("no rules: %v", err)
	}
	if err := admit(p, nil, All(), CIDR(mustPrefixes("10.0.0.0/8")...)); err != nil {
		t.Errorf("all admit: %v", err)
	}
	err := admit(p, nil, CIDR(mustPrefixes("192.168.0.0/16")...), Nobody())
	var ae *AdmissionError
	if !errors.As(err, &ae) || ae.Peer.Name != "w1" {
		t.Fatalf("got %v, want an AdmissionError of w1", err)
	}
	want := `sockhub: peer "w1" from 10.0.0.7:5123 not admitted: address 10.0.0.7 is in none of 192.168.0.0/16`
	if d := cmp.Diff(want, err.Error()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestAdmitDeniesWhenARulePanics(t *testing.T) {
	err := admit(peerFrom("10.0.0.7:1"), func(p Peer) error { return errors.New(p.TLS.ServerName) })
	var pe *PanicError
	var ae *AdmissionError
	if !errors.As(err, &ae) || !errors.As(err, &pe) {
		t.Fatalf("got %v, want an AdmissionError with a PanicError", err)
	}
	if pe.Value == nil || !strings.Contains(string(pe.Stack), "TestAdmitDeniesWhenARulePanics") {
		t.Errorf("value %v and stack %s do not lead to the rule", pe.Value, pe.Stack)
	}
}

func TestDenialByALongListIsShort(t *testing.T) {
	err := UID(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)(unixPeer("@a", "", &Cred{UID: 0}))
	if d := cmp.Diff("uid 0 is none of 1, 2, 3, 4, 5, 6, 7, 8 and 2 more", fmt.Sprint(err)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestNewPeerNormalisesAddresses(t *testing.T) {
	for _, test := range []struct {
		network       string
		local, remote net.Addr
		want          string // AddrPort
	}{
		{"tcp", tcpAddr("10.0.0.1:1"), tcpAddr("10.0.0.7:2"), "10.0.0.7:2"},
		{"tcp", nil, tcpAddr("[::ffff:10.0.0.7]:2"), "10.0.0.7:2"},
		{"tcp", nil, tcpAddr("[fe80::1%eth0]:2"), "[fe80::1]:2"},
		{"tcp", nil, tcpAddr("[64:ff9b::a00:7]:2"), "[64:ff9b::a00:7]:2"},
		{"tcp", nil, &net.TCPAddr{Port: 2}, "invalid AddrPort"},
		{"tcp", nil, &net.TCPAddr{IP: net.IP{1, 2, 3}, Port: 2}, "invalid AddrPort"},
		{"tcp", nil, (*net.TCPAddr)(nil), "invalid AddrPort"},
		{"udp", nil, (*net.UDPAddr)(nil), "invalid AddrPort"},
		{"udp", nil, &net.UDPAddr{IP: net.ParseIP("10.0.0.7"), Port: 2}, "10.0.0.7:2"},
		{"unix", nil, (*net.UnixAddr)(nil), "invalid AddrPort"},
		{"unix", nil, &net.UnixAddr{Name: "10.0.0.7:2", Net: "unix"}, "invalid AddrPort"},
		{"unixgram", nil, &net.UnixAddr{Name: "10.0.0.7:2", Net: "unixgram"}, "invalid AddrPort"},
		{"tcp", (*ptrAddr)(nil), (*ptrAddr)(nil), "invalid AddrPort"},
		{"x", nil, &ptrAddr{"[::ffff:10.0.0.7%x]:2"}, "10.0.0.7:2"},
		{"x", nil, textAddr{"x", "10.0.0.7:65536"}, "invalid AddrPort"},
		{"x", nil, textAddr{"x", "10.0.0.7:0"}, "10.0.0.7:0"},
		{"", nil, nil, "invalid AddrPort"},
	} {
		p := newPeer(test.network, test.local, test.remote)
		if d := cmp.Diff(test.want, p.AddrPort.String()); d != "" {
			t.Errorf("newPeer(%q, %v, %v) (-want +got):\n%s", test.network, test.local, test.remote, d)
		}
		if isNilAddr(p.Local) || isNilAddr(p.Remote) {
			t.Errorf("newPeer(%q, %v, %v) has a nil address", test.network, test.local, test.remote)
		}
		if !isNilAddr(test.remote) && p.Remote != test.remote {
			t.Errorf("newPeer changed Remote from %v to %v", test.remote, p.Remote)
		}
		if p.Local.Network() == "" && test.network != "" {
			t.Errorf("the address in Local's place does not know its network")
		}
	}
}

func TestPoliciesHaveNames(t *testing.T) {
	var got []string
	for i := range 4 {
		got = append(got, UnexpectedPolicy(i).String())
	}
	for i := range 4 {
		got = append(got, DuplicatePolicy(i).String())
	}
	for i := -1; i < 6; i++ {
		got = append(got, OverflowPolicy(i).String())
	}
	want := []string{
		"inherit", "HoldUnexpected", "RefuseUnexpected", "UnexpectedPolicy(3)",
		"inherit", "RefuseNew", "ReplaceOld", "DuplicatePolicy(3)",
		"OverflowPolicy(-1)", "inherit", "BlockSender", "DropNewest", "DropOldest", "DisconnectPeer", "OverflowPolicy(5)",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// FuzzCIDRAgreesWithNetip compares CIDR with netip.Prefix.Contains, after both
// sides are unmapped in a way of the test's own: by their bytes.
func FuzzCIDRAgreesWithNetip(f *testing.F) {
	f.Add([]byte{10, 0, 0, 7}, []byte{10, 0, 0, 0}, 8, "")
	mapped := netip.MustParseAddr("::ffff:10.0.0.7").As16()
	f.Add(mapped[:], mapped[:], 104, "eth0")
	f.Add(mapped[:], []byte{10, 0, 0, 0}, 8, "")
	f.Add(mapped[:], mapped[:], 90, "")
	f.Fuzz(func(t *testing.T, addr, base []byte, bits int, zone string) {
		a, ok := netip.AddrFromSlice(addr)
		b, ok2 := netip.AddrFromSlice(base)
		if !ok || !ok2 {
			return
		}
		prefix := netip.PrefixFrom(b, bits)

		isMapped := func(p []byte) bool {
			return len(p) == 16 && slices.Equal(p[:12], []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255})
		}
		wantAddr, wantPrefix := a, prefix
		if isMapped(addr) {
			wantAddr = netip.AddrFrom4([4]byte(addr[12:]))
		}
		if isMapped(base) && bits >= 96 && bits <= 128 {
			wantPrefix = netip.PrefixFrom(netip.AddrFrom4([4]byte(base[12:])), bits-96)
		}
		want := wantPrefix.Contains(wantAddr)

		rule := CIDR(prefix)
		for _, p := range []Peer{
			newPeer("tcp", nil, &net.TCPAddr{IP: addr, Port: 1, Zone: zone}),
			newPeer("x", nil, textAddr{"x", netip.AddrPortFrom(a, 1).String()}),
			{AddrPort: netip.AddrPortFrom(a.WithZone(zone), 1)},
		} {
			if got := rule(p) == nil; got != want {
				t.Errorf("CIDR(%v) admits %v: %v, want %v", prefix, p, got, want)
			}
		}
	})
}

// FuzzPeerAddr holds newPeer to its promises for any text that an address may
// consist of.
func FuzzPeerAddr(f *testing.F) {
	for _, s := range []string{"10.0.0.7:1", "[::ffff:10.0.0.7%x]:1", "[fe80::1%eth0]:65535", "@", "", "/run/a.sock", "localhost:1", "[::1]", "1:2:3"} {
		f.Add("tcp", s)
		f.Add("unix", s)
	}
	f.Fuzz(func(t *testing.T, network, text string) {
		p := newPeer(network, textAddr{network, text}, textAddr{network, text})
		if ap := p.AddrPort; ap.IsValid() {
			if a := ap.Addr(); a.Is4In6() || a.Zone() != "" {
				t.Errorf("AddrPort %v is not normalised", ap)
			}
			if isUnixNetwork(network) {
				t.Errorf("Unix peer with the address %v", ap)
			}
		} else if p.AddrPort != (netip.AddrPort{}) {
			t.Errorf("AddrPort %v is neither valid nor zero", p.AddrPort)
		}
		if p.remote() != p.AddrPort {
			t.Errorf("rules see %v, users %v", p.remote(), p.AddrPort)
		}
		if (Unix()(p) == nil) && (Loopback()(p) == nil || CIDR(mustPrefixes("0.0.0.0/0", "::/0")...)(p) == nil) {
			t.Errorf("%v has an IP address and is on a Unix socket", p)
		}
		if s := (&AdmissionError{Peer: p}).Error(); strings.ContainsAny(s, "\n\r\x1b") {
			t.Errorf("%q carries control characters", s)
		}
	})
}

func BenchmarkAdmit(b *testing.B) {
	r := Any(All(Unix(), UID(0)), Loopback(), CIDR(mustPrefixes("192.168.0.0/16", "10.0.0.0/8")...))
	p := peerFrom("[::ffff:10.0.0.7]:1")
	b.ReportAllocs()
	for b.Loop() {
		if admit(p, nil, r) != nil {
			b.Fatal("denied")
		}
	}
}
