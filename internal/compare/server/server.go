// Package server holds what all the servers that are compared have in common:
// their flags, how they talk to the program that started them, and the formats
// that they answer in. It has no part in how they read and write, which is what
// is compared.
//
// A server prints "ready" and its address, and ends when its standard input
// does, so that none is left over whatever becomes of who started it. A line of
// input asks it to return unused memory to the system, and is answered "freed".
package server

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"math/big"
	"net"
	"os"
	"runtime/debug"
	"strings"
	"time"
)

// What a server does with a message: 8 bytes of little-endian length, then the
// body. In every mode but HTTP an empty message is sent back, which tells that
// the server knows the connection.
const (
	Echo     = "echo"     // sends it back
	HTTP     = "http"     // answers GET /<n> with n bytes; no messages here
	Stream   = "stream"   // a request (see Request) is answered with its message, count times
	Fanout   = "fanout"   // sends it to every connection
	Commands = "commands" // as Stream; each is answered by the peer, and all the answers with an empty message
)

// Start reads the command line and returns what to do and where. The caller has
// defined its own flags before.
func Start() (mode, network, address string) {
	m := flag.String("mode", Echo, "echo, http, stream, fanout or commands")
	secret := flag.Bool("tls", false, "with TLS")
	a := flag.String("addr", "127.0.0.1:0", "host:port, or unix: and a path")
	flag.Parse()
	if *secret {
		TLS = newTLS()
	}
	go attend()
	if path, ok := strings.CutPrefix(*a, "unix:"); ok {
		return *m, "unix", path
	}
	return *m, "tcp", *a
}

// TLS is not nil if connections are to have it. Start sets it.
var TLS *tls.Config

// newTLS makes a certificate that nobody trusts.
func newTLS() *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	Check(err)
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	Check(err)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

// attend does what standard input asks for.
func attend() {
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		for range 4 { // each collection halves the stacks that are too large, and the next ones free what the pools held
			debug.FreeOSMemory()
		}
		fmt.Println("freed")
	}
	os.Exit(0)
}

// Ready tells that connections are accepted there.
func Ready(a net.Addr) { fmt.Println("ready", a) }

// Listen is net.Listen, or tls.Listen, and Ready.
func Listen(network, address string) net.Listener {
	l, err := net.Listen(network, address)
	Check(err)
	Ready(l.Addr())
	if TLS != nil {
		l = tls.NewListener(l, TLS)
	}
	return l
}

// Check ends the program if there is an error.
func Check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Complain tells of something that should not have happened. A server goes on;
// the run fails.
func Complain(err error) { fmt.Fprintln(os.Stderr, err) }
