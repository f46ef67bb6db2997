package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sockhub/sockhub"
)

// size is how much the demo moves.
type size struct {
	messages int   // small ones, each of which comes back
	bytes    int64 // in large ones
}

// demo is one run.
type demo struct {
	size
	checks
	progress *progress
	out, err io.Writer
	dir      string // for socket files

	hub  *sockhub.Hub
	legs map[[2]string]*leg // by kind and name; immutable once the hub listens
	peer *process
	tls  *tls.Config // of the hub
	ca   string      // by which the peer knows it, in PEM
	udp  string      // the address for datagrams

	doors []route // the listeners for named peers
	more  uint64  // connections that came beside one for each leg

	written uint64 // messages, by the reports of all connections that have ended
}

// victimName is the name of the peer that is killed. The others' are those of
// their kinds of transport, or none: every name is one client's.
const victimName = "victim"

// runDemoOn runs the demo, prints what happened, and reports whether all of it
// was as it should be.
func runDemoOn(ctx context.Context, s size, stdout, stderr io.Writer) bool {
	start, before := time.Now(), holding()
	d := &demo{size: s, progress: newProgress(stderr), out: stdout, err: &shared{w: stderr}, legs: make(map[[2]string]*leg)}
	err := d.run(ctx)
	if ctx.Err() != nil {
		err = context.Cause(ctx) // whatever followed from it
	}
	if err != nil {
		d.fail("the demo came to its end", err)
	}
	d.add(check{what: "nothing left behind", counted: "goroutines and descriptors as before", err: leftovers(before)})
	fmt.Fprintln(stdout)
	d.print(stdout)
	verdict := "all passed"
	if !d.passed() {
		verdict = "FAILED"
	}
	fmt.Fprintf(stdout, "\n%s in %s\n", verdict, seconds(time.Since(start)))
	return d.passed()
}

// run does everything in its order. Its error is one that ends the demo; what
// else fails is in the checks.
func (d *demo) run(ctx context.Context) (err error) {
	if d.dir, err = os.MkdirTemp("", "sockhub-demo-"); err != nil {
		return err
	}
	defer func() {
		if err := os.Remove(d.dir); err != nil { // it is empty if the listeners have removed their files
			d.fail("socket files are removed", err)
			os.RemoveAll(d.dir)
		}
	}()
	if d.tls, d.ca, err = certificate(filepath.Join(d.dir, "ca")); err != nil {
		return err
	}
	if d.hub, err = sockhub.New(ctx, nil); err != nil {
		return err
	}
	defer d.hub.Close()
	routes, err := d.listen(ctx)
	if err != nil {
		return err
	}
	var loop sync.WaitGroup
	loop.Go(d.serve)
	defer loop.Wait()
	defer d.hub.Close()
	if d.peer, err = startPeer(ctx, routes, d.err); err != nil {
		return err
	}
	defer d.peer.kill()
	fmt.Fprintf(d.out, "sockhub demo: the hub is process %d, its peers are process %d\n", os.Getpid(), d.peer.id())
	if err := d.connect(ctx); err != nil {
		return err
	}
	for _, part := range []func(context.Context){
		d.transfers, d.datagrams, d.anyDoor, d.refusals, d.peerThatNeverReads, d.peerThatIsKilled, d.peerThatComesBack, d.shutdown, d.stats,
	} {
		if ctx.Err() == nil {
			part(ctx)
		}
	}
	return nil
}

// kinds are the kinds of transport, with the reason why one is not tried here.
func kinds() []struct{ name, skip string } {
	abstract := ""
	if runtime.GOOS != "linux" && runtime.GOOS != "android" {
		abstract = "only Linux and Android have abstract Unix sockets"
	}
	return []struct{ name, skip string }{{"tcp", ""}, {"tls", ""}, {"unix", ""}, {"abstract", abstract}, {"pipe", ""}}
}

