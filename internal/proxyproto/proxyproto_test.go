package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// v2 makes a header of version 2.
func v2(command, family byte, block ...[]byte) []byte {
	b := append([]byte(signature), command, family)
	all := bytes.Join(block, nil)
	b = binary.BigEndian.AppendUint16(b, uint16(len(all)))
	return append(b, all...)
}

// addrs is the address block of version 2 for the addresses.
func addrs(source, destination string) (b []byte) {
	s, d := netip.MustParseAddrPort(source), netip.MustParseAddrPort(destination)
	b = append(b, s.Addr().AsSlice()...)
	b = append(b, d.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, s.Port())
	return binary.BigEndian.AppendUint16(b, d.Port())
}

func header(source, destination string) Header {
	return Header{netip.MustParseAddrPort(source), netip.MustParseAddrPort(destination)}
}

func same(a, b netip.AddrPort) bool { return a == b }

var (
	four   = header("192.0.2.1:56324", "198.51.100.7:443")
	six    = header("[2001:db8::1]:1", "[::1]:65535")
	block4 = addrs("192.0.2.1:56324", "198.51.100.7:443")
	block6 = addrs("[2001:db8::1]:1", "[::1]:65535")
	longV6 = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	tlv    = []byte{0x04, 0x00, 0x03, 1, 2, 3, 0xEA, 0x00, 0x00}
)

var valid = []struct {
	name, in string
	want     Header
}{
	{"v1 TCP4", "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n", four},
	{"v1 TCP6", "PROXY TCP6 2001:db8::1 ::1 1 65535\r\n", six},
	{"v1 port 0", "PROXY TCP4 0.0.0.0 255.255.255.255 0 0\r\n", header("0.0.0.0:0", "255.255.255.255:0")},
	{"v1 longest", "PROXY TCP6 " + longV6 + " " + longV6 + " 65535 65535\r\n", header("["+longV6+"]:65535", "["+longV6+"]:65535")},
	{"v1 mapped", "PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", header("[::ffff:192.0.2.1]:1", "[::1]:2")},
	{"v1 UNKNOWN", "PROXY UNKNOWN\r\n", Header{}},
	{"v1 UNKNOWN and more", "PROXY UNKNOWN " + longV6 + " " + longV6 + " 65535 65535\r\n", Header{}},
	{"v2 TCP4", string(v2(proxied, tcp4, block4)), four},
	{"v2 TCP6", string(v2(proxied, tcp6, block6)), six},
	{"v2 UDP4", string(v2(proxied, udp4, block4)), four},
	{"v2 UDP6", string(v2(proxied, udp6, block6)), six},
	{"v2 extensions", string(v2(proxied, tcp4, block4, tlv)), four},
	{"v2 longest", string(v2(proxied, tcp6, block6, make([]byte, maxBinary-fixed-len(block6)))), six},
	{"v2 AF_UNIX", string(v2(proxied, unixStream, make([]byte, 216))), Header{}},
	{"v2 UNSPEC", string(v2(proxied, unspecified)), Header{}},
	{"v2 UNSPEC and more", string(v2(proxied, unspecified, block4, tlv)), Header{}},
	{"v2 LOCAL", string(v2(local, unspecified)), Header{}},
	{"v2 LOCAL with addresses", string(v2(local, tcp4, block4, tlv)), Header{}},
	{"v2 LOCAL with a part of addresses", string(v2(local, tcp4, block4[:5])), Header{}},
	{"v2 LOCAL of an unknown family", string(v2(local, 0x77, []byte{1})), Header{}},
}

