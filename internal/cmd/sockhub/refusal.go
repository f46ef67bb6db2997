package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sockhub/sockhub"
)

// guardedName is registered on the hub for peers on Unix sockets alone.
const guardedName = "guarded"

// refusals are peers that must not be let in: one by the rule of its name, one
// because its name is taken. Whoever has that name must not notice.
func (d *demo) refusals(ctx context.Context) {
	owner := d.legs[[2]string{"tcp", "tcp"}]
	if _, err := d.hub.Expect(guardedName, &sockhub.ClientOptions{Admit: sockhub.Unix()}); err != nil {
		d.fail("a peer that is refused", err)
		return
	}
	for _, r := range []struct {
		what, name string
		counter    func(sockhub.Stats) uint64
	}{
		{"a peer that its name's rule refuses", guardedName, func(s sockhub.Stats) uint64 { return s.RefusedPolicy }},
		{"a peer whose name is taken", owner.name, func(s sockhub.Stats) uint64 { return s.RefusedName }},
	} {
		before, start := r.counter(d.hub.Stats()), time.Now()
		err := claim(ctx, owner.conn.Peer().Local.String(), r.name)
		took := time.Since(start)
		if err == nil {
			// The peer may hear it a moment before it is counted.
			err = until(ctx, func() bool { return r.counter(d.hub.Stats()) == before+1 })
		}
		if err == nil {
			err = owner.transfer(ctx, small, 100)
		}
		d.add(check{what: r.what, counted: "refused, without a reason", took: took, err: err})
	}
}

// until waits for something that nobody tells.
func until(ctx context.Context, done func() bool) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// claim tries to connect under a name, and returns nil if that is refused.
func claim(ctx context.Context, address, name string) error {
	hub, err := sockhub.New(ctx, nil)
	if err != nil {
		return err
	}
	defer hub.Close()
	conn, err := hub.Dial(ctx, "tcp", address, &sockhub.DialOptions{Name: name})
	switch {
	case err == nil:
		return fmt.Errorf("%v was let in", conn)
	case !errors.Is(err, sockhub.ErrRefused):
		return err
	}
	return nil
}
