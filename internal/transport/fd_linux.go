package transport

import (
	"io"
	"os"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pendingEvents is what Pending looks for, beside the errors and hang-ups that
// poll always reports.
const pendingEvents = unix.POLLIN | unix.POLLRDHUP

// endedEvents is what Ended looks for, beside these.
const endedEvents = unix.POLLRDHUP

// enableInq asks for the number of bytes left after each receive, as a control
// message (Linux 4.18). Without it every drained read costs one more receive,
// the one that returns EAGAIN.
func enableInq(fd int) error {
	return unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_INQ, 1)
}

// receive takes what there is, up to len(p) bytes, without waiting. raw says that
// the call may keep its P.
//
// The system calls are made directly rather than through the functions of
// x/sys, which allocate an address or an error per call. Their structures are
// on the stack: the pointers are converted in the call's own argument list,
// and a stack does not move during a system call.
func receive(fd int, p []byte, raw bool) (n int, drained bool, errno unix.Errno) {
	for {
		var r uintptr
		if raw {
			r, _, errno = unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd),
				uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_DONTWAIT, 0, 0)
		} else {
			r, _, errno = unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd),
				uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_DONTWAIT, 0, 0)
		}
		if errno == 0 {
			return int(r), false, 0
		}
		if errno != unix.EINTR {
			return 0, true, errno
		}
	}
}

// inqSpace is room for the control message that tells what is left, and for a
// time stamp if somebody asked the socket for those. Its element type aligns it
// as the kernel does.
type inqSpace [7]uint64

// receiveInq is receive on a socket on which enableInq has succeeded.
func receiveInq(fd int, p []byte, raw bool) (n int, drained bool, errno unix.Errno) {
	var space inqSpace
	iov := unix.Iovec{Base: unsafe.SliceData(p)}
	iov.SetLen(len(p))
	for {
		hdr := unix.Msghdr{Iov: &iov, Control: (*byte)(unsafe.Pointer(&space))}
		hdr.SetIovlen(1)
		hdr.SetControllen(int(unsafe.Sizeof(space)))
		var r uintptr
		if raw {
			r, _, errno = unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&hdr)), unix.MSG_DONTWAIT)
		} else {
			r, _, errno = unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&hdr)), unix.MSG_DONTWAIT)
		}
		runtime.KeepAlive(&iov)
		runtime.KeepAlive(p)
		if errno == 0 {
			return int(r), nothingLeft(&space, int(hdr.Controllen)), 0
		}
		if errno != unix.EINTR {
			return 0, true, errno
		}
	}
}

// nothingLeft looks for the count of bytes left in the first n bytes of the
// control messages, and reports that it is there and is zero. Where it is
// absent or cut, more must be presumed: the cost is one receive, that of the
// opposite a connection that hangs.
//
// A zero can deceive in one case: a reset that comes behind the data is no
// byte, and its edge may have been the data's. A FIN behind the data counts as
// one byte, so it cannot be missed.
func nothingLeft(space *inqSpace, n int) bool {
	data := unix.CmsgLen(0)
	for off := 0; off+data <= n; {
		h := (*unix.Cmsghdr)(unsafe.Add(unsafe.Pointer(space), off))
		size := int(h.Len)
		if size < data || size > n-off {
			return false
		}
		if h.Level == unix.SOL_TCP && h.Type == unix.TCP_CM_INQ {
			return size >= unix.CmsgLen(4) && *(*int32)(unsafe.Add(unsafe.Pointer(h), data)) == 0
		}
		off += unix.CmsgSpace(size - data)
	}
	return false
}

// vectors holds what large sends need beyond the stack, 16 KiB a piece.
var vectors = sync.Pool{New: func() any { return new([iovMax]unix.Iovec) }}

// send sends v as far as the socket takes it without waiting. raw says that a
// small transfer may keep its P.
func send(fd int, v [][]byte, raw bool) (n int, err error) {
	if len(v) == 1 && len(v[0]) <= sendMax {
		return sendOne(fd, v[0], raw && len(v[0]) <= rawLimit) // most are
	}
	return sendMany(fd, v, raw)
}

