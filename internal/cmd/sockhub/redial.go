package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"time"

	"github.com/sockhub/sockhub"
)

// peerThatComesBack is a process that listens, and that a hub dials. It is
// killed and started again: the hub has to find it again by itself, as the
// same client.
func (d *demo) peerThatComesBack(ctx context.Context) {
	const what = "a dialed peer that is killed and comes back"
	if runtime.GOOS == "windows" {
		d.skip(what, "on Windows the file of its socket would have to be removed by hand")
		return
	}
	took, err := d.comeBack(ctx, filepath.Join(d.dir, "dialed"))
	d.add(check{what: what, counted: "the same client on a new connection", took: took, err: err})
}

// comeBack returns how long the peer was away.
func (d *demo) comeBack(ctx context.Context, address string) (away time.Duration, err error) {
	routes := []route{{Network: "unix", Address: address, Listen: true}}
	server, err := startPeer(ctx, routes, d.err)
	if err != nil {
		return 0, err
	}
	defer func() { server.kill() }() // the one that runs then
	hub, err := sockhub.New(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer hub.Close()
	// The process may take a moment to listen: Dial tries until it does.
	first, err := hub.Dial(ctx, "unix", address, &sockhub.DialOptions{
		Mode:      sockhub.Anonymous,
		Reconnect: &sockhub.Backoff{Min: time.Millisecond, Max: 100 * time.Millisecond},
	})
	if err != nil {
		return 0, err
	}
	var killed time.Time
	for b := range hub.Events() {
		for _, c := range b.Connected {
			if c.ID() != first.ID() {
				return 0, fmt.Errorf("came back as client %d, and was %d", c.ID(), first.ID())
			}
			if err := c.TrySend([]byte{question}); err != nil {
				return 0, err
			}
		}
		for c, msg := range b.Messages() {
			if len(msg) == 0 || msg[0] != answer {
				return 0, fmt.Errorf("%.20q came, which is no answer", msg)
			}
			if c == first {
				server.kill()
				killed = time.Now()
				continue
			}
			away = time.Since(killed)
			return away, leave(ctx, c, server)
		}
		for _, e := range b.Disconnected {
			if e.Conn != first || killed.IsZero() {
				return 0, fmt.Errorf("%v: the connection has ended: %w", e.Conn, e.Err)
			}
			// It left its socket's file behind, which must not be in its way.
			again, err := startPeer(ctx, routes, d.err)
			if err != nil {
				return 0, err
			}
			server = again
		}
	}
	return 0, errors.New("the hub was closed")
}

// leave ends the connection so that the peer process is content.
func leave(ctx context.Context, c *sockhub.Conn, server *process) error {
	text, err := json.Marshal(tally{})
	if err != nil {
		return err
	}
	if err := c.Send(ctx, append([]byte{farewell}, text...)); err != nil {
		return err
	}
	if err := c.Finish(); err != nil { // which ends the redialing, too
		return err
	}
	return server.wait(ctx)
}
