package sockhub_test

// The bytes on the wire, against those in testdata/wire.

import (
	"bytes"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
)

// transcript is a file of testdata/wire: what goes over the wire between a hub
// that echoes and a peer. testdata/README.md tells the format.
type transcript struct {
	title        string
	dials, named bool
	name         string // that the hub gives
	steps        []step
	refused      bool
	ended        error
	received     [][]byte
	receives     bool // there is a line that says what
	peerName     *string
}

// step is one thing that happens on the wire.
type step struct {
	hub  bool   // by the hub, else by the peer
	data []byte // nil: the end
}

var endings = map[string]error{"EOF": io.EOF, "unexpected EOF": io.ErrUnexpectedEOF, "too large": sockhub.ErrMessageTooLarge}

func readTranscripts(t *testing.T, file string) (all []*transcript) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	tr := &transcript{title: strings.TrimSuffix(filepath.Base(file), ".txt")}
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if title, ok := strings.CutPrefix(line, "case "); ok {
			if tr.steps != nil {
				all = append(all, tr)
			}
			tr = &transcript{title: title}
			continue
		}
		if err := tr.parse(line); err != nil {
			t.Fatalf("%s:%d: %v", file, i+1, err)
		}
	}
	all = append(all, tr)
	for _, tr := range all {
		if tr.refused == (tr.ended != nil) {
			t.Fatalf("%s: %s: there must be either refused or ended", file, tr.title)
		}
	}
	return all
}

func (tr *transcript) parse(line string) error {
	word, rest, _ := strings.Cut(line, " ")
	rest = strings.TrimSpace(rest)
	switch {
	case word == "refused":
		tr.refused = true
	case word == "ended":
		reason, err := strconv.Unquote(rest)
		if err != nil {
			reason = rest
		}
		if tr.ended = endings[reason]; tr.ended == nil {
			return fmt.Errorf("no such end: %s", rest)
		}
	case word == "hub" && (strings.HasPrefix(rest, "accepts ") || strings.HasPrefix(rest, "dials ")):
		role, how, _ := strings.Cut(rest, " ")
		tr.dials, tr.named = role == "dials", how != "anonymous"
		if tr.dials && tr.named {
			var err error
			if tr.name, err = strconv.Unquote(how); err != nil {
				return err
			}
		}
	case word == "hub", word == "peer":
		s := step{hub: word == "hub"}
		if rest != "end" {
			pieces, err := tokens(rest)
			if err != nil {
				return err
			}
			s.data = bytes.Join(pieces, nil)
		}
		tr.steps = append(tr.steps, s)
	case word == "received", word == "name":
		pieces, err := tokens(rest)
		if err != nil {
			return err
		}
		if word == "received" {
			tr.received, tr.receives = pieces, true
		} else {
			name := string(bytes.Join(pieces, nil))
			tr.peerName = &name
		}
	default:
		return fmt.Errorf("no such line: %q", line)
	}
	return nil
}

// tokens are bytes in hexadecimal and quoted strings, each perhaps repeated:
// 00*7 "x"*100.
func tokens(s string) (all [][]byte, err error) {
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		var piece []byte
		if s[0] == '@' {
			var k, n int
			if _, err := fmt.Sscanf(s, "@%d:%d", &k, &n); err != nil {
				return nil, err
			}
			_, s, _ = strings.Cut(s, " ")
			all = append(all, body(0, k, n))
			continue
		}
		if quoted, err := strconv.QuotedPrefix(s); err == nil {
			text, err := strconv.Unquote(quoted)
			if err != nil {
				return nil, err
			}
			piece, s = []byte(text), s[len(quoted):]
		} else {
			if len(s) < 2 {
				return nil, fmt.Errorf("no byte: %q", s)
			}
			n, err := strconv.ParseUint(s[:2], 16, 8)
			if err != nil {
				return nil, err
			}
			piece, s = []byte{byte(n)}, s[2:]
		}
		if strings.HasPrefix(s, "*") {
			count, rest, _ := strings.Cut(s[1:], " ")
			n, err := strconv.Atoi(count)
			if err != nil {
				return nil, err
			}
			piece, s = bytes.Repeat(piece, n), rest
		} else if s != "" && s[0] != ' ' {
			return nil, fmt.Errorf("no space before %q", s)
		}
		all = append(all, piece)
	}
	return all, nil
}

var everyTranscript = flag.Bool("transcripts", false, "replay the generated transcripts too on every kind of socket, in both ways, not on one for each way")

