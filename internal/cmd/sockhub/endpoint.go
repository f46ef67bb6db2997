package main

import (
	"net"
	"strings"
)

// endpoint is where to listen or whom to dial.
type endpoint struct {
	network, address string // as net has them
	tls              bool
}

const endpointHelp = `Endpoints:

  tcp://127.0.0.1:7000    also tcp4, tcp6; without a host, all addresses; port 0 is any
  127.0.0.1:7000          the same, for short
  unix:///run/hub.sock    a socket file; also unix:hub.sock, ./hub.sock, /run/hub.sock
  unix:@hub               an abstract socket (Linux)
  udp://127.0.0.1:7000    datagrams; also udp4, udp6, unixgram, unixpacket
  tls+tcp://host:7000     TLS; also tls+unix
`

// parseEndpoint reads an endpoint in one of the forms of endpointHelp.
func parseEndpoint(s string) (endpoint, error) {
	e := endpoint{}
	scheme, rest, found := strings.Cut(s, ":")
	network, isTLS := strings.CutPrefix(scheme, "tls+")
	switch {
	case found && network == "tls":
		network, isTLS = "tcp", true
	case found && known[network] != "":
	case strings.HasPrefix(s, "@") || strings.Contains(s, "/") && !strings.Contains(s, "://"):
		network, rest = "unix", s
	case found && !strings.Contains(s, "://"):
		network, rest = "tcp", s
	default:
		return e, usagef("%q is no endpoint such as tcp://127.0.0.1:7000 or unix:///run/hub.sock", s)
	}
	e = endpoint{network: network, address: strings.TrimPrefix(rest, "//"), tls: isTLS}
	switch known[network] {
	case "path":
		if e.address == "" {
			return e, usagef("%q lacks the path of a socket", s)
		}
	default:
		if _, _, err := net.SplitHostPort(e.address); err != nil {
			return e, usagef("%q: %w", s, err)
		}
	}
	if isTLS && e.packets() {
		return e, usagef("%q: there is no TLS over datagrams", s)
	}
	return e, nil
}

// known are the networks, with what their addresses are.
var known = map[string]string{
	"tcp": "port", "tcp4": "port", "tcp6": "port", "udp": "port", "udp4": "port", "udp6": "port",
	"unix": "path", "unixgram": "path", "unixpacket": "path",
}

// packets reports whether messages are datagrams, which nobody repeats when
// they are lost, and whose end nobody announces.
func (e endpoint) packets() bool {
	return strings.HasPrefix(e.network, "udp") || e.network == "unixgram"
}

// String writes it so that it can be parsed again.
func (e endpoint) String() string {
	s := e.network + ":"
	if known[e.network] == "port" || strings.HasPrefix(e.address, "/") {
		s += "//"
	}
	if e.tls {
		s = "tls+" + s
	}
	return s + e.address
}
