package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/sockhub/sockhub"
)

// peerCommand is the hidden command that the second process runs. Its argument
// is a []route as JSON.
const peerCommand = "peer"

// route is how one connection comes about between the peer process and the hub.
type route struct {
	Network, Address string // of Dial; Network "pipe": of Attach, to the descriptors In and Out
	In, Out          int
	Name             string // "": anonymous
	CA               string // certificates to trust, in PEM; "": no TLS
	Listen           bool   // it is the hub that dials; anonymous
}

// runPeer connects, sends back what is to be sent back and checks the rest,
// until the hub has ended all connections. It returns the exit status: 0 if
// everything was as it should be.
func runPeer(args []string, stderr io.Writer) int {
	var routes []route
	if len(args) != 1 || json.Unmarshal([]byte(args[0]), &routes) != nil {
		io.WriteString(stderr, usage)
		return 2
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute) // should the demo have died
	defer cancel()
	if err := servePeer(ctx, routes); err != nil {
		fmt.Fprintln(stderr, "peer process:", err)
		return 1
	}
	return 0
}

func servePeer(ctx context.Context, routes []route) error {
	hub, err := sockhub.New(ctx, nil)
	if err != nil {
		return err
	}
	defer hub.Close()

	// Beside the loop, since the hub on the other side may send as soon as it
	// has let us in.
	var wg sync.WaitGroup
	failed := make(chan error, len(routes))
	for _, r := range routes {
		wg.Go(func() {
			if err := r.connect(ctx, hub); err != nil {
				failed <- fmt.Errorf("%s %s: %w", r.Network, r.Address, err)
			}
		})
	}
	defer wg.Wait()

	tallies := make(map[*sockhub.Conn]*received)
	for open := len(routes); open > 0; {
		select {
		case err := <-failed:
			return err
		case b := <-hub.Events():
			if b == nil {
				return context.Cause(ctx)
			}
			for _, c := range b.Connected {
				tallies[c] = new(received)
			}
			for _, c := range b.Unknown { // it was accepted
				tallies[c] = new(received)
			}
			for _, d := range b.Received {
				if err := tallies[d.Conn].take(ctx, d); err != nil {
					return fmt.Errorf("%v: %w", d.Conn, err)
				}
			}
			for _, d := range b.Disconnected {
				open--
				if err := tallies[d.Conn].end(d); err != nil {
					return fmt.Errorf("%v: %w", d.Conn, err)
				}
			}
		}
	}
	return nil
}

// connect makes one connection, or lets the hub make it.
func (r route) connect(ctx context.Context, hub *sockhub.Hub) error {
	o := &sockhub.DialOptions{Name: r.Name, Mode: sockhub.Named}
	if r.Name == "" {
		o.Mode = sockhub.Anonymous
	}
	if r.CA != "" {
		o.TLS = &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost"}
		o.TLS.RootCAs.AppendCertsFromPEM([]byte(r.CA))
	}
	var err error
	switch {
	case r.Listen:
		_, err = hub.Listen(ctx, r.Network, r.Address, &sockhub.ListenOptions{Mode: sockhub.Anonymous})
	case r.Network == "pipe":
		in, out := os.NewFile(uintptr(r.In), "in"), os.NewFile(uintptr(r.Out), "out")
		_, err = hub.Attach(ctx, &pipe{in, out}, o)
	default:
		_, err = hub.Dial(ctx, r.Network, r.Address, o)
	}
	return err
}

// received is what the peer has of one connection, by kind.
type received struct {
	small, large, last tally
	farewell           *tally
}

// take checks messages, and sends back those that want it.
func (r *received) take(ctx context.Context, d sockhub.Delivery) error {
	echo := d.Messages[:0]
	for _, msg := range d.Messages {
		if len(msg) == 0 {
			return errors.New("an empty message came, and none was sent")
		}
		var err error
		switch msg[0] {
		case small:
			err = r.small.check(msg)
			echo = append(echo, msg)
		case large:
			err = r.large.check(msg)
		case last:
			err = r.last.check(msg)
		case question:
			var text []byte
			text, err = json.Marshal(map[string]tally{"small": r.small, "large": r.large})
			echo = append(echo, append([]byte{answer}, text...))
		case farewell:
			err = json.Unmarshal(msg[1:], &r.farewell)
		default:
			err = fmt.Errorf("a message of unknown kind %q came", msg[0])
		}
		if err != nil {
			return err
		}
	}
	// It may wait here, and hold up the other connections, because the hub
	// on the other side receives whatever else it does. Two loops that both
	// wait could wait for each other.
	_, err := d.Conn.SendMany(ctx, slices.Values(echo))
	return err
}

// end checks that a connection has ended well: after everything that was sent.
func (r *received) end(d sockhub.Disconnection) error {
	switch {
	case !errors.Is(d.Err, io.EOF):
		return d.Err
	case r.farewell == nil:
		return errors.New("ended without a farewell")
	case *r.farewell != r.last:
		return fmt.Errorf("of the last messages %+v came, and %+v were sent", r.last, *r.farewell)
	}
	return checkReport(d.Report)
}

// pipe is a connection made of two files, which may be pipes: something that
// is no net.Conn. Where the system can wait for pipes it has deadlines.
type pipe struct{ in, out *os.File }

func (p *pipe) Read(b []byte) (int, error)         { return p.in.Read(b) }
func (p *pipe) Write(b []byte) (int, error)        { return p.out.Write(b) }
func (p *pipe) SetReadDeadline(t time.Time) error  { return p.in.SetReadDeadline(t) }
func (p *pipe) SetWriteDeadline(t time.Time) error { return p.out.SetWriteDeadline(t) }
func (p *pipe) CloseWrite() error                  { return p.out.Close() }
func (p *pipe) Close() error {
	p.out.Close() // CloseWrite may have done so
	return p.in.Close()
}