func TestTranscriptsAreSpokenOnEverySocket(t *testing.T) {
	files, err := filepath.Glob("testdata/wire/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	kinds := withTLS()
	server, client := secure()
	replay := func(t *testing.T, tr *transcript, kind string, piece int) {
		how := "whole"
		if piece == 1 {
			how = "byte by byte"
		}
		t.Run(fmt.Sprint(tr.title, "/", kind, "/", how), func(t *testing.T) {
			t.Parallel()
			if kind == "tls" {
				tr.play(t, "tcp4", piece, server, client)
			} else {
				tr.play(t, kind, piece, nil, nil)
			}
		})
	}
	for _, file := range files {
		all := readTranscripts(t, file)
		for i, tr := range all {
			if len(all) > 1 && !*everyTranscript {
				replay(t, tr, kinds[i%len(kinds)], 1<<30)
				replay(t, tr, kinds[(i/len(kinds)+2*i)%len(kinds)], 1)
				continue
			}
			for _, kind := range kinds {
				replay(t, tr, kind, 1<<30)
				replay(t, tr, kind, 1)
			}
		}
	}
}

// play is the peer's side of the transcript. Of the TLS settings, if there are
// any, the hub has those of the role that it has.
func (tr *transcript) play(t *testing.T, kind string, piece int, server, client *tls.Config) {
	s := newStand(t, &sockhub.Options{MaxMessage: 1 << 20}, echo)
	mode := sockhub.Anonymous
	if tr.named {
		mode = sockhub.Named
	}
	var p *peer
	dialed := make(chan error, 1)
	if tr.dials {
		network, addr := address(t, kind)
		l, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			_, err := s.Dial(soon(t), network, l.Addr().String(), &sockhub.DialOptions{Mode: mode, Name: tr.name, TLS: client})
			dialed <- err
		}()
		l.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(patience))
		nc, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if server != nil {
			nc = tls.Server(nc, server)
		}
		p = greet(t, nc, "")
	} else {
		l := s.listen(kind, &sockhub.ListenOptions{Mode: mode, TLS: server})
		nc, err := net.Dial(l.Addr().Network(), l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if client != nil {
			nc = tls.Client(nc, client)
		}
		p = greet(t, nc, "")
	}
	if p, ok := p.Conn.(*tls.Conn); ok {
		if err := p.Handshake(); err != nil {
			t.Fatal(err)
		}
	}
	for i, step := range tr.steps {
		switch {
		case step.hub && step.data == nil:
			// With input unread a close is a reset.
			if n, err := p.Read(make([]byte, 1)); n != 0 || err != io.EOF && !(tr.refused && errors.Is(err, syscall.ECONNRESET)) {
				t.Fatalf("step %d: %d bytes, %v; want the end", i+1, n, err)
			}
		case step.hub:
			got := make([]byte, len(step.data))
			if n, err := io.ReadFull(p, got); !bytes.Equal(got, step.data) {
				t.Fatalf("step %d: the hub says % .40x (%d bytes, %v), want % .40x (%d bytes)", i+1, got[:n], n, err, step.data, len(step.data))
			}
		case step.data == nil:
			p.closeWrite()
		default:
			for out := step.data; len(out) > 0; out = out[min(piece, len(out)):] {
				if _, err := p.Write(out[:min(piece, len(out))]); err != nil {
					if tr.ended == sockhub.ErrMessageTooLarge || tr.refused {
						break // it had seen enough
					}
					t.Fatalf("step %d: %v", i+1, err)
				}
			}
		}
	}
	if tr.refused {
		if tr.dials {
			if err := <-dialed; !errors.Is(err, sockhub.ErrRefused) {
				t.Errorf("Dial: %v", err)
			}
		}
		if err := s.Hub.Close(); err != nil {
			t.Error(err)
		}
		<-s.closed
		if len(s.conns) > 0 {
			t.Error("a refused peer was reported")
		}
		return
	}
	c := s.first()
	if tr.dials {
		if err := <-dialed; err != nil {
			t.Errorf("Dial: %v", err)
		}
	}
	if d := s.end(c); !errors.Is(d.Err, tr.ended) {
		t.Errorf("ended with %v, want %v", d.Err, tr.ended)
	}
	if tr.peerName != nil && c.Name() != *tr.peerName {
		t.Errorf("the name is %q, want %q", c.Name(), *tr.peerName)
	}
	if tr.receives {
		if err := sameBodies(s.got(c, 0), tr.received); err != nil {
			t.Error(err)
		}
	}
}
