package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/sockhub/sockhub"
)

// printer prints what happens on connections, from any goroutine.
type printer struct {
	what   string // one of the values of -print
	json   bool
	zero   bool // messages end with a zero byte, not with a newline
	colour colours
	out    *output
	err    io.Writer

	numbers atomic.Uint64 // given to connections
}

// define defines the flags that say what is printed.
func (p *printer) define(flags *flag.FlagSet, what string) {
	flags.StringVar(&p.what, "print", what, "`what` to print: events (a line each), data (the messages alone), or none")
	flags.BoolVar(&p.json, "json", false, "print events as JSON, one object a line, with the messages in full")
	flags.BoolVar(&p.zero, "0", false, "messages end with a zero byte instead of a newline, in input and output")
}

// open makes the printer ready, after its flags were parsed.
func (p *printer) open(s streams) error {
	switch p.what {
	case "events", "data", "none":
	default:
		return usagef("-print has to be events, data or none, not %q", p.what)
	}
	p.colour, p.out, p.err = coloursFor(s.out), newOutput(s.out), s.err
	return nil
}

// event is a line of output with -json. Fields that do not apply are absent.
type event struct {
	Time     time.Time   `json:"time"`
	Event    string      `json:"event"` // listening, connected, refused, message, data, ended, disconnected
	Endpoint string      `json:"endpoint,omitempty"`
	Conn     uint64      `json:"conn,omitempty"` // its number, from 1
	Name     string      `json:"name,omitempty"`
	Network  string      `json:"network,omitempty"`
	Remote   string      `json:"remote,omitempty"`
	PID      int         `json:"pid,omitempty"`
	UID      *uint32     `json:"uid,omitempty"`
	Size     *int        `json:"size,omitempty"`   // of a message, in bytes
	Text     *string     `json:"text,omitempty"`   // a message, if it is valid UTF-8
	Base64   *string     `json:"base64,omitempty"` // otherwise
	Reason   string      `json:"reason,omitempty"`
	Report   *reportJSON `json:"report,omitempty"`
}

// reportJSON is what became of the messages that were sent on a connection.
type reportJSON struct {
	Accepted uint64 `json:"accepted"`
	Written  uint64 `json:"written"`
	Unsent   uint64 `json:"unsent"`
	Dropped  uint64 `json:"dropped"`
	Cut      bool   `json:"cut"`
}

func (p *printer) listening(at string) {
	switch {
	case p.json:
		p.object(event{Event: "listening", Endpoint: at})
	case p.what == "events":
		p.line(p.colour.good, "listening", at)
	default: // where to connect has to be known in any case
		fmt.Fprintln(p.err, "listening on", at)
	}
}

func (p *printer) connected(c *sockhub.Conn) {
	c.SetValue(p.numbers.Add(1))
	switch peer := c.Peer(); {
	case p.json:
		e := event{Event: "connected", Conn: number(c), Name: c.Name(), Network: peer.Network, Remote: peer.Remote.String()}
		if peer.Cred != nil {
			e.PID, e.UID = peer.Cred.PID, &peer.Cred.UID
		}
		p.object(e)
	case p.what == "events":
		p.line(p.colour.good, "connected", fmt.Sprintf("%d %s %s", number(c), peer.Network, peer))
	}
}

// refused is told of a peer that was not let in, which so has no number.
func (p *printer) refused(peer sockhub.Peer, reason error) {
	switch {
	case p.json:
		p.object(event{Event: "refused", Name: peer.Name, Network: peer.Network, Remote: peer.Remote.String(), Reason: reason.Error()})
	case p.what == "events":
		p.line(p.colour.bad, "refused", fmt.Sprintf("%s %s: %v", peer.Network, peer, reason))
	case p.what == "data":
		fmt.Fprintf(p.err, "refused %s %s: %v\n", peer.Network, peer, reason)
	}
}

// hubLog prints what a hub logs, as the slog.Handler of its Logger: the peers that
// it has refused, and what fails otherwise, which is on standard error.
type hubLog struct{ *printer }

// Enabled implements slog.Handler: a hub logs little.
func (hubLog) Enabled(context.Context, slog.Level) bool { return true }

// WithAttrs implements slog.Handler. A hub does not use it.
func (l hubLog) WithAttrs([]slog.Attr) slog.Handler { return l }

