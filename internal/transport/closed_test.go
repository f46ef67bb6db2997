package transport_test

import (
	"net"
	"testing"
	"time"

	"github.com/sockhub/sockhub/internal/transport"
)

// counter is a connection of which every use that matters here is counted.
type counter struct {
	net.Conn
	uses int
}

func (c *counter) SetReadDeadline(t time.Time) error {
	c.uses++
	return c.Conn.SetReadDeadline(t)
}

func (c *counter) SetWriteDeadline(t time.Time) error {
	c.uses++
	return c.Conn.SetWriteDeadline(t)
}

func (c *counter) Close() error {
	c.uses++
	return c.Conn.Close()
}

// layer lies over another connection, as TLS does.
type layer struct{ net.Conn }

func (l layer) NetConn() net.Conn { return l.Conn }

func TestWhatWasClosedIsNotUsedAgain(t *testing.T) {
	for name, over := range map[string]func(net.Conn) net.Conn{
		"plain": func(c net.Conn) net.Conn { return c },
		"layer": func(c net.Conn) net.Conn { return layer{c} },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := net.Pipe()
			defer b.Close()
			below := &counter{Conn: a}
			c := transport.NewBlocking(over(below))
			c.Close()
			before := below.uses
			c.Kick(transport.ReadSide)
			c.Kick(transport.WriteSide)
			c.Hangup()
			if n := below.uses - before; n != 0 {
				t.Errorf("it was used %d times after Close", n)
			}
		})
	}
}
