package packet

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sockhub/sockhub/internal/unixsock"
)

const (
	readBatch  = 32 // datagrams in one recvmmsg, or runs of them with UDP_GRO
	writeBatch = 64 // in one sendmmsg, runs counted as one

	// A run of datagrams of one size to one peer leaves as one that the
	// kernel, or the device, cuts up (UDP_SEGMENT, Linux 4.18). The kernel
	// takes no more than 64 of them and 64 KiB, and none that would have to
	// be fragmented, hence segmentSize: what fits anywhere.
	segments    = 64
	segmentMax  = 60_000
	segmentSize = 1400
)

// mmsghdr is the system's struct mmsghdr.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// control is room for one control message with a number.
type control [4]uint64

// fast reads and writes with recvmmsg and sendmmsg, inside the callbacks of
// RawConns, which wait and know the descriptor's life.
type fast struct {
	*plain // to interrupt, and to pause
	raw    syscall.RawConn
	gro    bool // runs are received as one
	gso    bool // runs are sent as one; the sender's
	wired  bool // the socket is connected

	// The reader's.
	size  int    // of a buffer
	mem   []byte // readBatch buffers
	rhdrs [readBatch]mmsghdr
	riovs [readBatch]unix.Iovec
	rctls [readBatch]control
	names [readBatch]unix.RawSockaddrAny

	// The sender's.
	whdrs [writeBatch]mmsghdr
	wiovs []unix.Iovec
	wctls [writeBatch]control
	count [writeBatch]int // of datagrams in each
}

func newFastBatcher(pc net.PacketConn, max int) batcher {
	sc, ok := pc.(syscall.Conn)
	if !ok {
		return nil
	}
	switch pc.(type) {
	case *net.UDPConn, *net.UnixConn, *unixsock.PacketConn:
	default:
		return nil // what else its methods do, only they know
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	f := &fast{plain: newPlain(pc, 0), raw: raw, size: bufferSize(pc, max)}
	_, udp := pc.LocalAddr().(*net.UDPAddr)
	raw.Control(func(fd uintptr) {
		if udp {
			f.gro = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO, 1) == nil
			_, err := unix.GetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT)
			f.gso = err == nil
		}
		_, err := unix.Getpeername(int(fd))
		f.wired = err == nil
	})
	if f.gro {
		f.size = 1 << 16 // a run of short ones may be longer than any of them
	}
	f.mem = make([]byte, readBatch*f.size)
	return f
}

func (f *fast) read(got func([]byte, func() net.Addr, []byte, bool)) error {
	for i := range f.rhdrs {
		h := &f.rhdrs[i].hdr
		f.riovs[i].Base = &f.mem[i*f.size]
		f.riovs[i].SetLen(f.size)
		h.Iov = &f.riovs[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&f.names[i]))
		h.Namelen = unix.SizeofSockaddrAny
		h.Control = (*byte)(unsafe.Pointer(&f.rctls[i]))
		h.SetControllen(int(unsafe.Sizeof(f.rctls[i])))
	}
	n, errno := 0, syscall.Errno(0)
	err := f.raw.Read(func(fd uintptr) (done bool) {
		for {
			r, _, e := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&f.rhdrs)), readBatch, unix.MSG_DONTWAIT, 0, 0)
			switch n, errno = int(r), e; errno {
			case unix.EINTR:
			case unix.EAGAIN:
				return false
			default:
				return true
			}
		}
	})
	if err == nil && errno != 0 {
		err = errno
	}
	if err != nil {
		return err
	}
	for i := range n {
		m := &f.rhdrs[i]
		body := f.mem[i*f.size:][:m.n]
		key := unsafe.Slice((*byte)(unsafe.Pointer(&f.names[i])), m.hdr.Namelen)
		addr := func() net.Addr { return address(key) }
		whole := m.hdr.Flags&unix.MSG_TRUNC == 0
		size := len(body)
		if f.gro {
			size = f.segment(i, size)
		}
		for {
			part := body[:min(size, len(body))]
			got(key, addr, part, whole)
			if body = body[len(part):]; len(body) == 0 {
				break
			}
		}
	}
	return nil
}

// segment is the size of the datagrams that came as one.
func (f *fast) segment(i, size int) int {
	h := &f.rhdrs[i].hdr
	if int(h.Controllen) < unix.CmsgLen(4) {
		return size
	}
	c := (*unix.Cmsghdr)(unsafe.Pointer(&f.rctls[i]))
	if c.Level != unix.SOL_UDP || c.Type != unix.UDP_GRO {
		return size
	}
	return max(1, int(*(*int32)(unsafe.Add(unsafe.Pointer(c), unix.CmsgLen(0)))))
}