// listen opens a listener for named and one for anonymous peers on every kind
// of transport, and returns how the peer is to connect.
func (d *demo) listen(ctx context.Context) (routes []route, err error) {
	for _, kind := range kinds() {
		if kind.skip != "" {
			d.skip(kind.name, kind.skip)
			continue
		}
		for _, name := range []string{kind.name, ""} {
			r := route{Network: kind.name, Name: name}
			file := "anonymous"
			if name != "" {
				file = "named"
			}
			switch kind.name {
			case "tcp":
				r.Address = "127.0.0.1:0"
			case "tls":
				r.Network, r.Address, r.CA = "tcp", "127.0.0.1:0", d.ca
			case "unix":
				r.Address = filepath.Join(d.dir, file)
			case "abstract":
				r.Network, r.Address = "unix", "@"+filepath.Base(d.dir)+"-"+file
			case "pipe":
				if name == "" && runtime.GOOS == "windows" {
					d.skip("pipe, anonymous", "only standard input and output are inherited on Windows")
					continue
				}
			}
			if r.Network != "pipe" {
				l, err := d.hub.Listen(ctx, r.Network, r.Address, d.listenOptions(kind.name, name))
				if err != nil {
					return nil, err
				}
				if r.Address = l.Addr().String(); name != "" {
					d.doors = append(d.doors, r)
				}
			}
			d.legs[[2]string{kind.name, name}] = newLeg(kind.name, name, d.progress)
			routes = append(routes, r)
		}
	}
	l, err := d.hub.Listen(ctx, "udp4", "127.0.0.1:0", &sockhub.ListenOptions{Tag: "udp"})
	if err != nil {
		return nil, err
	}
	d.udp = l.Addr().String()
	for _, l := range []*leg{newLeg("tcp", victimName, d.progress), newLeg("udp", "", d.progress), newLeg("", travellerName, d.progress)} {
		d.legs[[2]string{l.kind, l.name}] = l
	}
	return routes, nil
}

func (d *demo) listenOptions(kind, name string) *sockhub.ListenOptions {
	o := &sockhub.ListenOptions{Tag: kind, Mode: sockhub.Named}
	if name == "" {
		o.Mode = sockhub.Anonymous
	}
	if kind == "tls" {
		o.TLS = d.tls
	}
	return o
}

// serve is the event loop. It sends nothing but datagrams back, which are dropped
// where there is no room, so it needs no care about a queue that is full.
func (d *demo) serve() {
	traveller := d.legs[[2]string{"", travellerName}]
	for b := range d.hub.Events() {
		for _, c := range b.Connected { // the name that is registered
			c.SetValue(traveller)
			traveller.arrived <- c
		}
		for _, c := range b.Unknown { // all others
			l := d.legs[[2]string{c.Peer().Tag, c.Name()}]
			if l == nil || c.Value() != nil {
				c.Close() // nobody of ours
				continue
			}
			c.SetValue(l)
			l.arrived <- c
		}
		for _, r := range b.Received {
			switch l, ok := r.Conn.Value().(*leg); {
			case ok && l.kind == "udp":
				for _, m := range r.Messages {
					r.Conn.TrySend(m)
				}
			case ok:
				l.take(r.Messages)
			}
		}
		for _, e := range b.Disconnected {
			if l, ok := e.Conn.Value().(*leg); ok {
				l.ended <- e
			}
		}
	}
}

// mine are the legs to the peer process, over one kind of transport or, if
// kind is "", over all.
func (d *demo) mine(kind string) (legs []*leg) {
	for _, k := range kinds() {
		for _, name := range []string{k.name, ""} {
			if l := d.legs[[2]string{k.name, name}]; l != nil && (kind == "" || kind == k.name) {
				legs = append(legs, l)
			}
		}
	}
	return legs
}

// connect waits until all of the peer's connections are there. Its pipes are
// served here; the others have come through the listeners.
func (d *demo) connect(ctx context.Context) error {
	start := time.Now()
	var group errgroup.Group
	for i, l := range d.mine("pipe") {
		group.Go(func() error {
			_, err := d.hub.ServeConn(ctx, d.peer.pipes[i], d.listenOptions(l.kind, l.name))
			return err
		})
	}
	err := group.Wait()
	for _, l := range d.mine("") {
		if err == nil {
			err = l.await(ctx, d.peer)
		}
	}
	d.add(check{
		what: "named and anonymous peers connect", counted: fmt.Sprintf("%d connections", len(d.mine(""))),
		took: time.Since(start), err: err,
	})
	if err != nil {
		return errors.New("without its peers the demo cannot go on")
	}
	return nil
}

