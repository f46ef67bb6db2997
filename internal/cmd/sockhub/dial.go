package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/sockhub/sockhub"
)

var dialCommand = &command{
	name:     "dial",
	operands: " endpoint [file...]",
	about: `It connects, sends each line of the files, or of standard input, as a message, and
prints each message that comes on a line. After the last line it tells the other
side that nothing more will come, and goes on printing until that one has
finished too. A dash stands for standard input.

It is anonymous unless it is given a name.

` + endpointHelp,
	examples: `  echo hello | sockhub dial tcp://127.0.0.1:7000
  sockhub dial -name alice unix:///tmp/hub.sock           # type lines
  sockhub dial -no-stdin unix:@ticks                      # only listen
  sockhub dial -whole tcp://127.0.0.1:7000 one.jpg two.jpg
  printf 'HEAD / HTTP/1.0\r\n\r\n' | sockhub dial -raw tls+tcp://example.org:443
  sockhub dial -ca cert.pem tls+tcp://127.0.0.1:7000
  sockhub dial -json tcp://127.0.0.1:7000 lines.txt | jq .
`,
	prepare: func(flags *flag.FlagSet) func(context.Context, streams, []string) error {
		d := &dialing{gone: make(chan sockhub.Disconnection, 1)}
		flags.StringVar(&d.name, "name", "", "give this `name` first; a hub that wants names takes the first line for it otherwise")
		flags.BoolVar(&d.raw, "raw", false, "send and print bytes as they come, not messages")
		flags.BoolVar(&d.whole, "whole", false, "send each file as one message")
		flags.BoolVar(&d.noStdin, "no-stdin", false, "send nothing, and print until the other side finishes")
		durationVar(flags, &d.timeout, "timeout", sockhub.DefaultDialTimeout, "`time` that connecting may take; negative: for ever")
		durationVar(flags, &d.patience, "wait", 0, "`time` to wait for the other side after the last line (default: until it has finished; 1s for datagrams)")
		durationVar(flags, &d.writeTimeout, "write-timeout", sockhub.DefaultWriteTimeout, "`time` after which to fail when the other side takes nothing; negative: never")
		d.print.define(flags, "data")
		d.speech.define(flags)
		d.tls.defineClient(flags)
		return d.run
	},
}

// dialing is one run of the dial command.
type dialing struct {
	name                            string
	whole, noStdin                  bool
	timeout, patience, writeTimeout time.Duration
	print                           printer
	speech
	tls tlsFlags

	// Immutable once it is connected.
	awaited     bool // the other side's end does not end ours: there is input to send
	interactive bool // somebody types the input

	gone chan sockhub.Disconnection // capacity 1; sent to by the Handler

	mu    sync.Mutex
	ended bool // the other side has finished
	sent  bool // the input has been sent to its end
}

func (d *dialing) run(ctx context.Context, s streams, operands []string) error {
	if len(operands) == 0 {
		_, err := endpoints(nil)
		return err
	}
	at, files := operands[0], operands[1:]
	e, err := parseEndpoint(at)
	if err != nil {
		return err
	}
	switch {
	case d.noStdin && len(files) > 0:
		return usagef("-no-stdin sends nothing, and there are files to send")
	case d.raw && d.whole:
		return usagef("-raw has no messages, and -whole is about messages")
	}
	o := &sockhub.DialOptions{Name: d.name, Timeout: d.timeout, ReuseBuffers: true}
	if o.Framing, o.Mode, err = d.resolve(d.name != ""); err != nil {
		return err
	}
	if o.TLS, err = d.tls.client(e); err != nil {
		return err
	}
	d.interactive = len(files) == 0 && isTerminal(s.in)
	d.awaited = !d.noStdin && !d.interactive
	o.HalfOpen = d.awaited
	o.Handler = func(c *sockhub.Conn) sockhub.Handler {
		d.print.connected(c)
		return dialingPeer{d}
	}
	hubOptions := sockhub.Options{WriteTimeout: d.writeTimeout}
	d.speech.limit(&hubOptions)
	hub, err := sockhub.New(context.Background(), &hubOptions)
	if err != nil {
		return err
	}
	defer hub.Close()
	if err := d.print.open(s); err != nil {
		return err
	}
	conn, err := hub.Dial(ctx, e.network, e.address, o)
	switch {
	case err == nil:
		err = d.talk(ctx, conn, e, s.in, files)
	case ctx.Err() != nil:
		err = errInterrupted
	}
	hub.Close() // nothing is printed after it
	return errors.Join(err, d.print.out.close())
}

