package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"time"

	"github.com/sockhub/sockhub"
)

// peerThatNeverReads connects, and takes nothing of what it is sent. It has to
// be given up after WriteTimeout, and its report to say what became of every
// message.
func (d *demo) peerThatNeverReads(ctx context.Context) {
	const timeout = 500 * time.Millisecond
	n, end, took, err := neverRead(ctx, timeout)
	switch {
	case err != nil:
	case !errors.Is(end.Err, sockhub.ErrSlowPeer):
		err = fmt.Errorf("ended with: %w", end.Err)
	case took < timeout:
		err = fmt.Errorf("ended after %v, with a WriteTimeout of %v", took, timeout)
	default:
		err = checkLost(end.Report, small, n)
	}
	if end.Conn != nil {
		fmt.Fprintf(d.out, "a peer that never reads: %v\n  %s\n", end.Err, balance(end.Report))
	}
	d.add(check{
		what: "a peer that never reads", took: took, err: err,
		counted: fmt.Sprintf("%s messages accounted for", grouped(end.Report.AcceptedMessages)),
	})
}

// neverRead sends to a peer that does not read, on a hub of its own, and
// returns how many messages were accepted, how the connection ended, and when.
func neverRead(ctx context.Context, timeout time.Duration) (n int, end sockhub.Disconnection, took time.Duration, err error) {
	hub, err := sockhub.New(ctx, &sockhub.Options{WriteTimeout: timeout})
	if err != nil {
		return 0, end, 0, err
	}
	defer hub.Close()
	l, err := hub.Listen(ctx, "tcp", "127.0.0.1:0", &sockhub.ListenOptions{Mode: sockhub.Anonymous})
	if err != nil {
		return 0, end, 0, err
	}
	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return 0, end, 0, err
	}
	defer peer.Close()

	start := time.Now()
	var sent chan int // made with the goroutine that sends
	for b := range hub.Events() {
		for _, c := range b.Unknown {
			sent = make(chan int, 1)
			go func() {
				n, _ := c.SendMany(ctx, generate(small, math.MaxInt, new(tally))) // it ends by an error only
				sent <- n
			}()
		}
		for _, end := range b.Disconnected {
			return <-sent, end, time.Since(start), nil
		}
	}
	return 0, end, 0, context.Cause(ctx)
}

// peerThatIsKilled is a process of its own, which is killed while messages are
// on their way in both directions.
func (d *demo) peerThatIsKilled(ctx context.Context) {
	row := check{what: "a peer process that is killed"}
	defer func() { d.add(row) }()
	l, neighbour := d.legs[[2]string{"tcp", victimName}], d.legs[[2]string{"tcp", "tcp"}]
	victim, err := startPeer(ctx, []route{{Network: "tcp", Address: neighbour.conn.Peer().Local.String(), Name: victimName}}, d.err)
	if err != nil {
		row.err = err
		return
	}
	defer victim.kill()
	if row.err = l.await(ctx, victim); row.err != nil {
		return
	}
	accepted := make(chan int, 1)
	go func() {
		n, _ := l.conn.SendMany(ctx, generate(small, math.MaxInt, l.sent[small])) // it ends by an error only
		accepted <- n
	}()
	some := uint64(min(d.messages/20+1, 50_000))
	if row.err = until(ctx, func() bool { return l.echoes.Load() >= some || len(l.ended) > 0 }); row.err != nil {
		return
	}
	if len(l.ended) > 0 {
		row.err = errors.New("its connection has ended before it was killed")
		return
	}
	victim.kill()
	killed := time.Now()
	var end sockhub.Disconnection
	select {
	case end = <-l.ended:
	case <-ctx.Done():
		row.err = context.Cause(ctx)
		return
	}
	row.took = time.Since(killed)
	d.written += end.Report.WrittenMessages
	fmt.Fprintf(d.out, "a peer process that is killed: %v\n  %s\n", end.Err, balance(end.Report))
	row.counted = fmt.Sprintf("%s messages accounted for", grouped(end.Report.AcceptedMessages))
	if row.err = checkLost(end.Report, small, <-accepted); row.err == nil {
		// Its neighbours have not noticed.
		row.err = neighbour.transfer(ctx, small, 100)
	}
}