// transfers moves the messages, one kind of transport after the other.
func (d *demo) transfers(ctx context.Context) {
	var in []string
	for _, k := range kinds() {
		if len(d.mine(k.name)) > 0 {
			in = append(in, k.name)
		}
	}
	messages, blocks := d.messages, int((d.bytes+largeSize-1)/largeSize)
	for i, kind := range in {
		left := len(in) - i
		count := messages / left
		messages -= count
		took, err := d.transfer(ctx, kind, small, count)
		d.add(check{
			what: kind + ": small messages and their echo", counted: grouped(uint64(count)) + " messages",
			took: took, rate: messageRate(uint64(count), took) + " each way", err: err,
		})
		if err != nil {
			return
		}
		count = blocks / left
		blocks -= count
		took, err = d.transfer(ctx, kind, large, count)
		d.add(check{
			what: kind + ": large messages", counted: fmt.Sprintf("%s in messages of 1 MiB", bytesText(uint64(count)*largeSize)),
			took: took, rate: byteRate(uint64(count)*largeSize, took), err: err,
		})
		if err != nil {
			return
		}
	}
}

// transfer moves count messages over the legs of one kind of transport
// together.
func (d *demo) transfer(ctx context.Context, kind string, what byte, count int) (time.Duration, error) {
	title := kind + ": small messages came back"
	if what == large {
		title = kind + ": large messages queued"
	}
	d.progress.begin(title)
	defer d.progress.end()
	start := time.Now()
	var group errgroup.Group
	legs := d.mine(kind)
	for i, l := range legs {
		part := count / (len(legs) - i)
		count -= part
		group.Go(func() error { return l.transfer(ctx, what, part) })
	}
	err := group.Wait()
	return time.Since(start), err
}

// shutdown sends last messages to all peers and ends the hub at once: they have
// to have all of them nevertheless.
func (d *demo) shutdown(ctx context.Context) {
	const count = 1000
	start := time.Now()
	row := check{what: "graceful Shutdown"}
	defer func() { d.add(row) }()
	for _, l := range d.mine("") {
		if row.err = l.sayFarewell(ctx, count); row.err != nil {
			return
		}
	}
	if row.err = d.hub.Shutdown(ctx); row.err != nil {
		return
	}
	var accepted uint64
	for _, l := range d.mine("") {
		r, err := l.finished(ctx)
		if err != nil {
			row.err = err
			return
		}
		accepted += r.AcceptedMessages
		d.written += r.WrittenMessages
	}
	row.took = time.Since(start)
	row.counted = grouped(accepted) + " messages accepted, all written"
	if err := d.peer.wait(ctx); err != nil {
		row.err = fmt.Errorf("the peer process, which says why on standard error: %w", err)
	}
}

// stats compares the hub's figures at its end with what was seen.
func (d *demo) stats(context.Context) {
	s, row := d.hub.Stats(), check{what: "the hub's own figures"}
	row.counted = fmt.Sprintf("%s messages out, %s in", grouped(s.MessagesOut), grouped(s.MessagesIn))
	switch legs := uint64(len(d.legs)) + d.more; {
	case s.Accepted != legs || s.Disconnected != legs:
		row.err = fmt.Errorf("accepted %d and disconnected %d, of %d connections", s.Accepted, s.Disconnected, legs)
	case s.MessagesOut != d.written:
		row.err = fmt.Errorf("%d messages out, and %d written by the reports", s.MessagesOut, d.written)
	case s.Conns != 0 || s.Connecting != 0 || s.Listeners != 0 || s.QueuedIn != 0 || s.QueuedOut != 0:
		row.err = fmt.Errorf("something is left: %+v", s)
	}
	d.add(row)
}
