// Command plain is the server that package net alone gives: a goroutine for
// each connection, a buffered reader and a buffered writer, which is flushed
// when there is nothing more to read.
package main

import (
	"bufio"
	"flag"
	"io"
	"net"

	"github.com/sockhub/sockhub/internal/compare/server"
)

var bufSize = flag.Int("buf", 4096, "bytes of each connection's two buffers")

func main() {
	mode, network, address := server.Start()
	serve := map[string]func(*conn) error{
		server.Echo: echo, server.HTTP: http, server.Stream: stream,
		server.Fanout: fanout, server.Commands: commands,
	}[mode]
	l := server.Listen(network, address)
	for {
		nc, err := l.Accept()
		server.Check(err)
		go func() {
			defer nc.Close()
			serve(&conn{Conn: nc, r: bufio.NewReaderSize(nc, *bufSize), w: bufio.NewWriterSize(nc, *bufSize)})
		}()
	}
}

type conn struct {
	net.Conn
	r   *bufio.Reader
	w   *bufio.Writer
	msg []byte // header and body
}

// next reads a message into c.msg.
func (c *conn) next() error {
	head, err := c.r.Peek(server.HeaderLen)
	if err != nil {
		return err
	}
	n := server.HeaderLen + server.BodyLen(head)
	if cap(c.msg) < n {
		c.msg = make([]byte, n)
	}
	c.msg = c.msg[:n]
	_, err = io.ReadFull(c.r, c.msg)
	return err
}

func (c *conn) body() []byte { return c.msg[server.HeaderLen:] }

// back sends c.msg back, at the latest when all was read.
func (c *conn) back() error {
	if _, err := c.w.Write(c.msg); err != nil {
		return err
	}
	if c.r.Buffered() == 0 {
		return c.w.Flush()
	}
	return nil
}

func echo(c *conn) error {
	for {
		if err := c.next(); err != nil {
			return err
		}
		if err := c.back(); err != nil {
			return err
		}
	}
}

// repeat sends a message again and again. It does not join them beforehand: a
// program has them one by one.
func (c *conn) repeat(count int, msg []byte) error {
	var b []byte
	for range count {
		b = server.AppendMessage(b[:0], msg)
		if _, err := c.w.Write(b); err != nil {
			return err
		}
	}
	return c.w.Flush()
}

func stream(c *conn) error {
	for {
		err := c.next()
		switch {
		case err != nil:
		case len(c.body()) == 0:
			err = c.back()
		default:
			err = c.repeat(server.Request(c.body()))
		}
		if err != nil {
			return err
		}
	}
}

// commands writes from a second goroutine, so that answers are read meanwhile.
func commands(c *conn) error {
	var a server.Answers
	var written chan struct{} // closed when that goroutine has written all
	for {
		if err := c.next(); err != nil {
			return err
		}
		switch {
		case a.Due():
			if !a.Got() {
				continue
			}
			<-written
			c.msg = server.AppendMessage(c.msg[:0], nil)
			fallthrough
		case len(c.body()) == 0:
			if err := c.back(); err != nil {
				return err
			}
		default:
			count, msg := server.Request(c.body())
			a.Expect(count)
			c.msg = nil // msg is a part of it
			written = make(chan struct{})
			go func() {
				defer close(written)
				c.repeat(count, msg)
			}()
		}
	}
}

func http(c *conn) error {
	in, n := make([]byte, 4096), 0
	var head []byte
	for {
		k, err := c.Read(in[n:])
		if err != nil {
			return err
		}
		n += k
		used := 0
		for {
			k, size := server.NextRequest(in[used:n])
			if k == 0 {
				break
			}
			used += k
			head = server.AppendHead(head[:0], size)
			if len(head)+size > c.w.Available() { // larger: both at once, uncopied
				if err := c.w.Flush(); err != nil {
					return err
				}
				both := net.Buffers{head, server.Text(size)}
				if _, err := both.WriteTo(c.Conn); err != nil {
					return err
				}
				continue
			}
			c.w.Write(head)
			c.w.Write(server.Text(size)) // it has room; an error is Flush's
		}
		if n = copy(in, in[used:n]); n == len(in) {
			return bufio.ErrBufferFull
		}
		if err := c.w.Flush(); err != nil {
			return err
		}
	}
}