// talk sends the input and waits for the end.
func (d *dialing) talk(ctx context.Context, conn *sockhub.Conn, e endpoint, stdin io.Reader, files []string) error {
	done := make(chan error, 1)
	if !d.noStdin {
		go func() { done <- d.send(conn, stdin, files) }() // a Read of the terminal lasts as long as it likes
	}
	if e.packets() && d.patience == 0 {
		d.patience = time.Second
	}
	var enough <-chan time.Time
	for {
		select {
		case err := <-done:
			if errors.Is(err, errGone) {
				continue // how the connection has ended says more
			}
			if err != nil {
				conn.Close()
				return err
			}
			d.finish(conn)
			if d.patience > 0 {
				enough = time.After(d.patience)
			}
		case <-enough:
			conn.Finish()
		case end := <-d.gone:
			return d.verdict(end, "the other side has closed the connection")
		case <-d.print.out.failed:
			return nil // its close says why
		case <-ctx.Done():
			return d.interrupted(conn)
		}
	}
}

// errGone is the result of sending on a connection that has ended.
var errGone = errors.New("the connection has ended")

// sent turns the error of a Send into ours.
func sent(conn *sockhub.Conn, err error) error {
	if err != nil && (conn.Context().Err() != nil || errors.Is(err, sockhub.ErrNotConnected) || errors.Is(err, sockhub.ErrClosed)) {
		return errGone
	}
	return err
}

// send sends the input until its end.
func (d *dialing) send(conn *sockhub.Conn, stdin io.Reader, files []string) error {
	in := newInput(d.print.separator(), d.raw, int64(d.maxMessage))
	return eachFile(stdin, files, func(r io.Reader) error {
		if d.whole {
			return sendWhole(conn, r)
		}
		return in.split(r, func(msg []byte) error { return sent(conn, conn.Send(conn.Context(), msg)) })
	})
}

// sendWhole sends all that is in r as one message: a file of any size, what has
// no size only as far as it fits into memory.
func sendWhole(conn *sockhub.Conn, r io.Reader) error {
	f, ok := r.(*os.File)
	size, regular := int64(0), false
	if ok {
		size, regular = left(f)
	}
	if size > untold {
		return sent(conn, conn.SendFrom(conn.Context(), uint64(size), f))
	}
	msg, err := io.ReadAll(r)
	switch {
	case err != nil:
		return err
	case regular: // -max-message does not hold for these
		return sent(conn, conn.SendFrom(conn.Context(), uint64(len(msg)), bytes.NewReader(msg)))
	}
	return sent(conn, conn.Send(conn.Context(), msg))
}

// untold is up to where the size of a file is not believed: those of the kernel, as in
// /proc and /sys, say that they are empty, or of one page.
const untold = 64 << 10

// left is how much of a regular file is still to be read: somebody else may have read
// some of standard input.
func left(f *os.File) (size int64, regular bool) {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return 0, false
	}
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, false
	}
	return info.Size() - at, true
}

// finish is called when the input has been sent.
func (d *dialing) finish(conn *sockhub.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sent = true
	if d.ended {
		conn.Finish()
	} else {
		conn.CloseWrite()
	}
}

// verdict is about how the connection has ended, for a reason that is ours to
// tell if nothing has gone wrong.
func (d *dialing) verdict(end sockhub.Disconnection, reason string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch r := end.Report; {
	case !clean(end.Err):
		return end.Err
	case r.WrittenMessages < r.AcceptedMessages:
		return fmt.Errorf("%s: %s of %s messages were not written", reason,
			grouped(r.AcceptedMessages-r.WrittenMessages), grouped(r.AcceptedMessages))
	case d.awaited && !d.sent:
		return fmt.Errorf("%s before everything was sent", reason)
	}
	return nil
}

var errInterrupted = errors.New("interrupted")

// interrupted ends the connection after what was typed so far. Input from
// elsewhere is not all sent then, which is a failure.
func (d *dialing) interrupted(conn *sockhub.Conn) error {
	conn.Finish()
	select {
	case end := <-d.gone:
		if err := d.verdict(end, "interrupted"); err != nil {
			return err
		}
		fmt.Fprintln(d.print.err, "sockhub dial: interrupted") // no failure, but not the other side's end either
		return nil
	case <-time.After(2 * time.Second):
		return errInterrupted
	}
}

// dialingPeer is the Handler of the connection.
type dialingPeer struct{ *dialing }

func (d dialingPeer) Message(r *sockhub.Reply, msg []byte) {
	d.print.message(r.Conn(), msg, d.raw)
}

func (d dialingPeer) Drained(*sockhub.Reply) {}

func (d dialingPeer) Ended(r *sockhub.Reply) {
	d.print.ended(r.Conn())
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = true
	if d.sent {
		r.Finish()
	}
}

func (d dialingPeer) Disconnected(end sockhub.Disconnection) {
	d.print.disconnected(end)
	d.gone <- end
}