var wrong = []struct{ name, in string }{
	{"a name", "\x05\x00\x00\x00\x00\x00\x00\x00alice"},
	{"a TLS hello", "\x16\x03\x01\x02\x00"},
	{"an HTTP request", "GET / HTTP/1.1\r\n"},
	{"almost v1", "PROXZ TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"},
	{"v1 in small letters", "proxy TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"},
	{"v1 without CR", "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\n"},
	{"v1 too long", "PROXY UNKNOWN " + strings.Repeat("x", maxText-len("PROXY UNKNOWN \r\n")+1) + "\r\n"},
	{"v1 without end", "PROXY TCP4 " + strings.Repeat("1", 1000)},
	{"v1 without protocol", "PROXY \r\n"},
	{"v1 UDP4", "PROXY UDP4 192.0.2.1 198.51.100.7 56324 443\r\n"},
	{"v1 UNKNOWNS", "PROXY UNKNOWNS\r\n"},
	{"v1 without ports", "PROXY TCP4 192.0.2.1 198.51.100.7\r\n"},
	{"v1 with one more", "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443 1\r\n"},
	{"v1 two spaces", "PROXY TCP4  192.0.2.1 198.51.100.7 56324 443\r\n"},
	{"v1 space at the end", "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443 \r\n"},
	{"v1 IPv6 in TCP4", "PROXY TCP4 ::1 198.51.100.7 56324 443\r\n"},
	{"v1 IPv4 in TCP6", "PROXY TCP6 ::1 198.51.100.7 56324 443\r\n"},
	{"v1 zone", "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n"},
	{"v1 octal address", "PROXY TCP4 192.0.02.1 198.51.100.7 56324 443\r\n"},
	{"v1 host name", "PROXY TCP4 localhost 198.51.100.7 56324 443\r\n"},
	{"v1 host name in TCP6", "PROXY TCP6 localhost ::1 1 2\r\n"},
	{"v1 octal port", "PROXY TCP4 192.0.2.1 198.51.100.7 056324 443\r\n"},
	{"v1 signed port", "PROXY TCP4 192.0.2.1 198.51.100.7 +1 443\r\n"},
	{"v1 large port", "PROXY TCP4 192.0.2.1 198.51.100.7 65536 443\r\n"},
	{"almost v2", "\r\n\r\n\x00\r\nQUIZ\n\x21\x11\x00\x0c"},
	{"v2 version 1", string(v2(0x11, tcp4, block4))},
	{"v2 version 3", string(v2(0x31, tcp4, block4))},
	{"v2 command 2", string(v2(0x22, tcp4, block4))},
	{"v2 family 4", string(v2(proxied, 0x41, block4))},
	{"v2 transport 3", string(v2(proxied, 0x13, block4))},
	{"v2 IPv4 of no transport", string(v2(proxied, 0x10, block4))},
	{"v2 short IPv4", string(v2(proxied, tcp4, block4[1:]))},
	{"v2 short IPv6", string(v2(proxied, tcp6, block6[1:]))},
	{"v2 short AF_UNIX", string(v2(proxied, unixStream, make([]byte, 215)))},
	{"v2 too long", string(v2(proxied, tcp4, make([]byte, maxBinary-fixed+1)))},
	{"v2 longest length", string(v2(local, unspecified, make([]byte, 65535)))},
}

func TestParse(t *testing.T) {
	for _, test := range valid {
		t.Run(test.name, func(t *testing.T) {
			for _, behind := range []string{"", "x", "PROXY UNKNOWN\r\n", strings.Repeat("\n", 200)} {
				h, n, err := Parse([]byte(test.in + behind))
				if err != nil || n != len(test.in) {
					t.Fatalf("%d bytes, %v; want %d", n, err, len(test.in))
				}
				if diff := cmp.Diff(test.want, h, cmp.Comparer(same)); diff != "" {
					t.Errorf("header (-want +got):\n%s", diff)
				}
			}
		})
	}
	for _, test := range wrong {
		t.Run(test.name, func(t *testing.T) {
			h, n, err := Parse([]byte(test.in))
			if !errors.Is(err, ErrInvalid) || n != 0 || h != (Header{}) {
				t.Errorf("%v, %d bytes, %v; want ErrInvalid", h, n, err)
			}
		})
	}
}

