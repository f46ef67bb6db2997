// Package memnet is a network in memory, for tests that must be deterministic:
// connected pairs of stream ends, and a listener that hands them out, which
// behave like Linux's TCP or Unix sockets down to the corners that a program
// gets wrong, and which break on demand.
//
// An [End] is a net.Conn, for the test's side, and carries a transport.Conn,
// for the code under test; transport.New finds it. Both views are of the same
// end: an end is used through one of them.
//
// Nothing here runs a goroutine of its own, holds a mutex across a wait, or
// keeps state outside the pair or the listener that was made, so that all of
// it works inside a bubble of testing/synctest: whoever waits, waits in
// sync.Cond.Wait, which is durably blocking, and time is the bubble's. Where a
// fault needs time, one timer per pair does it.
//
// What is imitated, and where it comes from:
//
//   - Edges. A parked Read or Write is woken by arrivals, not by what is there,
//     as with epoll's EPOLLET; arrivals coalesce; and the first turn of a Read
//     or Write forgets the edges before it, as the runtime's poller does. Code
//     that parks without having drained sleeps.
//   - TCP_INQ. A read that empties the queue says drained, except before a FIN,
//     and also before a reset, which is the kernel's answer and a trap.
//   - Room. A writer that met a full buffer is woken when a third of it is free
//     (sk_stream_is_writable), not at the first byte.
//   - Resets. What had arrived is read first, then comes ECONNRESET, once for
//     the whole socket: the write that fails takes the error away, and the
//     reads that follow see the end of the input. After a FIN no read reports
//     a reset (tcp_recvmsg looks at SOCK_DONE first), and writes get EPIPE.
//   - Closing. Input that nobody read, or that arrives later, resets the peer.
//
// What is not: packets, windows and retransmission; SIGPIPE; out-of-band data.
package memnet
