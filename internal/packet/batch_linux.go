package packet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"
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

	udpSlot = 1<<16 + 3*64 // not of a power of 2: the beginnings would share few cache lines
)

// mmsghdr is the system's struct mmsghdr.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// control is room for the control messages of a datagram that is sent: the size of
// segments, and our address.
type control [8]uint64

// received is room for those of one that is received. What the socket's user has asked
// for, such as timestamps, comes before the size of segments, without which datagrams
// could not be told apart.
type received [64]uint64

// fast receives and sends with recvmmsg and sendmmsg, inside the callbacks of
// RawConns, which wait and know the descriptor's life.
type fast struct {
	// Immutable after construction.
	pc       net.PacketConn
	raw      syscall.RawConn
	udp      bool
	wired    bool       // the socket is connected
	gro      bool       // runs are received as one
	many     bool       // the socket has many addresses, and the peer's datagrams say which
	inet6    bool       // its addresses are of IPv6, mapped ones included
	slots    *sync.Pool // of *slots, for receiving
	readable func(fd uintptr) (done bool)
	pauses

	// The receiver's.
	s   *socket
	err syscall.Errno

	gso bool // runs are sent as one
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
	f := &fast{pc: pc, raw: raw, slots: &unixSlots, pauses: newPauses()}
	f.readable = f.readTurn
	own, udp := pc.LocalAddr().(*net.UDPAddr)
	f.udp = udp
	raw.Control(func(fd uintptr) { f.setup(int(fd), own) })
	switch {
	case udp && f.wired:
		f.slots = &fewSlots
	case udp:
		f.slots = &udpSlots
	}
	pc.SetDeadline(noDeadline) // one that is left would be taken for an interrupt
	return f
}

// setup asks for what the kernel has.
func (f *fast) setup(fd int, own *net.UDPAddr) {
	_, err := unix.Getpeername(fd)
	f.wired = err == nil
	if !f.udp {
		return
	}
	f.gro = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1) == nil
	_, err = unix.GetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT)
	f.gso = err == nil
	domain, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	f.inet6 = domain == unix.AF_INET6
	switch {
	case f.wired || own == nil || !own.IP.IsUnspecified():
	case f.inet6:
		f.many = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1) == nil
		unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_PKTINFO, 1) // for datagrams of IPv4
	default:
		f.many = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_PKTINFO, 1) == nil
	}
}

// ---- receiving ----

// slots is what one recvmmsg fills. They are pooled: a socket that waits has
// none.
type slots struct {
	stride int // from one buffer to the next
	mem    []byte
	used   int // headers that the last call has changed
	hdrs   []mmsghdr
	iovs   []unix.Iovec
	ctls   []received
	names  []unix.RawSockaddrAny
}

var (
	udpSlots  = sync.Pool{New: func() any { return newSlots(readBatch, 1<<16, udpSlot, readBatch) }}
	fewSlots  = sync.Pool{New: func() any { return newSlots(8, 1<<16, udpSlot, 8) }}
	unixSlots = sync.Pool{New: func() any { return newSlots(8, MaxUnix+1, MaxUnix+64, 0) }}
)

// newSlots makes slots with room for so many control messages, one each or none.
// On a Unix socket there must be none: what a peer sends there can be
// descriptors (SCM_RIGHTS), and the system opens those that there is room for.
func newSlots(n, size, stride, controls int) *slots {
	b := &slots{
		stride: stride, mem: make([]byte, n*stride), used: n,
		hdrs: make([]mmsghdr, n), iovs: make([]unix.Iovec, n), ctls: make([]received, controls), names: make([]unix.RawSockaddrAny, n),
	}
	for i := range b.hdrs {
		h := &b.hdrs[i].hdr
		b.iovs[i].Base = &b.mem[i*stride]
		b.iovs[i].SetLen(size)
		h.Iov = &b.iovs[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&b.names[i]))
		if i < controls {
			h.Control = (*byte)(unsafe.Pointer(&b.ctls[i]))
		}
	}
	return b
}