// What is wrong is refused no later than it can be told, whatever is announced.
func TestWrongStartIsRefusedAtOnce(t *testing.T) {
	longest := text + strings.Repeat("x", maxText-len(text)) // without its end
	for _, in := range []string{longest, "\x00", "Q", "PX", "\rX", "\r\n\r\nX", signature + "\x21\x11\xff\xff", signature + "\x00\x00\x00\x00"} {
		if _, _, err := Parse(slices.Clip([]byte(in))); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v, want ErrInvalid", in, err)
		}
	}
}

func TestReadTakesTheHeaderAndGivesTheRest(t *testing.T) {
	readers := map[string]func(io.Reader) io.Reader{
		"whole":              func(r io.Reader) io.Reader { return r },
		"byte by byte":       iotest.OneByteReader,
		"by halves":          iotest.HalfReader,
		"end with last data": iotest.DataErrReader,
	}
	for name, reader := range readers {
		for _, test := range valid {
			for _, behind := range []string{"", "hello", strings.Repeat("0123456789", 1000)} {
				r := reader(strings.NewReader(test.in + behind))
				h, rest, err := Read(r)
				if err != nil || h != test.want {
					t.Errorf("%s, %s: %v, %v; want %v", name, test.name, h, err, test.want)
				}
				if len(rest) >= maxText {
					t.Errorf("%s, %s: has read %d bytes too many", name, test.name, len(rest))
				}
				more, err := io.ReadAll(r)
				if got := string(rest) + string(more); got != behind || err != nil {
					t.Errorf("%s, %s: %q is left, want %q", name, test.name, got, behind)
				}
			}
			for _, cut := range []int{0, 1, 6, 12, len(test.in) - 1} {
				want := io.ErrUnexpectedEOF
				if cut == 0 {
					want = io.EOF
				}
				if _, _, err := Read(reader(strings.NewReader(test.in[:cut]))); err != want {
					t.Errorf("%s, %s cut to %d: %v, want %v", name, test.name, cut, err, want)
				}
			}
		}
		for _, test := range wrong {
			if _, _, err := Read(reader(strings.NewReader(test.in))); !errors.Is(err, ErrInvalid) {
				t.Errorf("%s, %s: %v, want ErrInvalid", name, test.name, err)
			}
		}
	}
}

// A header arrives in pieces: each prefix of it must ask for more, and never for
// more than the header, of which the proxy may send nothing else; and the verdict
// must not depend on the pieces.
func FuzzParse(f *testing.F) {
	for _, test := range valid {
		f.Add([]byte(test.in))
	}
	for _, test := range wrong {
		f.Add([]byte(test.in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 2*maxBinary {
			return
		}
		whole, size, err := Parse(in)
		switch {
		case err == nil && (size < len("PROXY UNKNOWN\r\n") || size > len(in) || size > maxBinary):
			t.Fatalf("a header of %d bytes in %d", size, len(in))
		case err == ErrIncomplete && size <= len(in), err != nil && err != ErrIncomplete && !errors.Is(err, ErrInvalid):
			t.Fatalf("%d bytes of %d, %v", size, len(in), err)
		}
		for cut := range len(in) {
			h, n, e := Parse(in[:cut])
			switch {
			case e == ErrIncomplete:
				if n <= cut || err == nil && n > size {
					t.Fatalf("at %d bytes asks for %d, and is %d long", cut, n, size)
				}
			case err == nil:
				if e != nil || n != size || h != whole || cut < size {
					t.Fatalf("cut to %d: %v, %d, %v; whole: %v, %d", cut, h, n, e, whole, size)
				}
			case err == ErrIncomplete || e == nil:
				t.Fatalf("cut to %d: %v, whole: %v", cut, e, err)
			}
		}
		h, rest, e := Read(iotest.OneByteReader(bytes.NewReader(in)))
		switch {
		case err == nil && (e != nil || h != whole || len(rest) > 0),
			err == ErrIncomplete && e != io.EOF && e != io.ErrUnexpectedEOF,
			err != nil && err != ErrIncomplete && !errors.Is(e, ErrInvalid):
			t.Fatalf("Read: %v, %d left, %v; Parse: %v, %v", h, len(rest), e, whole, err)
		}
	})
}
