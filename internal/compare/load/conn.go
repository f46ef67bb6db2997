//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	headerLen = 8
	bufSize   = 64 << 10
	shifts    = 61
	samples   = 10000 // latencies that each connection keeps
	late      = 4096  // paced: messages without an answer on a connection
)

// conn is one connection. All but the figures belongs to the goroutine that
// drives it.
type conn struct {
	nc        net.Conn
	r         *bufio.Reader
	w         *bufio.Writer
	index     int
	sent      uint64
	have, exp []byte         // a message that came, and what it should be
	sentAt    []time.Time    // ring
	dueAt     chan time.Time // paced: of messages without an answer. pace sends, answers receives, nobody closes

	got, bytes atomic.Uint64
	before     uint64 // got, when the measured time began

	mu        sync.Mutex
	latencies []time.Duration
}

func newConn(nc net.Conn, index int) *conn {
	return &conn{
		nc: nc, index: index,
		r: bufio.NewReaderSize(nc, bufSize), w: bufio.NewWriterSize(nc, bufSize),
		sentAt: make([]time.Time, *depth),
		dueAt:  make(chan time.Time, late),
	}
}

// filling is what messages are made of.
var filling = sync.OnceValue(func() []byte {
	b := make([]byte, *size+shifts)
	r := uint32(1)
	for i := range b {
		r = r*1664525 + 1013904223
		b[i] = byte(r >> 24)
	}
	return b
})

// message makes the message of a number: its length, the number, filling.
func message(b []byte, number uint64) []byte {
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], number)
	b = binary.LittleEndian.AppendUint64(b[:0], uint64(*size))
	b = append(b, n[:min(8, *size)]...)
	return append(b, filling()[number%shifts:][:max(*size-8, 0)]...)
}

// ping makes sure that the server knows the connection.
func (c *conn) ping() error {
	var head [headerLen]byte
	c.nc.SetReadDeadline(time.Now().Add(patience))
	defer c.nc.SetReadDeadline(time.Time{})
	if _, err := c.nc.Write(head[:]); err != nil {
		return err
	}
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return err
	}
	if n := binary.LittleEndian.Uint64(head[:]); n != 0 {
		return fmt.Errorf("an empty message came back with a length of %d", n)
	}
	return nil
}

// expect reads the message of this number.
func (c *conn) expect(number uint64) error {
	if c.exp == nil || number > 0 {
		c.exp = message(c.exp, number)
	}
	if c.have == nil {
		c.have = make([]byte, len(c.exp))
	}
	if _, err := io.ReadFull(c.r, c.have); err != nil {
		return fmt.Errorf("connection %d, message %d: %w", c.index, number, err)
	}
	if !bytes.Equal(c.have, c.exp) {
		wrong(c, "wrong bytes")
	}
	c.got.Add(1)
	c.bytes.Add(uint64(len(c.have)))
	return nil
}

// put sends the next message, when the buffer is full or flushed.
func (c *conn) put() error {
	c.sentAt[c.sent%uint64(*depth)] = time.Now()
	_, err := c.w.Write(message(c.w.AvailableBuffer(), c.sent))
	c.sent++
	return err
}

func (c *conn) took(number uint64) {
	if measuring.Load() && !c.floods() {
		c.lasted(time.Since(c.sentAt[number%uint64(*depth)]))
	}
}

// lasted counts a latency.
func (c *conn) lasted(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.latencies) < samples {
		c.latencies = append(c.latencies, d)
	}
}

// floods: it keeps many in flight, and its latencies do not count.
func (c *conn) floods() bool { return *flood > 0 && c.index == 0 }

// echo keeps messages in flight.
func (c *conn) echo() error {
	n := *depth
	if c.floods() {
		n = *flood
	}
	for range n {
		if err := c.put(); err != nil {
			return err
		}
	}
	for {
		if c.r.Buffered() == 0 {
			if err := c.w.Flush(); err != nil {
				return err
			}
		}
		number := c.got.Load()
		if err := c.expect(number); err != nil {
			return err
		}
		c.took(number)
		if err := c.put(); err != nil {
			return err
		}
	}
}

// round does one round of stream, commands or fan-out.
func (c *conn) round() error {
	switch *mode {
	case "fanout":
		return c.listen()
	case "commands":
		return c.obey()
	}
	if err := c.ask(); err != nil {
		return err
	}
	for range *count {
		if err := c.expect(0); err != nil {
			return err
		}
	}
	return nil
}

// listen gets what the first connection sends to all.
func (c *conn) listen() error {
	if c.index == 0 {
		for range *depth {
			if err := c.put(); err != nil {
				return err
			}
		}
		if err := c.w.Flush(); err != nil {
			return err
		}
	}
	for range *depth {
		if err := c.expect(c.got.Load()); err != nil {
			return err
		}
	}
	return nil
}

// ask requests messages, each the one that is shown.
func (c *conn) ask() error {
	b := binary.LittleEndian.AppendUint64(nil, uint64(8+*size))
	b = binary.LittleEndian.AppendUint64(b, uint64(*count))
	_, err := c.nc.Write(append(b, message(nil, 0)[headerLen:]...))
	return err
}

// obey answers commands until an empty message ends the round.
func (c *conn) obey() error {
	if err := c.ask(); err != nil {
		return err
	}
	for range *count {
		if err := c.expect(0); err != nil {
			return err
		}
		if err := c.put(); err != nil {
			return err
		}
		if c.r.Buffered() == 0 {
			if err := c.w.Flush(); err != nil {
				return err
			}
		}
	}
	if err := c.w.Flush(); err != nil {
		return err
	}
	var head [headerLen]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return err
	}
	if head != [headerLen]byte{} {
		wrong(c, "not the end of the round")
	}
	return nil
}

// ---- http ----

const letters = 26

// requests keeps requests in flight.
func (c *conn) requests() error {
	text := bytes.Repeat([]byte("abcdefghijklmnopqrstuvwxyz"), bufSize/letters+2)
	request := fmt.Appendf(nil, "GET /%d HTTP/1.1\r\nHost: compare\r\n\r\n", *size)
	part := make([]byte, bufSize)
	ask := func() error {
		c.sentAt[c.sent%uint64(*depth)] = time.Now()
		c.sent++
		_, err := c.w.Write(request)
		return err
	}
	for range *depth {
		if err := ask(); err != nil {
			return err
		}
	}
	for {
		if c.r.Buffered() == 0 {
			if err := c.w.Flush(); err != nil {
				return err
			}
		}
		answer, err := http.ReadResponse(c.r, nil)
		if err != nil {
			return err
		}
		if answer.StatusCode != http.StatusOK || answer.ContentLength != int64(*size) {
			return fmt.Errorf("answer %s with a length of %d", answer.Status, answer.ContentLength)
		}
		for at := 0; at < *size; {
			n, err := answer.Body.Read(part)
			if !bytes.Equal(part[:n], text[at%letters:][:n]) {
				wrong(c, "wrong bytes")
			}
			at += n
			c.bytes.Add(uint64(n))
			if err != nil && at < *size {
				return err
			}
		}
		answer.Body.Close()
		c.took(c.got.Add(1) - 1)
		if err := ask(); err != nil {
			return err
		}
	}
}
