package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sockhub/sockhub"
)

var listenCommand = &command{
	name:     "listen",
	operands: " endpoint...",
	about: `It accepts peers on all the endpoints and prints what they do. Lines of standard
input go to every peer that is connected, and wait for the first one; with -echo
or -answer they do not. A peer that has finished sending is finished. Peers that
were not let in are printed as refused, with the reason, which they are not told. It
goes on until it is interrupted, or with -once until its one peer has gone.

Peers are anonymous; with -named each has to give a name first, as 'dial -name'
and the library do by default.

` + endpointHelp,
	examples: `  sockhub listen -echo tcp://127.0.0.1:7000 unix:///tmp/hub.sock
  sockhub listen -named -json tcp://127.0.0.1:7000 | jq -r 'select(.event == "message").text'
  sockhub listen -once -raw -print data -no-stdin tcp://:7000 > file   # nc host 7000 < file
  ticker | sockhub listen unix:@ticks                                  # everybody gets each line
  sockhub listen -echo -self-signed cert.pem tls+tcp://127.0.0.1:7000
  sockhub listen -echo -print none tcp://127.0.0.1:7000                # for sockhub bench
`,
	prepare: func(flags *flag.FlagSet) func(context.Context, streams, []string) error {
		l := &listening{peers: make(map[*sockhub.Conn]bool), arrived: make(chan struct{}, 1), served: make(chan struct{}), gone: make(chan sockhub.Disconnection, 1)}
		flags.BoolVar(&l.named, "named", false, "each peer gives a name first")
		flags.BoolVar(&l.raw, "raw", false, "bytes as they come, not messages")
		flags.BoolVar(&l.echo, "echo", false, "send everything back to where it came from")
		flags.BoolVar(&l.answer, "answer", false, "answer each message with the next line of standard input")
		flags.BoolVar(&l.once, "once", false, "serve the first peer alone, in both directions until both sides have finished; then end")
		flags.BoolVar(&l.noStdin, "no-stdin", false, "do not read standard input")
		flags.StringVar(&l.fileMode, "file-mode", "0600", "`mode` of socket files, octal")
		flags.BoolVar(&l.reusePort, "reuse-port", false, "let other processes that ask for it too listen on the same TCP ports")
		durationVar(flags, &l.idle, "idle", 0, "`time` after which to disconnect a peer that sends nothing (default: never)")
		durationVar(flags, &l.writeTimeout, "write-timeout", sockhub.DefaultWriteTimeout, "`time` after which to disconnect a peer that takes nothing; negative: never")
		l.print.define(flags, "events")
		l.speech.define(flags)
		l.tls.defineServer(flags)
		return l.run
	},
}

// listening is one run of the listen command.
type listening struct {
	named, echo, answer, once, noStdin, reusePort bool
	fileMode                                      string
	idle, writeTimeout                            time.Duration
	print                                         printer
	speech
	tls tlsFlags

	// Immutable once peers can come.
	ctx context.Context // ends with the command
	in  *input

	arrived chan struct{}              // capacity 1; sent to by Handlers: peers is not what it was
	served  chan struct{}              // closed by the Handler of the one peer of -once
	gone    chan sockhub.Disconnection // capacity 1; sent to by the Handler of the one peer of -once

	mu    sync.Mutex
	peers map[*sockhub.Conn]bool // connected; true: has finished sending
	taken bool                   // the one peer of -once is there
	read  bool                   // standard input has been sent
}

// fromStdin reports whether lines of standard input are sent to all peers.
func (l *listening) fromStdin() bool { return !l.echo && !l.answer && !l.noStdin }

func (l *listening) run(ctx context.Context, s streams, operands []string) error {
	all, err := endpoints(operands)
	if err != nil {
		return err
	}
	o, err := l.options(all)
	if err != nil {
		return err
	}
	hubOptions := sockhub.Options{WriteTimeout: l.writeTimeout, Logger: slog.New(hubLog{&l.print})}
	l.speech.limit(&hubOptions)
	hub, err := sockhub.New(context.Background(), &hubOptions)
	if err != nil {
		return err
	}
	defer hub.Close()
	if err := l.print.open(s); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.ctx, l.in = ctx, newInput(l.print.separator(), l.raw, int64(l.maxMessage))
	var listeners []*sockhub.Listener
	for _, e := range all {
		with := *o
		if !e.tls {
			with.TLS = nil
		}
		listener, err := hub.Listen(ctx, e.network, e.address, &with)
		if err != nil {
			l.print.out.close()
			return err
		}
		listeners = append(listeners, listener)
		e.address = listener.Addr().String()
		l.print.listening(e.String())
	}
	var sending sync.WaitGroup
	sent := make(chan error, 1)
	if l.answer {
		l.in.start(s.in, nil)
	} else if l.fromStdin() {
		sending.Go(func() { sent <- l.broadcast(s.in) })
	}
	err = l.wait(ctx, sent, listeners)
	cancel()
	sending.Wait()
	// Who is connected still gets what has been queued.
	if o.HalfOpen {
		for _, c := range l.connected() {
			c.Finish()
		}
	}
	grace, stop := context.WithTimeout(context.Background(), 2*time.Second)
	defer stop()
	hub.Shutdown(grace)
	return errors.Join(err, l.print.out.close())
}