// receive takes what there is into the slots.
func (b *slots) receive(fd int) (n int, errno syscall.Errno) {
	for i := range b.hdrs[:b.used] {
		h := &b.hdrs[i].hdr
		h.Namelen = unix.SizeofSockaddrAny
		if len(b.ctls) > 0 {
			h.SetControllen(int(unsafe.Sizeof(b.ctls[i])))
		}
	}
	b.used = 0
	for {
		r, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b.hdrs))), uintptr(len(b.hdrs)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			b.used = int(r)
			if raceReceived != nil {
				for i := range b.used {
					raceReceived(fd, b.mem[i*b.stride:][:b.hdrs[i].n])
				}
			}
			return b.used, 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// receive implements batcher.
func (f *fast) receive(s *socket) error {
	f.s, f.err = s, 0
	err := f.raw.Read(f.readable)
	if err == nil && f.err != 0 {
		err = f.err
	}
	return err
}

// readTurn is the callback of RawConn.Read. When fewer came than there was room for,
// there is nothing more, or an edge has come with it that the wait will find.
func (f *fast) readTurn(fd uintptr) (done bool) {
	b := f.slots.Get().(*slots)
	defer f.slots.Put(b)
	for !f.s.over.Load() {
		n, errno := f.round(b, int(fd))
		switch {
		case errno == unix.EAGAIN:
			return false
		case errno != 0:
			f.err = errno
			return true
		case n < len(b.hdrs):
			return false
		}
	}
	return true
}

// round hands over the datagrams of one system call.
func (f *fast) round(b *slots, fd int) (n int, errno syscall.Errno) {
	n, errno = b.receive(fd)
	if errno != 0 {
		return 0, errno
	}
	f.next = 0
	r := f.s.begin()
	for i := range n {
		f.hand(&r, b, i)
	}
	r.end(fd)
	return n, 0
}

// drain implements batcher.
func (f *fast) drain(s *socket) {
	b := f.slots.Get().(*slots)
	defer f.slots.Put(b)
	f.raw.Control(func(fd uintptr) {
		for errs := 0; errs < drainErrors && !s.over.Load(); errs++ {
			switch _, errno := f.round(b, int(fd)); errno {
			case 0:
				errs = -1
			case unix.EAGAIN:
				return
			}
		}
	})
}

// hand hands over what is in one slot: a datagram, or with UDP_GRO some of one
// size but for the last, from one source.
func (f *fast) hand(r *round, b *slots, i int) {
	m := &b.hdrs[i]
	body := b.mem[i*b.stride:][:m.n]
	from := source{key: unsafe.Slice((*byte)(unsafe.Pointer(&b.names[i])), m.hdr.Namelen)}
	if len(b.ctls) > 0 {
		from.control = unsafe.Slice((*byte)(unsafe.Pointer(&b.ctls[i])), m.hdr.Controllen)
	}
	if !f.udp {
		// The zero behind a path that fills an address makes it longer than one to send to
		// may be.
		from.key = from.key[:min(len(from.key), unix.SizeofSockaddrUnix)]
		if len(from.key) <= 2 {
			from.key = nil // who has no address
		}
	}
	whole := m.hdr.Flags&unix.MSG_TRUNC == 0
	size := len(body)
	if f.gro {
		if c := find(from.control, unix.SOL_UDP, unix.UDP_GRO); len(c) >= 4 {
			size = max(1, int(binary.NativeEndian.Uint32(c)))
		} else if m.hdr.Flags&unix.MSG_CTRUNC != 0 {
			whole = false // where one ends and the next begins is not known
		}
	}
	for {
		part := body[:min(size, len(body))]
		r.datagram(&from, part, whole)
		if body = body[len(part):]; len(body) == 0 {
			return
		}
	}
}

// find is the data of a control message, or nil.
func find(control []byte, level, typ int32) []byte {
	for len(control) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(control)))
		n := int(h.Len)
		if n < unix.CmsgLen(0) || n > len(control) {
			return nil
		}
		if h.Level == level && h.Type == typ {
			return control[unix.CmsgLen(0):n]
		}
		control = control[min(len(control), unix.CmsgSpace(n-unix.CmsgLen(0))):]
	}
	return nil
}

