// Package sockhub lets one program talk to many peers over sockets: a [Hub]
// owns the connections, accepts and dials them, and reports what happens on all
// of them in batches on one channel, [Hub.Events]. The program ranges over that
// channel, or selects on it beside its other channels, and sends from any
// goroutine. This server sends back what it gets, to as many clients as come:
//
//	hub, err := sockhub.New(ctx, nil)
//	if err != nil {
//		return err
//	}
//	if _, err := hub.Listen(ctx, "tcp", "127.0.0.1:4040", nil); err != nil {
//		return err
//	}
//	for b := range hub.Events() {
//		for c, msg := range b.Messages() {
//			if err := c.TrySend(msg); err != nil {
//				c.Close() // 4 MiB of answers to it are under way
//			}
//		}
//	}
//
// What follows is the whole of it, to be read once from top to bottom: what the
// parts are, how they begin and end, what a loop has to do, whose the memory is,
// what happens when somebody is slow, and what can be relied upon. The examples
// show each part at work.
//
// # The model
//
//	 peers   one reader per connection     hub                 program
//
//	socket ──► reader ──► messages ──┐
//	socket ──► reader ──► messages ──┼──► goroutine ──► Events() ──► for b := range …
//	socket ──► reader ──► messages ──┘                                      │
//	   ▲                                                                    │
//	   └────── writer ◄──── queue of the connection ◄──── Send, Broadcast ──┘
//
// Every connection has a reader goroutine, and a writer goroutine while there
// is output. What the readers have goes to the hub's own goroutine, which puts
// one [Batch] into Events. While the program is busy, what follows is merged
// into the batch that waits: the more there is to do, the more is done at a
// time, and a slow program is not flooded, since reading pauses at ConnInbound.
//
// Traffic is messages: each is its length, 8 bytes little-endian, and its
// body (other framings: [LengthPrefix], [Uvarint]). Peers are named or
// anonymous ([Mode]). A named peer gives its name as its first message and is
// answered OK; before that, the rules ([Rule]) of the hub, the listener and the
// name say whether it may have that name from where it is. A peer that they
// refuse is disconnected without an answer. A name has one connection at a time in
// the whole hub, through whichever listener. Both sides must use the same Mode.
//
// An [ID] is a client: a name registered with [Hub.Expect], a peer that is
// dialed (again and again, with DialOptions.Reconnect), or else one connection.
// A [Conn] is one connection of a client.
//
// A connection can have a [Handler], which is called on its reader goroutine
// and answers there: the shortest way. A connection that has its Handler from
// the options is not seen in Events.
//
// All methods of [Hub], [Listener] and [Conn] may be called from any goroutine at
// any time, from callbacks too. A [Reply] is an exception: it belongs to the call
// of the Handler that it was given to.
//
// # Life cycle
//
// [New] makes a hub. [Hub.Listen] and [Hub.Serve] accept connections,
// [Hub.Dial] makes one, and [Hub.ServeConn] and [Hub.Attach] take over one that
// is open: a net.Conn, two pipes, anything that reads, writes and closes. Their
// context bounds the call; New's is the life of the hub. The options of each can
// ask for TLS, and those of a listener can choose by the first bytes that come
// what a connection is served with (Classify).
//
// [Conn.Finish] ends a connection when its queue is written, [Conn.Close] at
// once. When a peer finishes sending, that is reported as Ended in a later batch
// than its last messages. When that batch was taken (received from Events), they have
// been answered: the answers are written, and the connection ends. A program that answers later
// than that, from other goroutines, sets HalfOpen and calls Finish.
//
// [Hub.Shutdown] does the same to all connections, as if all peers had finished
// sending; the loop over Events goes on until the channel is closed. [Hub.Close]
// ends everything at once. Both return when all sockets are closed and no
// goroutine of the hub is left, except that a Handler's call that is running is
// not waited for. Nobody has to receive from Events for that.
//
// # Handling a batch
//
// The fields of a batch stand in the order in which to handle them:
//
//	Connected     expected and dialed clients that connected
//	Unknown       others that connected: anonymous, or of a name not registered
//	Received      messages, connection by connection
//	Drained       queues that are empty again, all of it with the kernel
//	Ended         peers that have finished sending
//	Disconnected  connections that have ended, and what became of their output
//
// One batch never concerns two connections of the same client. A batch may be
// empty. If several goroutines receive from Events, nothing orders their
// batches. What a program wants to know of each connection it keeps with it
// ([Conn.SetValue]), or in a map that Disconnected cleans up.
//
// # Callbacks
//
// A [Handler], and the function that makes it, run on the reader goroutine of
// their connection, and may take their time: that holds up this peer alone. Rules
// and Classify run during the handshake, for several peers at a time, and have
// HandshakeTimeout. Iterators that are given to SendMany and Broadcast run on the
// goroutine of the caller; that of SendMany must not send to its own connection.
// The methods of a [Framing] are called with locks held, and must only compute. A
// Handler, a rule or a Classify that panics ends its own connection, or refuses
// it, and no other; the panic of an iterator is its caller's.
//
// # Errors
//
// What a program decides on are values for errors.Is, such as [ErrBackpressure]
// and [ErrRefused], and types for errors.As: [AdmissionError], [BroadcastError],
// [PanicError]. Errors of the system are those of package net, with the system
// call's error inside. [ErrClosed] matches net.ErrClosed too. What a system or a
// kind of connection cannot do matches errors.ErrUnsupported. The texts of errors
// may change.
//
// # Whose memory it is
//
// A message that was received is the program's for good: it may be changed in place
// before it is sent on. Its cap is its len, so append copies. Small messages that
// came together share up to 16 KiB of memory; clone one that is kept for long.
//
// With ReuseBuffers, a message is lent: until [Batch.Release], or until the
// Handler's call returns. Then its memory is used for what comes next, so that
// nothing is left to the garbage collector and the memory stays in the caches;
// messages of 4 KiB and more gain most. Before that moment it may be changed in
// place too, and the message, or a part of it, may be given to any Send, Reply.Send
// or Broadcast, for any client: the hub keeps what it needs until that is written.
// Keeping it, or handing it to another goroutine, takes a clone. A batch that is
// never released costs memory and nothing else.
//
// A message that is sent is the hub's: it must not be changed afterwards, as a
// value sent to a channel by pointer must not. The same slice may be sent to
// many, a received one too.
//
// # Backpressure
//
// Out: a message is accepted while its connection's queue is charged less than
// ConnOutbound, so that one of any size may enter an empty queue, if OutboundLimit has
// room for it. A message is charged its length and [MessageCharge]. When the queue is
// full, the [OverflowPolicy] decides: Send waits for room until its context ends
// (BlockSender, the default), or the message is refused, or the oldest one is dropped,
// or the peer is disconnected. TrySend never waits. A slow peer never delays what is
// sent to others, unless the program waits for it: a loop over Events should use
// TrySend. That is refused too for a peer that reads, but sends very fast without
// waiting for its answers: one batch can bring ConnInbound, and so fill a queue. For
// such peers, use a Handler. Two loops that wait for room in each other's queues stand
// still until WriteTimeout. A program with much to send makes it part by part, each when
// Drained says that the one before is gone ([Conn.NotifyDrained]). A Handler may answer
// each message once, whatever is queued; when that has filled the queue, it is not
// called again before there is room.
//
// In: when the messages of a connection that the program has not taken are
// charged ConnInbound, its reading pauses until they are taken, and so in the
// end does its peer. Nothing is dropped. A [Stream] holds up what comes behind it
// until it was read or closed, and no timeout ends that wait.
//
// InboundLimit, OutboundLimit and MemoryLimit bound the same for all connections
// of a hub, or of the hubs that share a [Budget]. Half of OutboundLimit is
// divided among the connections that there may be, and the rest goes to those that
// come first, so none can take the room of all. However full InboundLimit is
// with the beginnings of messages, some of them can be completed, and those of up to
// 2 KiB, for which each connection has room of its own, do not wait for that. MemoryLimit counts
// what was received, the unsent messages in reports, and of the queues what is in the
// half for those that come first. When it is reached, nothing is read and nobody let in.
//
// # What is promised about delivery
//
//   - A nil error of Send means: the message is in the queue of this connection,
//     exactly once. It is not written yet, nor received.
//   - An error of Send means that nothing of the message was accepted. SendMany
//     returns how many were: exactly the first n, in one run. SendFrom refuses
//     or withdraws its message whole until the first byte is written; if it
//     fails after that, the message is cut and the connection ends.
//   - Messages leave a connection in the order in which they were accepted. Those
//     of concurrent senders alternate as wholes. What a Handler's call sends is
//     accepted at Flush or when the call returns. Nothing orders the messages of
//     two connections, not even of two that the same client had.
//   - Delivery is at most once. What the peer gets is a prefix of what was
//     accepted, less what DropOldest dropped: without gap, duplicate or change of
//     order, and no part of a message with another one behind it. Nothing is sent
//     again after a reconnect, or moved to the new connection.
//   - Every connection that was reported has exactly one Disconnected, after all
//     its messages, with the reason and a [Report]: accepted = written + unsent +
//     dropped + the one that was cut, in messages and in bytes. Unsent messages
//     have certainly not been delivered, and are in the report, to be sent
//     elsewhere. Those written are with the kernel, and how many bytes the peer's
//     kernel has not acknowledged stands in Unacked where the system tells:
//     these may have arrived or not. What it has acknowledged, the peer's program
//     may still not have read: if that matters, let the peers answer.
//   - Drained means that the queue is empty and all of it was given to the kernel.
//     It is reported when output had to wait, or NotifyDrained asked for it; to a
//     Handler, each time that the queue was emptied.
//   - After Shutdown and Close, Events yields what remains and is then closed.
//   - A message that was received is delivered once, to the Handler or in a batch.
//     All that were complete before the peer finished come before its
//     Disconnected. A switch between messages and raw bytes keeps what was read.
//
// # Limits and defaults
//
//	HandshakeTimeout      5 s      from accept to the accepted name, in all
//	name                  1 to 255 bytes; 1 KiB is read before it is accepted (4 of what is no socket)
//	MaxPending            1,024    handshakes; above, the oldest of the heaviest source goes
//	MaxPendingPerSource   64       from which on an address or uid is heavy
//	MaxConns              65,536   or fewer, where fewer descriptors can be open
//	MaxMessage            64 MiB   received whole, or sent by other than SendFrom
//	StreamOver            never    larger messages come as a Stream, of any size
//	ConnOutbound          4 MiB    queued, per connection
//	ConnInbound           4 MiB    received and not taken, per connection
//	OutboundLimit         512 MiB  queued, in all
//	InboundLimit          512 MiB  received and not taken, in all; at least 2 × (MaxMessage + 64 KiB);
//	                               2 KiB of each connection do not count
//	MemoryLimit           2 GiB    both, and the unsent messages in reports
//	MessageCharge         64 B     of a message, beside its length
//	WriteTimeout          10 s     without any progress of the output
//	FrameTimeout          30 s     without progress of a message that has begun
//	IdleTimeout           none     without input
//	Linger                500 ms   for the peer's FIN after ours
//	DialOptions.Timeout   5 s      for each attempt
//	Backoff               100 ms, 1.6 times as long each time up to 30 s, ± 20 %
//	TCP keep-alive        15 s, then 3 probes every 5 s
//	FileMode              0600     of a Unix socket, from its first moment
//	Unexpected            HoldUnexpected   of an unregistered name: connected, in Unknown
//	Duplicates            RefuseNew        of a name that is connected
//	Overflow              BlockSender
//
// A zero field of the options is its default, a negative limit or duration is
// none, and a contradiction is an error. (An option that means nothing for a network or
// a mode is passed over, unless somebody's safety may rest on it.) A length above MaxMessage ends the
// connection before anything is allocated for it; below, memory grows with the
// bytes that come and not with those that are announced. (With ReuseBuffers, memory
// that lies about is lent to what has begun, as long as all that is lent, and what
// has come, is within InboundLimit.)
//
// # Platforms
//
// It is developed and tested on Linux (amd64 and 386). For the others it is built
// and was not tested. What they have:
//
//	                             Linux,   macOS,            NetBSD,
//	                             Android  iOS      FreeBSD  OpenBSD  Windows
//	direct system calls          yes      yes      yes      yes      -
//	abstract Unix sockets        yes      -        -        -        -
//	uid, gid of a Unix peer      yes      yes      yes      -        -
//	its process id               yes      yes      -        -        -
//	FileMode                     yes      yes      yes      yes      -
//	dead socket files replaced   yes      yes      yes      yes      -
//	ReusePort                    yes      (1)      yes      (1)      -
//	Report.Unacked of TCP        yes      yes      yes      -        -
//	  of Unix sockets            if 0     -        -        -        -
//	keep-alive where output      yes (4)  (3)      (3)      (3)      (3)
//	  is under way
//	what came before a reset     yes      (2)      (2)      (2)      (2)
//
//	(1) the port is shared, but nothing says who gets a connection
//	(2) what had not been read when the reset came may be lost
//	(3) the system sends that again, and tells that nobody answers when it gives up, which
//	    may take a quarter of an hour
//	(4) up to 5 s late; more, if the peer had no room before, as it is then asked rarely
//
// Where there are no direct system calls, package net's are used, which cost
// more. Nothing else that is lacking is passed over in silence: to ask for it is
// an error that matches errors.ErrUnsupported, a [Rule] that needs credentials
// denies, and Unacked is -1. Where dead socket files are not replaced, they have
// to be removed by hand.
package sockhub