// write sends runs as one where it can; see segments.
func (f *fast) write(box *outbox, failed func(*session, error)) {
	next := 0
	for next < len(box.items) {
		n := f.prepare(box, next)
		for sent := 0; sent < n; {
			m, err := f.sendmmsg(sent, n)
			for range m {
				next += f.count[sent]
				sent++
			}
			if err == nil {
				continue
			}
			if k := f.count[sent]; k > 1 {
				f.gso = f.gso && !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP)
				f.single(box.items[next:next+k], box.bytes, failed)
				next += k
				break // and prepare what follows again
			}
			failed(box.items[next].to, err)
			next++
			sent++
		}
	}
	runtime.KeepAlive(box)
	clear(f.wiovs[:len(box.items)])
}

// single sends a run that was refused one datagram at a time.
func (f *fast) single(run []item, bytes []byte, failed func(*session, error)) {
	for i, it := range run {
		f.prepare(&outbox{items: run[i : i+1], bytes: bytes}, 0)
		if _, err := f.sendmmsg(0, 1); err != nil {
			failed(it.to, err)
		}
	}
}

// prepare makes the headers of at most writeBatch datagrams or runs.
func (f *fast) prepare(box *outbox, first int) (n int) {
	if cap(f.wiovs) < len(box.items) {
		f.wiovs = make([]unix.Iovec, len(box.items), cap(box.items))
	}
	f.wiovs = f.wiovs[:cap(f.wiovs)]
	for i := first; i < len(box.items) && n < writeBatch; n++ {
		k := f.run(box.items[i:])
		for j, it := range box.items[i : i+k] {
			if f.wiovs[i+j] = (unix.Iovec{}); it.end > it.from {
				f.wiovs[i+j].Base = &box.bytes[it.from]
				f.wiovs[i+j].SetLen(it.end - it.from)
			}
		}
		h := &f.whdrs[n].hdr
		*h = unix.Msghdr{Iov: &f.wiovs[i]}
		h.SetIovlen(k)
		if key := box.items[i].to.key; !f.wired && len(key) > 0 {
			h.Name = unsafe.StringData(key)
			h.Namelen = uint32(len(key))
		}
		if k > 1 {
			c := (*unix.Cmsghdr)(unsafe.Pointer(&f.wctls[n]))
			c.Level, c.Type = unix.SOL_UDP, unix.UDP_SEGMENT
			c.SetLen(unix.CmsgLen(2))
			*(*uint16)(unsafe.Add(unsafe.Pointer(c), unix.CmsgLen(0))) = uint16(box.items[i].end - box.items[i].from)
			h.Control = (*byte)(unsafe.Pointer(c))
			h.SetControllen(unix.CmsgSpace(2))
		}
		f.count[n] = k
		i += k
	}
	return n
}

// run is how many of the items may leave as one: to one peer, of one size but
// for the last, which may be shorter.
func (f *fast) run(items []item) int {
	first := items[0]
	size := first.end - first.from
	if !f.gso || size == 0 || size > segmentSize {
		return 1
	}
	n, total := 1, size
	for _, it := range items[1:] {
		m := it.end - it.from
		if it.to != first.to || m == 0 || m > size || total+m > segmentMax || n == segments {
			break
		}
		n, total = n+1, total+m
		if m < size {
			break
		}
	}
	return n
}

// sendmmsg sends the prepared ones from..n, and waits for the socket to take at
// least one. An error is that of the first that was not sent.
func (f *fast) sendmmsg(from, n int) (sent int, err error) {
	var errno syscall.Errno
	err = f.raw.Write(func(fd uintptr) (done bool) {
		for {
			r, _, e := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&f.whdrs[from])), uintptr(n-from), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
			switch errno = e; errno {
			case 0:
				sent = int(r)
				return true
			case unix.EINTR:
			case unix.EAGAIN:
				return false
			default:
				return true
			}
		}
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return sent, err
}

// address makes a net.Addr of a socket address as the system has it.
func address(raw []byte) net.Addr {
	if len(raw) < 2 {
		return &net.UnixAddr{Net: "unixgram"}
	}
	switch family := binary.NativeEndian.Uint16(raw); {
	case family == unix.AF_INET && len(raw) >= unix.SizeofSockaddrInet4:
		ip := netip.AddrFrom4([4]byte(raw[4:8]))
		return net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, binary.BigEndian.Uint16(raw[2:])))
	case family == unix.AF_INET6 && len(raw) >= unix.SizeofSockaddrInet6:
		ip := netip.AddrFrom16([16]byte(raw[8:24]))
		if zone := binary.NativeEndian.Uint32(raw[24:]); zone != 0 {
			name := strconv.Itoa(int(zone))
			if i, err := net.InterfaceByIndex(int(zone)); err == nil {
				name = i.Name
			}
			ip = ip.WithZone(name)
		}
		return net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, binary.BigEndian.Uint16(raw[2:])))
	default:
		path := raw[2:]
		switch {
		case len(path) > 0 && path[0] == 0:
			path = append([]byte{'@'}, path[1:]...) // abstract
		case len(path) > 0 && path[len(path)-1] == 0:
			path = path[:len(path)-1]
		}
		return &net.UnixAddr{Net: "unixgram", Name: string(path)}
	}
}