// resolve implements batcher.
func (f *fast) resolve(from *source) {
	from.addr = address(from.key)
	if a, ok := from.addr.(*net.UDPAddr); ok {
		from.ap = a.AddrPort()
	}
	if !f.many {
		return
	}
	if c := find(from.control, unix.SOL_IP, unix.IP_PKTINFO); len(c) >= unix.SizeofInet4Pktinfo {
		from.local = netip.AddrFrom4([4]byte(c[4:8])) // what we answer from, also if it was sent to a group, or to all
	} else if c := find(from.control, unix.SOL_IPV6, unix.IPV6_PKTINFO); len(c) >= unix.SizeofInet6Pktinfo {
		from.local = netip.AddrFrom16([16]byte(c[:16]))
		if from.local.IsLinkLocalUnicast() { // which the system knows on one device alone
			from.device = binary.NativeEndian.Uint32(c[16:])
			from.local = from.local.WithZone(zone(from.device))
		}
	}
	if from.local.Unmap().IsMulticast() {
		from.local = netip.Addr{}
	}
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
		if device := binary.NativeEndian.Uint32(raw[24:]); device != 0 {
			ip = ip.WithZone(zone(device))
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

// zone is the name of a device, or else its number.
func zone(device uint32) string {
	if i, err := net.InterfaceByIndex(int(device)); err == nil {
		return i.Name
	}
	return strconv.Itoa(int(device))
}

// hurry implements batcher.
func (f *fast) hurry(by time.Time) { f.pc.SetWriteDeadline(by) }

// interrupt implements batcher.
func (f *fast) interrupt() {
	f.once.Do(func() { close(f.over) })
	f.pc.SetReadDeadline(longPast)
}

// close implements batcher.
func (f *fast) close() error { return f.pc.Close() }

// ---- sending ----

// tries implements batcher.
func (f *fast) tries() bool { return true }

// direct implements batcher. A Unix socket's datagrams wait in the receiver's socket,
// so what is not handed over is not on its way.
func (f *fast) direct() bool { return !f.udp }

// sending is a send under way, with what the system needs for it. It is pooled.
type sending struct {
	control  func(fd uintptr)
	writable func(fd uintptr) (done bool)

	f      *fast
	box    *outbox
	failed func(*session, error)
	next   int  // item that is to be sent next
	tried  bool // that one has failed once
	used   int  // headers

	hdrs  [writeBatch]mmsghdr
	iovs  [writeBatch]unix.Iovec
	ctls  [writeBatch]control
	count [writeBatch]int // of datagrams in each
}

var sendings = sync.Pool{New: func() any {
	t := new(sending)
	t.control = func(fd uintptr) { t.run(int(fd)) }
	t.writable = func(fd uintptr) bool { return t.run(int(fd)) }
	return t
}}

// send implements batcher.
func (f *fast) send(box *outbox, fd int, failed func(*session, error)) (done int) {
	t := sendings.Get().(*sending)
	t.f, t.box, t.failed, t.next, t.tried = f, box, failed, 0, false
	if raceSending != nil {
		raceSending(box.bytes)
	}
	var err error
	switch fd {
	case noFD:
		err = f.raw.Control(t.control)
	case wait:
		err = f.raw.Write(t.writable)
	default:
		t.run(fd)
	}
	if err != nil {
		for _, it := range box.items[t.next:] {
			failed(it.to, err)
		}
		t.next = len(box.items)
	}
	done = t.next
	runtime.KeepAlive(box)
	t.f, t.box, t.failed = nil, nil, nil
	for i := range t.used { // the pool must not keep what these point to
		t.iovs[i].Base, t.hdrs[i].hdr.Name = nil, nil
	}
	t.used = 0
	sendings.Put(t)
	return done
}

// run sends until all is sent, or the socket is full.
func (t *sending) run(fd int) (done bool) {
	for t.next < len(t.box.items) {
		n := t.prepare(t.box.items[t.next:], t.f.gso)
		for at := 0; at < n; {
			m, errno := t.sendmmsg(fd, at, n)
			for range m {
				t.next += t.count[at]
				t.tried = false
				at++
			}
			switch {
			case errno == 0:
			case errno == unix.EAGAIN:
				return false
			case t.count[at] > 1:
				if full := t.unsegmented(fd, t.count[at], errno); full {
					return false
				}
				at = n // prepare what follows again
			case !t.tried:
				t.tried = true // an error that an earlier one has met is told once, to anybody
			default:
				t.failed(t.box.items[t.next].to, errno)
				t.next++
				t.tried = false
				at++
			}
		}
	}
	return true
}

// unsegmented sends the datagrams of a run that was refused one by one, unless
// the socket is full. The next ones to that peer are sent so from the start: what refuses
// runs is mostly the way to it, with packets that are too small, or a device that cannot.
func (t *sending) unsegmented(fd, run int, errno syscall.Errno) (full bool) {
	if errno == unix.EIO || errno == unix.EINVAL || errno == unix.EOPNOTSUPP {
		t.box.items[t.next].to.single = true
	}
	for at, n := 0, t.prepare(t.box.items[t.next:][:run], false); at < n; {
		m, errno := t.sendmmsg(fd, at, n)
		if errno == unix.EAGAIN {
			return true // what is left will be tried again
		}
		at, t.next = at+m, t.next+m
		if m == 0 {
			t.failed(t.box.items[t.next].to, errno)
			at, t.next = at+1, t.next+1
		}
	}
	return false
}

// prepare makes the headers of at most writeBatch datagrams or runs.
func (t *sending) prepare(items []item, gso bool) (n int) {
	for i := 0; i < len(items) && n < writeBatch; n++ {
		k := 1
		if gso {
			k = run(items[i:])
		}
		first, to := items[i], items[i].to
		t.iovs[n] = unix.Iovec{}
		if end := items[i+k-1].end; end > first.from { // one after the other
			t.iovs[n].Base = &t.box.bytes[first.from]
			t.iovs[n].SetLen(end - first.from)
		}
		h := &t.hdrs[n].hdr
		*h = unix.Msghdr{Iov: &t.iovs[n]}
		h.SetIovlen(1)
		if !t.f.wired && len(to.key) > 0 {
			h.Name = unsafe.StringData(to.key)
			h.Namelen = uint32(len(to.key))
		}
		ctl := 0
		if k > 1 {
			binary.NativeEndian.PutUint16(t.ctls[n].add(&ctl, unix.SOL_UDP, unix.UDP_SEGMENT, 2), uint16(first.end-first.from))
		}
		if to.local.IsValid() {
			t.ctls[n].addLocal(&ctl, to, t.f.inet6)
		}
		if ctl > 0 {
			h.Control = (*byte)(unsafe.Pointer(&t.ctls[n]))
			h.SetControllen(ctl)
		}
		t.count[n] = k
		i += k
	}
	t.used = max(t.used, n)
	return n
}

// add appends a control message behind the first at bytes, and returns its data.
func (c *control) add(at *int, level, typ int32, size int) []byte {
	h := (*unix.Cmsghdr)(unsafe.Add(unsafe.Pointer(c), *at))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(size))
	data := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(h), unix.CmsgLen(0))), size)
	clear(data)
	*at += unix.CmsgSpace(size)
	return data
}