// sendOne sends one slice by sendto, which spares the kernel the copying and
// checking of a header and a vector, and us the memory for them: with many
// connections each one's stack is out of the caches.
func sendOne(fd int, p []byte, raw bool) (n int, err error) {
	for {
		var r uintptr
		var errno unix.Errno
		if raw {
			r, _, errno = unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), sendFlags, 0, 0)
		} else {
			r, _, errno = unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), sendFlags, 0, 0)
		}
		switch errno {
		case 0:
			return int(r), nil
		case unix.EAGAIN:
			return 0, nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

const sendFlags = unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL

func sendMany(fd int, v [][]byte, raw bool) (n int, err error) {
	// Most of these are of a few slices.
	var few [8]unix.Iovec
	if len(v) <= len(few) {
		return sendVector(fd, v, few[:], raw)
	}
	many := vectors.Get().(*[iovMax]unix.Iovec)
	n, err = sendVector(fd, v, many[:], raw)
	clear(many[:min(len(v), iovMax)]) // the pool must not keep a user's bytes alive
	vectors.Put(many)
	return n, err
}

// sendVector is send with room for the system's form of v, or of a part of it
// at a time. It goes on until all is sent or a count falls short: stopping
// before that would park a writer on a socket that is not full, and whose next
// edge never comes.
func sendVector(fd int, v [][]byte, room []unix.Iovec, raw bool) (n int, err error) {
	i, off := 0, 0 // what follows is v[i][off:], v[i+1], ...
	for {
		k, size := 0, 0
		for ; i < len(v) && k < len(room) && size < sendMax; i, off = i+1, 0 {
			b := v[i][off:]
			if len(b) == 0 {
				continue
			}
			room[k].Base = unsafe.SliceData(b)
			if len(b) > sendMax-size {
				b = b[:sendMax-size]
				off += len(b)
				room[k].SetLen(len(b))
				k, size = k+1, sendMax
				break
			}
			room[k].SetLen(len(b))
			k, size = k+1, size+len(b)
		}
		if k == 0 {
			return n, nil
		}
		m, errno := sendmsg(fd, room[:k], raw && size <= rawLimit)
		runtime.KeepAlive(v)
		n += m
		if errno != 0 && errno != unix.EAGAIN {
			return n, errno
		}
		if m < size {
			return n, nil
		}
	}
}

// sendmsg sends a vector.
func sendmsg(fd int, vector []unix.Iovec, raw bool) (n int, errno unix.Errno) {
	hdr := unix.Msghdr{Iov: unsafe.SliceData(vector)}
	hdr.SetIovlen(len(vector))
	for {
		var r uintptr
		if raw {
			r, _, errno = unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&hdr)), sendFlags)
		} else {
			r, _, errno = unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&hdr)), sendFlags)
		}
		runtime.KeepAlive(vector)
		if errno == 0 {
			return int(r), 0
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// goneLocked is Gone on the descriptor.
func (c *fdConn) goneLocked(fd int) error {
	if c.tcp {
		return c.goneTCPLocked(fd)
	}
	revents, err := poll(fd, 0)
	if err != nil {
		return err
	}
	// Set where the peer closed and left something of ours unread.
	if err := socketError(fd); err != nil {
		return err
	}
	if revents&unix.POLLHUP == 0 {
		return nil
	}
	// The hang-up says that neither side will send. If we have ended our
	// output ourselves, the peer may still be reading what is under way; all
	// that is, counts as ours until it was read or thrown away.
	if c.fin {
		if n, err := sendQueue(fd); err == nil && n > 0 {
			return nil
		}
	}
	return io.EOF
}

func (c *fdConn) goneTCPLocked(fd int) error {
	// The state first: a reset records its error before it closes, so a
	// closed state means that the error, if any, can be seen. While the state
	// is another, SO_ERROR is not asked at all: it would also tell, as an
	// error, of passing troubles on the way that TCP has got over.
	info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
	if err != nil {
		// Multipath TCP has no answer once its first path is gone.
		return socketError(fd)
	}
	if info.State != unix.BPF_TCP_CLOSE {
		return nil
	}
	switch err := socketError(fd); {
	case err == unix.EPIPE:
		// Linux's word for a reset that comes after the peer's FIN.
		return unix.ECONNRESET
	case err != nil:
		return err
	case c.fin:
		// Both FINs were sent and ours is acknowledged. Nothing was
		// written after it that could have taken a reset's error away.
		return io.EOF
	}
	// Without a FIN of ours only a failure closes; a write has consumed its
	// error.
	return unix.ECONNRESET
}

// sendQueue is what the socket still holds of its output. (Not unix.IoctlGetInt,
// which hands the kernel an int of 8 bytes to set 4 of: wrong on big-endian
// systems.)
func sendQueue(fd int) (int, error) {
	n, err := unix.IoctlGetUint32(fd, unix.SIOCOUTQ)
	return int(n), err
}

// unackedLocked is Unacked on the descriptor.
func (c *fdConn) unackedLocked(fd int) (n int, ok bool) {
	n, err := sendQueue(fd)
	if err != nil {
		return 0, false
	}
	if !c.tcp {
		// Unix sockets count the memory of what the peer has not read,
		// with all that is around the bytes.
		return n, n == 0
	}
	// TCP's count is that of sequence numbers, in which our FIN is one, the
	// last. Acknowledgements are cumulative: whatever is not acknowledged
	// includes the FIN, so there is no need to ask in which state the
	// connection is.
	if c.fin && n > 0 {
		n--
	}
	return n, true
}

// Patience implements Prober. A connection of Multipath TCP has several ways, of which
// the system shows one.
func (c *fdConn) Patience() (d time.Duration) {
	if c.tcp {
		c.raw.Control(func(fd uintptr) { d = keepAlive(int(fd)) })
	}
	return d
}

// keepAlive is Patience of a TCP socket.
func keepAlive(fd int) time.Duration {
	get := func(level, name int) time.Duration {
		n, err := unix.GetsockoptInt(fd, level, name)
		if err != nil {
			return 0
		}
		return time.Duration(n)
	}
	if get(unix.SOL_SOCKET, unix.SO_PROTOCOL) != unix.IPPROTO_TCP || get(unix.SOL_SOCKET, unix.SO_KEEPALIVE) == 0 {
		return 0
	}
	return (get(unix.SOL_TCP, unix.TCP_KEEPIDLE) + get(unix.SOL_TCP, unix.TCP_KEEPCNT)*get(unix.SOL_TCP, unix.TCP_KEEPINTVL)) * time.Second
}

// Unanswered implements Prober. A peer that has no room is asked too, by probes of its
// window, or by what it had no room for, but ever more rarely, up to once in two minutes:
// so what counts there is whether it has answered the last time. Probes also counts those
// of keep-alive.
func (c *fdConn) Unanswered() (waits bool, tries int, heard time.Duration) {
	c.raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		waits = info.Unacked > 0 || info.Notsent_bytes > 0 || info.Probes > 0
		tries = int(info.Probes) // since any answer
		last := min(info.Last_ack_recv, info.Last_data_recv)
		if info.Unacked > 0 && last > info.Last_data_sent {
			tries += 1 + int(info.Retransmits) // since an answer that took something
		}
		heard = time.Duration(last) * time.Millisecond
	})
	return waits, tries, heard
}

// TrySendFile implements FileSender.
func (c *fdConn) TrySendFile(file *os.File, n int) (sent int, err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, ErrNoFile
	}
	if e := raw.Control(func(fd uintptr) { sent, err = sendfile(int(c.wfd.Load()), int(fd), n) }); e != nil {
		return 0, ErrNoFile // it was closed: who reads it will say so
	}
	return sent, err
}

func sendfile(to, from, n int) (sent int, err error) {
	for sent < n {
		m, err := unix.Sendfile(to, from, nil, n-sent)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return sent, nil
		case err == unix.EINVAL, err == unix.ENOSYS, err == unix.EOPNOTSUPP, err == unix.EIO, err == unix.EOVERFLOW:
			return sent, ErrNoFile
		case err != nil:
			return sent, err
		case m == 0:
			return sent, io.EOF
		}
		sent += m
	}
	return sent, nil
}