// WithGroup implements slog.Handler. A hub does not use it.
func (l hubLog) WithGroup(string) slog.Handler { return l }

// Handle implements slog.Handler.
func (l hubLog) Handle(_ context.Context, r slog.Record) error {
	var (
		peer   *sockhub.Peer
		reason error
	)
	r.Attrs(func(a slog.Attr) bool {
		switch v := a.Value.Any().(type) {
		case *sockhub.Conn:
			of := v.Peer()
			peer = &of
		case sockhub.Peer:
			peer = &v
		case error:
			reason = v
		}
		return true
	})
	if peer != nil && reason != nil {
		l.refused(*peer, reason)
		return nil
	}
	_, err := fmt.Fprintf(l.err, "sockhub: %s: %v\n", r.Message, reason)
	return err
}

func (p *printer) message(c *sockhub.Conn, msg []byte, raw bool) {
	kind := "message"
	if raw {
		kind = "data"
	}
	switch {
	case p.json:
		size := len(msg)
		e := event{Event: kind, Conn: number(c), Name: c.Name(), Size: &size}
		if utf8.Valid(msg) {
			text := string(msg)
			e.Text = &text
		} else {
			text := base64.StdEncoding.EncodeToString(msg)
			e.Base64 = &text
		}
		p.object(e)
	case p.what == "events":
		p.line("", kind, who(c)+" "+excerpt(msg))
	case p.what == "data":
		p.out.Write(p.terminated(msg, raw))
	}
}

// terminated is a message with its end: a copy in any case, as appending to a
// message that was received is.
func (p *printer) terminated(msg []byte, raw bool) []byte {
	if raw {
		return msg
	}
	return append(msg, p.separator())
}

// separator is what is between two messages, in input and output.
func (p *printer) separator() byte {
	if p.zero {
		return 0
	}
	return '\n'
}

func (p *printer) ended(c *sockhub.Conn) {
	switch {
	case p.json:
		p.object(event{Event: "ended", Conn: number(c), Name: c.Name()})
	case p.what == "events":
		p.line(p.colour.dim, "ended", who(c)+" has finished sending")
	}
}

func (p *printer) disconnected(d sockhub.Disconnection) {
	r := d.Report
	switch {
	case p.json:
		p.object(event{Event: "disconnected", Conn: number(d.Conn), Name: d.Conn.Name(), Reason: d.Err.Error(), Report: &reportJSON{
			Accepted: r.AcceptedMessages, Written: r.WrittenMessages, Unsent: r.UnsentMessages, Dropped: r.DroppedMessages, Cut: r.Cut,
		}})
	case p.what == "events":
		colour := p.colour.dim
		if !clean(d.Err) || r.WrittenMessages < r.AcceptedMessages {
			colour = p.colour.bad
		}
		p.line(colour, "disconnected", fmt.Sprintf("%s %v; %v", who(d.Conn), d.Err, r))
	}
}

// clean reports whether a connection ended because one of the sides wanted it.
func clean(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, sockhub.ErrClosed)
}

// who is a connection in a line about it.
func who(c *sockhub.Conn) string {
	if c.Name() == "" {
		return strconv.FormatUint(number(c), 10)
	}
	return fmt.Sprintf("%d %q", number(c), c.Name())
}

// number is that of a connection, counted from 1 in the order in which they
// were reported: an ID is nothing to read.
func number(c *sockhub.Conn) uint64 {
	n, _ := c.Value().(uint64)
	return n
}

// excerpt is a message, or the beginning of a long one, quoted: what a peer
// sends must not be able to give commands to a terminal.
func excerpt(msg []byte) string {
	const most = 256
	if len(msg) <= most {
		return strconv.Quote(string(msg))
	}
	return fmt.Sprintf("%s… (%s bytes)", strconv.Quote(string(msg[:most])), grouped(uint64(len(msg))))
}

func (p *printer) line(colour, word, rest string) {
	var b strings.Builder
	b.WriteString(colour)
	fmt.Fprintf(&b, "%-12s", word)
	if colour != "" {
		b.WriteString(p.colour.end)
	}
	b.WriteString("  " + rest + "\n")
	io.WriteString(p.out, b.String())
}

func (p *printer) object(e event) {
	e.Time = time.Now()
	text, err := json.Marshal(e)
	if err != nil {
		panic(err) // no value of an event can be the reason
	}
	p.out.Write(append(text, '\n'))
}
