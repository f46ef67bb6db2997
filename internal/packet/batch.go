package packet

import (
	"net"
	"net/netip"
	"syscall"
	"time"
)

// batcher reads and writes the datagrams of a socket, in whatever way is the
// fastest there. One goroutine reads and another writes.
type batcher interface {
	// read waits for datagrams and tells got each that there is, at least
	// one unless it fails. What it tells is valid during the call alone.
	read(got func(key []byte, addr func() net.Addr, body []byte, whole bool)) error

	// write sends what is in box, and waits for the socket to take it. It
	// tells failed what was not sent, and goes on.
	write(box *outbox, failed func(to *session, err error))

	// interrupt makes the running read, and every later one, return.
	interrupt() error

	// pause waits for a moment after a failed read, unless interrupted.
	pause()
}

func newBatcher(pc net.PacketConn, max int) batcher {
	if b := newFastBatcher(pc, max); b != nil {
		return b
	}
	return newPlain(pc, max)
}

// flushTime is how long a socket that is closed tries to send what is queued.
const flushTime = 100 * time.Millisecond

func soon() time.Time { return time.Now().Add(flushTime) }

// longPast is a deadline that has always expired already.
var longPast = time.Unix(1, 0)

// plain reads and writes one datagram at a time, on any net.PacketConn.
type plain struct {
	pc   net.PacketConn
	udp  *net.UDPConn // pc, if it is one
	buf  []byte
	key  []byte
	over chan struct{} // closed by interrupt
}

func newPlain(pc net.PacketConn, max int) *plain {
	p := &plain{pc: pc, buf: make([]byte, bufferSize(pc, max)), over: make(chan struct{})}
	p.udp, _ = pc.(*net.UDPConn)
	return p
}

// bufferSize has room for one byte more than the longest datagram, so that one
// that is longer is seen to be.
func bufferSize(pc net.PacketConn, max int) int {
	size := MaxUnix
	if _, ok := pc.LocalAddr().(*net.UDPAddr); ok {
		size = 1 << 16
	}
	return min(max, size) + 1
}

func (p *plain) read(got func([]byte, func() net.Addr, []byte, bool)) error {
	if p.udp != nil {
		n, from, err := p.udp.ReadFromUDPAddrPort(p.buf)
		if err != nil {
			return err
		}
		p.key, _ = from.AppendBinary(p.key[:0])
		got(p.key, func() net.Addr { return net.UDPAddrFromAddrPort(from) }, p.buf[:n], n < len(p.buf))
		return nil
	}
	n, from, err := p.pc.ReadFrom(p.buf)
	if err != nil {
		return err
	}
	p.key = p.key[:0]
	if from != nil {
		p.key = append(p.key, from.String()...)
	}
	got(p.key, func() net.Addr { return from }, p.buf[:n], n < len(p.buf))
	return nil
}

func (p *plain) write(box *outbox, failed func(*session, error)) {
	for _, it := range box.items {
		body := box.bytes[it.from:it.end]
		var err error
		switch {
		case it.to.key == "" && it.to.sock.only == nil:
			err = errNoAddress
		case it.to.sock.only != nil:
			if c, ok := p.pc.(net.Conn); ok {
				_, err = c.Write(body)
			} else {
				_, err = p.pc.WriteTo(body, it.to.addr)
			}
		case p.udp != nil:
			_, err = p.udp.WriteToUDPAddrPort(body, addrPort(it.to.addr))
		default:
			_, err = p.pc.WriteTo(body, it.to.addr)
		}
		if err != nil {
			failed(it.to, err)
		}
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	if u, ok := a.(*net.UDPAddr); ok {
		return u.AddrPort()
	}
	return netip.AddrPort{}
}

func (p *plain) interrupt() error {
	close(p.over)
	return p.pc.SetReadDeadline(longPast)
}

func (p *plain) pause() {
	select {
	case <-time.After(5 * time.Millisecond):
	case <-p.over:
	}
}

// errNoAddress is why an unbound sender on a Unix socket cannot be answered.
var errNoAddress error = syscall.EDESTADDRREQ