// options are those of every endpoint.
func (l *listening) options(all []endpoint) (*sockhub.ListenOptions, error) {
	if l.echo && l.answer {
		return nil, usagef("-echo and -answer exclude each other")
	}
	mode, err := strconv.ParseUint(l.fileMode, 8, 9)
	if err != nil {
		return nil, usagef("-file-mode %q is not octal", l.fileMode)
	}
	o := &sockhub.ListenOptions{
		Handler: l.handler, FileMode: fs.FileMode(mode), ReusePort: l.reusePort, IdleTimeout: l.idle,
		// What the Handler is given it has printed or sent when it returns.
		ReuseBuffers: true,
		HalfOpen:     l.once && l.fromStdin(),
	}
	if o.FileMode == sockhub.DefaultFileMode {
		o.FileMode = 0 // where there are no modes, the default is not refused
	}
	if o.Framing, o.Mode, err = l.resolve(l.named); err != nil {
		return nil, err
	}
	o.TLS, err = l.tls.server(all)
	return o, err
}

// wait waits for what ends the command.
func (l *listening) wait(ctx context.Context, sent <-chan error, listeners []*sockhub.Listener) error {
	served := l.served
	for {
		select {
		case err := <-sent:
			if err != nil {
				return err
			}
			sent = nil // peers may still have something to say
		case <-served:
			served = nil
			for _, listener := range listeners {
				listener.Close()
			}
		case d := <-l.gone:
			if !clean(d.Err) {
				return d.Err
			}
			return nil
		case <-l.print.out.failed:
			return nil // its close says why
		case <-ctx.Done():
			return nil // that is how one ends it
		}
	}
}

// broadcast sends standard input to everybody, and waits for those that are
// slow: what is piped in is not to be lost.
func (l *listening) broadcast(stdin io.Reader) error {
	if !l.await() {
		return nil
	}
	l.in.start(stdin, nil)
	for {
		var msg []byte
		select {
		case next, open := <-l.in.lines:
			if !open {
				l.finish()
				return l.in.err
			}
			msg = next
		case <-l.ctx.Done():
			return nil
		}
		for sent := 0; sent == 0; {
			for _, c := range l.connected() {
				if c.Send(l.ctx, msg) == nil {
					sent++
				}
			}
			if sent == 0 && (l.once || !l.await()) {
				return nil
			}
		}
	}
}

// connected are the peers that are there now.
func (l *listening) connected() []*sockhub.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.peers))
}

// await waits until somebody is connected, and reports whether that is so.
func (l *listening) await() bool {
	for len(l.connected()) == 0 {
		select {
		case <-l.arrived:
		case <-l.ctx.Done():
			return false
		}
	}
	return true
}

// finish is called at the end of standard input, and with -once says so to the
// peer.
func (l *listening) finish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.read = true
	for c, ended := range l.peers {
		switch {
		case !l.once:
		case ended:
			c.Finish()
		default:
			c.CloseWrite()
		}
	}
}

// handler is called when a peer has connected.
func (l *listening) handler(c *sockhub.Conn) sockhub.Handler {
	l.mu.Lock()
	refused := l.once && l.taken
	if !refused {
		l.taken, l.peers[c] = true, false
	}
	l.mu.Unlock()
	if refused {
		c.Close()
		return sockhub.BaseHandler{}
	}
	if l.once {
		close(l.served)
	}
	l.print.connected(c)
	select {
	case l.arrived <- struct{}{}:
	default:
	}
	return listeningPeer{l}
}

// listeningPeer is the Handler of all peers.
type listeningPeer struct{ *listening }

func (l listeningPeer) Message(r *sockhub.Reply, msg []byte) {
	l.print.message(r.Conn(), msg, l.raw)
	switch {
	case l.echo:
		reply(r, msg)
	case l.answer:
		select {
		case line, open := <-l.in.lines:
			if open {
				reply(r, line)
				r.Flush() // the next line may take its time
			}
		case <-r.Conn().Context().Done():
		case <-l.ctx.Done():
		}
	}
}

// reply answers, and waits while the peer does not take what it was sent: that
// holds up this peer alone.
func reply(r *sockhub.Reply, msg []byte) {
	if errors.Is(r.Send(msg), sockhub.ErrBackpressure) {
		r.Flush() // before what is sent on the connection
		r.Conn().Send(r.Conn().Context(), msg)
	}
}

func (l listeningPeer) Drained(*sockhub.Reply) {}

func (l listeningPeer) Ended(r *sockhub.Reply) {
	l.print.ended(r.Conn())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.peers[r.Conn()] = true
	if l.read && l.once {
		r.Finish()
	}
}

func (l listeningPeer) Disconnected(d sockhub.Disconnection) {
	l.print.disconnected(d)
	l.mu.Lock()
	delete(l.peers, d.Conn)
	l.mu.Unlock()
	if l.once {
		l.gone <- d
	}
}
