package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"
)

// tlsFlags are for endpoints that begin with tls+.
type tlsFlags struct {
	cert, key, ca, selfSigned, serverName string
	insecure                              bool
}

func (t *tlsFlags) defineServer(flags *flag.FlagSet) {
	flags.StringVar(&t.cert, "cert", "", "`file` with the certificates of this side, in PEM")
	flags.StringVar(&t.key, "key", "", "`file` with the key of -cert, in PEM")
	flags.StringVar(&t.ca, "client-ca", "", "`file` with certificates, in PEM, by one of which each peer has to prove who it is")
	flags.StringVar(&t.selfSigned, "self-signed", "", "make a certificate for a week and write it to `file`, for -ca of those who dial; its key is in memory alone")
}

func (t *tlsFlags) defineClient(flags *flag.FlagSet) {
	flags.StringVar(&t.cert, "cert", "", "`file` with the certificates of this side, in PEM, if the other wants one")
	flags.StringVar(&t.key, "key", "", "`file` with the key of -cert, in PEM")
	flags.StringVar(&t.ca, "ca", "", "`file` with the certificates, in PEM, to trust instead of the system's")
	flags.StringVar(&t.serverName, "server-name", "", "`name` that the certificate of the other side has to have, instead of the host's")
	flags.BoolVar(&t.insecure, "insecure", false, "do not look at the certificate of the other side: whoever answers is believed")
}

// server is the configuration for listening on the given endpoints; nil if none
// of them wants TLS.
func (t *tlsFlags) server(all []endpoint) (*tls.Config, error) {
	var hosts []string
	wanted := false
	for _, e := range all {
		if e.tls {
			wanted = true
			if host, _, err := net.SplitHostPort(e.address); err == nil && host != "" {
				hosts = append(hosts, host)
			}
		}
	}
	if !wanted {
		return nil, t.unused()
	}
	config := &tls.Config{}
	switch {
	case t.cert != "" && t.key != "" && t.selfSigned == "":
		pair, err := tls.LoadX509KeyPair(t.cert, t.key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	case t.cert == "" && t.key == "" && t.selfSigned != "":
		pair, err := selfSigned(hosts, t.selfSigned)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	default:
		return nil, usagef("TLS takes either -cert and -key, or -self-signed")
	}
	if t.ca != "" {
		pool, err := loadPool(t.ca)
		if err != nil {
			return nil, err
		}
		config.ClientCAs, config.ClientAuth = pool, tls.RequireAndVerifyClientCert
	}
	return config, nil
}

// client is the configuration for dialing.
func (t *tlsFlags) client(e endpoint) (*tls.Config, error) {
	if !e.tls {
		return nil, t.unused()
	}
	config := &tls.Config{ServerName: t.serverName, InsecureSkipVerify: t.insecure}
	if config.ServerName == "" {
		// A Unix socket has no host; then the name of this machine's own will do.
		config.ServerName = "localhost"
		if host, _, err := net.SplitHostPort(e.address); err == nil && host != "" {
			config.ServerName = host
		}
	}
	var err error
	if t.ca != "" {
		if config.RootCAs, err = loadPool(t.ca); err != nil {
			return nil, err
		}
	}
	if (t.cert == "") != (t.key == "") {
		return nil, usagef("-cert and -key belong together")
	}
	if t.cert != "" {
		pair, err := tls.LoadX509KeyPair(t.cert, t.key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// unused is an error if TLS was configured and no endpoint has it: who believes
// to be encrypted has to know.
func (t *tlsFlags) unused() error {
	if *t != (tlsFlags{}) {
		return usagef("flags for TLS, and no endpoint that begins with tls+")
	}
	return nil
}

func loadPool(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: no certificates in it", file)
	}
	return pool, nil
}

// selfSigned makes a certificate for this machine's own names and the given
// hosts, and writes it to file.
func selfSigned(hosts []string, file string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{CommonName: "sockhub"},
		NotBefore:    now.Add(-time.Hour), // clocks differ
		NotAfter:     now.Add(7 * 24 * time.Hour),
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IsCA:         true, BasicConstraintsValid: true, // so that it is its own authority
	}
	for _, h := range append(hosts, "localhost", "127.0.0.1", "::1") {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, os.WriteFile(file, text, 0o644)
}