// addLocal appends the address that a datagram is to leave from.
func (c *control) addLocal(at *int, to *session, inet6 bool) {
	if inet6 {
		info := c.add(at, unix.SOL_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
		ip := to.local.As16()
		copy(info, ip[:])
		binary.NativeEndian.PutUint32(info[16:], to.device)
		return
	}
	ip := to.local.As4()
	copy(c.add(at, unix.SOL_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)[4:], ip[:])
}

// run is how many of the items may leave as one: to one peer, of one size but
// for the last, which may be shorter.
func run(items []item) int {
	first := items[0]
	size := first.end - first.from
	if size == 0 || size > segmentSize || first.to.single {
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

// sendmmsg sends the prepared ones from..n. An error is that of the first of
// them.
func (t *sending) sendmmsg(fd, from, n int) (sent int, errno syscall.Errno) {
	if h := &t.hdrs[from].hdr; n-from == 1 && h.Controllen == 0 {
		return t.sendto(fd, h)
	}
	for {
		r, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&t.hdrs[from])), uintptr(n-from), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			return int(r), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// sendto is sendmmsg of one, which spares the kernel the copying and checking of
// headers.
func (t *sending) sendto(fd int, h *unix.Msghdr) (sent int, errno syscall.Errno) {
	for {
		_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(h.Iov.Base)), uintptr(h.Iov.Len), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, uintptr(unsafe.Pointer(h.Name)), uintptr(h.Namelen))
		switch errno {
		case 0:
			return 1, 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}
