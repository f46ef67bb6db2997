package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/sockhub/sockhub"
)

// leg is the hub's end of one connection to the peer process. One goroutine at
// a time sends on it, and the event loop receives.
type leg struct {
	// Immutable.
	kind, name string // the kind of transport; the peer's name, "": anonymous
	progress   *progress

	arrived chan *sockhub.Conn         // capacity 1; sent to by the event loop
	answers chan tallies               // capacity 1; sent to by the event loop
	ended   chan sockhub.Disconnection // capacity 1; sent to by the event loop

	// Owned by the event loop.
	echoed tally
	wrong  error // with what came; nothing more is looked at then

	echoes atomic.Uint64 // echoed.Messages, for everybody

	// Owned by who sends.
	conn *sockhub.Conn // set when it arrived
	sent map[byte]*tally
}

// tallies is what the peer has received, and what came back from it.
type tallies struct {
	Small, Large tally
	echoed       tally
	err          error
}

func newLeg(kind, name string, p *progress) *leg {
	return &leg{
		kind: kind, name: name, progress: p,
		arrived: make(chan *sockhub.Conn, 1),
		answers: make(chan tallies, 1),
		ended:   make(chan sockhub.Disconnection, 1),
		sent:    map[byte]*tally{small: {}, large: {}, last: {}},
	}
}

func (l *leg) String() string {
	if l.name == "" {
		return l.kind + ", anonymous"
	}
	return fmt.Sprintf("%s, named %q", l.kind, l.name)
}

// ---- the event loop's part ----

// take is told what came.
func (l *leg) take(msgs [][]byte) {
	var count, size uint64
	for _, msg := range msgs {
		if l.wrong != nil {
			break
		}
		switch {
		case len(msg) > 0 && msg[0] == small:
			l.wrong = l.echoed.check(msg)
			count, size = count+1, size+uint64(len(msg))
		case len(msg) > 0 && msg[0] == answer:
			l.answered(msg[1:])
		default:
			l.wrong = fmt.Errorf("%.20q came, which is neither an echo nor an answer", msg)
		}
	}
	l.progress.add(count, size)
	l.echoes.Store(l.echoed.Messages)
	if l.wrong != nil {
		l.tell(tallies{err: l.wrong})
	}
}

func (l *leg) answered(text []byte) {
	t := tallies{echoed: l.echoed}
	t.err = json.Unmarshal(text, &t)
	l.tell(t)
}

// tell passes tallies on, if nobody has failed to fetch the ones before.
func (l *leg) tell(t tallies) {
	select {
	case l.answers <- t:
	default:
	}
}

// ---- the sender's part ----

// await waits until the peer has connected.
func (l *leg) await(ctx context.Context, from *process) error {
	select {
	case l.conn = <-l.arrived:
		return nil
	case <-from.exited:
		return fmt.Errorf("%v: the peer process has ended: %v", l, from.err)
	case <-ctx.Done():
		return fmt.Errorf("%v: did not connect: %w", l, context.Cause(ctx))
	}
}

// transfer sends messages of a kind, asks the peer what it has received, and
// compares. When it returns nil, every message has been received in its place,
// with its content; if they are small ones, by the peer and by us again.
func (l *leg) transfer(ctx context.Context, kind byte, count int) error {
	if err := l.send(ctx, kind, count); err != nil {
		return fmt.Errorf("%v: %w", l, err)
	}
	if err := l.conn.Send(ctx, []byte{question}); err != nil {
		return fmt.Errorf("%v: %w", l, err)
	}
	select {
	case t := <-l.answers:
		if err := l.compare(t); err != nil {
			return fmt.Errorf("%v: %w", l, err)
		}
		return nil
	case d := <-l.ended:
		l.ended <- d
		return fmt.Errorf("%v: the connection has ended: %w", l, d.Err)
	case <-ctx.Done():
		return fmt.Errorf("%v: no answer: %w", l, context.Cause(ctx))
	}
}

// send sends the next messages of a kind: small ones in one run, out of an
// iterator; large ones each in two parts, which are not copied.
func (l *leg) send(ctx context.Context, kind byte, count int) error {
	t := l.sent[kind]
	if kind != large {
		n, err := l.conn.SendMany(ctx, generate(kind, count, t))
		if err == nil && n != count {
			err = fmt.Errorf("SendMany accepted %d of %d messages without an error", n, count)
		}
		return err
	}
	for range count {
		head, body := header(nil, kind, t.Messages), filler(kind, t.Messages)
		t.add(head, body)
		if err := l.conn.SendParts(ctx, head, body); err != nil {
			return err
		}
		l.progress.add(1, largeSize)
	}
	return nil
}

func (l *leg) compare(t tallies) error {
	switch {
	case t.err != nil:
		return t.err
	case t.Small != *l.sent[small]:
		return fmt.Errorf("sent small messages %+v, the peer received %+v", *l.sent[small], t.Small)
	case t.echoed != *l.sent[small]:
		return fmt.Errorf("sent small messages %+v, got back %+v", *l.sent[small], t.echoed)
	case t.Large != *l.sent[large]:
		return fmt.Errorf("sent large messages %+v, the peer received %+v", *l.sent[large], t.Large)
	}
	return nil
}

// sayFarewell sends the last messages, and how many these were.
func (l *leg) sayFarewell(ctx context.Context, count int) error {
	if err := l.send(ctx, last, count); err != nil {
		return fmt.Errorf("%v: %w", l, err)
	}
	text, err := json.Marshal(l.sent[last])
	if err != nil {
		return err
	}
	return l.conn.Send(ctx, append([]byte{farewell}, text...))
}

// finished checks how the connection has ended by Shutdown.
func (l *leg) finished(ctx context.Context) (sockhub.Report, error) {
	select {
	case d := <-l.ended:
		r := d.Report
		switch err := checkReport(r); {
		case err != nil:
			return r, fmt.Errorf("%v: %w", l, err)
		case !errors.Is(d.Err, sockhub.ErrClosed):
			return r, fmt.Errorf("%v: ended with %w", l, d.Err)
		case r.WrittenMessages != r.AcceptedMessages:
			return r, fmt.Errorf("%v: not everything was written: %s", l, balance(r))
		}
		return r, nil
	case <-ctx.Done():
		return sockhub.Report{}, fmt.Errorf("%v: its end was not reported: %w", l, context.Cause(ctx))
	}
}
