// Package proxyproto reads the header by which a proxy tells a server whose
// connection it passes on: HAProxy's PROXY protocol, versions 1 (a line of text)
// and 2 (binary), as in https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt.
//
// Anybody can send such a header. Whom to believe is the caller's to decide,
// before reading: the protocol forbids to guess whether there is one.
package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

var (
	// ErrInvalid: what came is not a header, or one that breaks the rules.
	ErrInvalid = errors.New("proxyproto: invalid header")

	// ErrIncomplete: what came is the beginning of a header.
	ErrIncomplete = errors.New("proxyproto: incomplete header")
)

const (
	// maxText is the longest header of version 1, with its CR and LF.
	maxText = 107

	// maxBinary is the longest header of version 2 that is accepted. The
	// format allows 64 KiB more, for extensions that proxies keep short.
	maxBinary = 4096

	text      = "PROXY "
	signature = "\r\n\r\n\x00\r\nQUIT\n"
	fixed     = len(signature) + 4 // version and command, family, length
)

// Header is what a header says.
type Header struct {
	// Source is the client and Destination what it connected to. Both are
	// zero if the header says neither: in the proxy's own connections, such
	// as health checks (LOCAL), and of clients without IP (UNKNOWN, UNSPEC,
	// AF_UNIX). The connection's own addresses are then all there is.
	Source, Destination netip.AddrPort
}

// Parse parses the header with which b begins; n is its length. Of a header that
// is not all there the error is ErrIncomplete, and n how many bytes b must have
// for the next try: more than it has and never more than the header. Other errors
// match ErrInvalid, and come as soon as they can be told.
func Parse(b []byte) (h Header, n int, err error) {
	switch {
	case len(b) == 0:
		return h, 1, ErrIncomplete
	case b[0] == signature[0]:
		return parseBinary(b)
	}
	return parseText(b)
}

// Read reads a header from r, and a little more at most: rest is what came
// behind the header. io.EOF means that nothing came at all; an end within the
// header is io.ErrUnexpectedEOF.
func Read(r io.Reader) (h Header, rest []byte, err error) {
	b := make([]byte, 0, maxText)
	for {
		h, n, err := Parse(b)
		if err == nil {
			return h, b[n:], nil
		}
		if err != ErrIncomplete {
			return Header{}, nil, err
		}
		if n > cap(b) {
			b = append(make([]byte, 0, n), b...)
		}
		// Not n at least: what is wrong is told by less.
		m, err := io.ReadAtLeast(r, b[len(b):cap(b)], 1)
		b = b[:len(b)+m]
		if err == io.EOF && len(b) > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return Header{}, nil, err
		}
	}
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrInvalid, fmt.Errorf(format, args...))
}

// begins reports whether b begins with s, as far as it goes.
func begins(b []byte, s string) bool {
	k := min(len(b), len(s))
	return string(b[:k]) == s[:k]
}

// parseText is Parse of version 1:
//
//	PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n
func parseText(b []byte) (h Header, n int, err error) {
	if !begins(b, text) {
		return h, 0, invalid("begins with %q", b[:min(len(b), len(text))])
	}
	end := bytes.IndexByte(b[:min(len(b), maxText)], '\n')
	switch {
	case end < 0 && len(b) >= maxText:
		return h, 0, invalid("no end in %d bytes", maxText)
	case end < 0:
		return h, len(b) + 1, ErrIncomplete
	case b[end-1] != '\r':
		return h, 0, invalid("LF without CR")
	}
	fields := strings.Split(string(b[len(text):end-1]), " ")
	switch kind := fields[0]; kind {
	case "UNKNOWN":
		return h, end + 1, nil // whatever follows it
	case "TCP4", "TCP6":
		if len(fields) != 5 {
			return h, 0, invalid("%d fields, want 5", len(fields))
		}
		if h.Source, err = parseAddr(kind, fields[1], fields[3]); err != nil {
			return Header{}, 0, err
		}
		if h.Destination, err = parseAddr(kind, fields[2], fields[4]); err != nil {
			return Header{}, 0, err
		}
		return h, end + 1, nil
	default:
		return h, 0, invalid("protocol %q", kind)
	}
}

func parseAddr(kind, addr, port string) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(addr)
	if err != nil || a.Is4() != (kind == "TCP4") || a.Zone() != "" {
		return netip.AddrPort{}, invalid("%s address %q", kind, addr)
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil || strconv.FormatUint(p, 10) != port {
		return netip.AddrPort{}, invalid("port %q", port)
	}
	return netip.AddrPortFrom(a, uint16(p)), nil
}

// The commands and families of version 2.
const (
	local   = 0x20 // the version, 2, is in the upper half
	proxied = 0x21

	unspecified = 0x00
	tcp4        = 0x11 // upper half: address family, lower half: transport
	udp4        = 0x12
	tcp6        = 0x21
	udp6        = 0x22
	unixStream  = 0x31
	unixPacket  = 0x32
)

// parseBinary is Parse of version 2.
func parseBinary(b []byte) (h Header, n int, err error) {
	if !begins(b, signature) {
		return h, 0, invalid("begins with %q", b[:min(len(b), len(signature))])
	}
	if len(b) < fixed {
		return h, fixed, ErrIncomplete
	}
	command, family := b[len(signature)], b[len(signature)+1]
	n = fixed + int(binary.BigEndian.Uint16(b[fixed-2:]))
	switch {
	case command != local && command != proxied:
		return h, 0, invalid("version and command %#02x", command)
	case n > maxBinary:
		return h, 0, invalid("%d bytes, of at most %d", n, maxBinary)
	}
	// The addresses, which extensions may follow.
	size, ip := 0, 0
	switch family {
	case unspecified:
	case tcp4, udp4:
		size, ip = 2*4+2*2, 4
	case tcp6, udp6:
		size, ip = 2*16+2*2, 16
	case unixStream, unixPacket:
		size = 2 * 108
	default:
		if command == proxied { // the family of others is not to be looked at
			return h, 0, invalid("family %#02x", family)
		}
	}
	switch {
	case command == proxied && n < fixed+size:
		return h, 0, invalid("%d bytes, too few for family %#02x", n, family)
	case len(b) < n:
		return h, n, ErrIncomplete
	case command == proxied && ip > 0:
		a := b[fixed:n]
		h.Source = addrPort(a[:ip], a[2*ip:])
		h.Destination = addrPort(a[ip:2*ip], a[2*ip+2:])
	}
	return h, n, nil
}

func addrPort(ip, port []byte) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip) // which has 4 or 16 bytes
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port))
}
