package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/sockhub/sockhub"
)

// travellerName is registered once, for peers from anywhere.
const travellerName = "traveller"

// certificate makes the hub's TLS configuration, and the certificate that its
// peers trust.
func certificate(file string) (config *tls.Config, ca string, err error) {
	pair, err := selfSigned(nil, file)
	if err != nil {
		return nil, "", err
	}
	defer os.Remove(file)
	text, err := os.ReadFile(file)
	return &tls.Config{Certificates: []tls.Certificate{pair}}, string(text), err
}

// datagrams come from a UDP socket to the same hub and the same loop, and go back.
func (d *demo) datagrams(ctx context.Context) {
	count := min(d.messages, 10_000)
	l := d.legs[[2]string{"udp", ""}]
	row := check{what: "udp: datagrams and their echo"}
	defer func() { d.add(row) }()
	nc, err := net.Dial("udp4", d.udp)
	if err != nil {
		row.err = err
		return
	}
	defer nc.Close()
	start, lost := time.Now(), 0
	buf := make([]byte, 2000)
	for i := range count {
		msg := fmt.Appendf(nil, "datagram %d", i)
		if _, err := nc.Write(msg); err != nil {
			row.err = err
			return
		}
		nc.SetReadDeadline(time.Now().Add(time.Second))
		n, err := nc.Read(buf)
		var late net.Error
		switch {
		case errors.As(err, &late) && late.Timeout():
			if lost++; lost > count/100 {
				row.err = fmt.Errorf("%d of %d datagrams were lost", lost, i+1)
				return
			}
		case err != nil:
			row.err = err
			return
		case !bytes.Equal(buf[:n], msg):
			row.err = fmt.Errorf("%q came back as %q", msg, buf[:n])
			return
		}
	}
	row.took = time.Since(start)
	row.counted = fmt.Sprintf("%s datagrams, %d lost", grouped(uint64(count)), lost)
	row.rate = messageRate(uint64(count), row.took) + " each way, one at a time"
	if row.err = l.await(ctx, d.peer); row.err == nil {
		row.err = d.leave(ctx, l)
	}
}

// leave ends a connection that is not for the rest of the demo.
func (d *demo) leave(ctx context.Context, l *leg) error {
	l.conn.Close()
	select {
	case end := <-l.ended:
		d.written += end.Report.WrittenMessages
		return checkReport(end.Report)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// anyDoor registers a name once, and then comes under it through one listener
// after the other: each time it is the same client.
func (d *demo) anyDoor(ctx context.Context) {
	row := check{what: "one name through every listener"}
	defer func() { d.add(row) }()
	l, start := d.legs[[2]string{"", travellerName}], time.Now()
	id, err := d.hub.Expect(travellerName, nil)
	if err != nil {
		row.err = err
		return
	}
	hub, err := sockhub.New(ctx, nil)
	if err != nil {
		row.err = err
		return
	}
	defer hub.Close()
	for _, door := range d.doors {
		door.Name = travellerName
		if row.err = door.connect(ctx, hub); row.err == nil {
			row.err = l.await(ctx, d.peer)
		}
		if row.err != nil {
			return
		}
		if l.conn.ID() != id {
			row.err = fmt.Errorf("%v has ID %d, and %d is registered", l.conn, l.conn.ID(), id)
			return
		}
		if row.err = d.leave(ctx, l); row.err != nil {
			return
		}
	}
	d.more = uint64(len(d.doors) - 1)
	row.took = time.Since(start)
	row.counted = fmt.Sprintf("the same client %d times", len(d.doors))
}
