package sockhub_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/sockhub/sockhub"
)

// Packets over what cannot tell that one was cut are no connection in ServeConn either,
// which closes what it does not serve: they were cut in silence.
func TestWrappedPacketsAreUnsupported(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unixpacket", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, wrapped := range []bool{false, true} {
		s := newStand(t, nil, nil)
		p, err := net.Dial("unixpacket", path)
		if err != nil {
			t.Fatal(err)
		}
		nc, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if wrapped {
			nc = struct{ net.Conn }{nc}
		}
		c, err := s.ServeConn(soon(t), nc, &sockhub.ListenOptions{Mode: sockhub.Anonymous})
		if wrapped {
			if !errors.Is(err, errors.ErrUnsupported) {
				t.Fatal(err)
			}
			greet(t, p, "").atEnd()
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		p.Write([]byte("a packet"))
		s.got(c, 1)
		p.Close()
	}
}

// Datagrams of a client that this side has given an address can be answered, whatever hooks
// its Dialer has: with ControlContext it had none.
func TestUnixgramClientsCanBeAnswered(t *testing.T) {
	for name, d := range map[string]*net.Dialer{
		"no Dialer":      nil,
		"no hook":        {},
		"Control":        {Control: func(string, string, syscall.RawConn) error { return nil }},
		"ControlContext": {ControlContext: func(context.Context, string, string, syscall.RawConn) error { return nil }},
		"both": {
			Control:        func(string, string, syscall.RawConn) error { panic("ControlContext takes its place") },
			ControlContext: func(context.Context, string, string, syscall.RawConn) error { return nil },
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, client := newStand(t, nil, echo), newStand(t, nil, nil)
			path := filepath.Join(t.TempDir(), "s")
			if _, err := s.Listen(soon(t), "unixgram", path, nil); err != nil {
				t.Fatal(err)
			}
			c, err := client.Dial(soon(t), "unixgram", path, &sockhub.DialOptions{Dialer: d})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Send(soon(t), []byte("hello")); err != nil {
				t.Fatal(err)
			}
			client.got(c, 1)
		})
	}
}

// The hook's error is the dial's.
func TestControlContextThatFails(t *testing.T) {
	s := newStand(t, nil, nil)
	path := filepath.Join(t.TempDir(), "s")
	if _, err := s.Listen(soon(t), "unixgram", path, nil); err != nil {
		t.Fatal(err)
	}
	d := &net.Dialer{ControlContext: func(context.Context, string, string, syscall.RawConn) error { return errNoRoute }}
	if _, err := s.Dial(soon(t), "unixgram", path, &sockhub.DialOptions{Dialer: d}); !errors.Is(err, errNoRoute) {
		t.Error(err)
	}
}
