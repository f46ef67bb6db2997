#!/usr/bin/env python3
"""A peer for tests that speaks the wire format on its own.

It shares no code with the library, so a mistake made on both ends of a Go
test cannot cancel out.  Python 3.9 or newer, standard library alone.

    wirepeer.py connect ADDR [--name NAME] ...
    wirepeer.py listen  ADDR [--accept-name NAME | --any-name | --anonymous] ...

ADDR is tcp:HOST:PORT (tcp:[::1]:0), unix:/path or unix:@abstract.

The wire
    A message is its length as an unsigned 64-bit little-endian number, then
    its body.  Length 0 is a message.  The connecting side may send its name as
    the first message; it then expects the message OK.  The listening side
    refuses by closing without an answer.  Anonymous: neither of the two.

Bodies
    Byte i of message k of seed s is (31*i + 7*k + s) mod 256; i and k count
    from 0.  k counts the messages of one direction of one connection, without
    the name and OK.

What it prints on stdout, each line flushed at once
    LISTENING a   bound; a is host:port, /path or @abstract
    STALLED n     a --stall or --stall-read began, after n bytes
    DONE messages_sent=N messages_received=N bytes_sent=N bytes_received=N
                  the last line, only on success: sums over all connections of
                  complete messages and of wire bytes (with headers), both
                  without the handshake

Exit status 0 means that everything expected happened.  Otherwise there is one
line on stderr, and the status is 1 (2 where the arguments were wrong).
"""

import argparse
import collections
import errno
import itertools
import os
import queue
import re
import select
import socket
import struct
import sys
import threading
import time

HEADER = struct.Struct("<Q")
MAX_NAME = 1024  # what a listening peer is willing to read as a name
MAX_BODY = 1 << 30  # a longer declared length is a mistake of the other side
MAX_SENDS = 1 << 20  # more pieces than this is a mistake in the arguments
READ_SIZE = 1 << 18
TICK = 0.02  # how often a stalled connection looks for the end of its stall

RESETS = {
    getattr(errno, name)
    for name in ("ECONNRESET", "EPIPE", "ECONNABORTED", "WSAECONNRESET", "WSAECONNABORTED")
    if hasattr(errno, name)
}


class Failure(Exception):
    """Something that was expected did not happen; the text is for the user."""


class Ended(Exception):
    """The script is over, early and as intended."""


# --- the wire format and the bodies -----------------------------------------

PATTERN = bytes(31 * i & 0xFF for i in range(256))


def body(seed, k, size):
    """Body of message k, made in bulk.

    31*i + d = 31*(i + 223*d) mod 256, since 31*223 = 1 mod 256.  So every body
    is PATTERN repeated, begun at another place.
    """
    start = 223 * (7 * k + seed) & 0xFF
    turn = PATTERN[start:] + PATTERN[:start]
    return (turn * (size // 256 + 1))[:size]


def frame(message):
    return HEADER.pack(len(message)) + message


def check(message, seed, k, size):
    """Fail unless message is message k, of that size, byte for byte."""
    if len(message) != size:
        raise Failure(f"message {k} has {len(message)} bytes, want {size}")
    want = body(seed, k, size)
    if message != want:
        i = next(i for i in range(size) if message[i] != want[i])
        raise Failure(f"message {k} of {size} bytes differs at byte {i}: got {message[i]:#04x}, want {want[i]:#04x}")


class Decoder:
    """Cuts a byte stream into messages."""

    def __init__(self):
        self.buffer = bytearray()
        self.size = None  # of the body that has begun
        self.limit = MAX_NAME  # of a body; the handshake comes first

    def lacking(self):
        """Bytes until the header or body that has begun is complete."""
        return (HEADER.size if self.size is None else self.size) - len(self.buffer)

    def partial(self):
        return self.size is not None or len(self.buffer) > 0

    def check_partial(self, seed, k, size):
        """Fail unless what has begun is a beginning of message k."""
        if self.size is None:
            good = HEADER.pack(size).startswith(self.buffer)
        else:
            good = self.size == size and body(seed, k, size).startswith(self.buffer)
        if not good:
            raise Failure(f"what came before the end is not a part of message {k} of {size} bytes")

    def feed(self, data):
        """Add data, yield the messages it completes."""
        self.buffer += data
        while self.lacking() <= 0:
            if self.size is None:
                (self.size,) = HEADER.unpack_from(self.buffer)
                del self.buffer[: HEADER.size]
                if self.size > self.limit:
                    raise Failure(f"a header declares {self.size} bytes")
            else:
                message = bytes(memoryview(self.buffer)[: self.size])
                del self.buffer[: self.size]
                self.size = None
                yield message


# --- one connection -----------------------------------------------------------


class Stall:
    """One direction that pauses once, after a number of bytes."""

    def __init__(self, until, release):
        self.until = until  # "close", "stdin" or seconds
        self.release = release  # threading.Event, set by a line on stdin
        self.limit = None  # in bytes of the connection; None: no stall to come
        self.active = False
        self.began = 0.0

    def update(self, done, now):
        """Begin or end the stall; done is the number of bytes so far."""
        if self.limit is not None and done >= self.limit:
            self.limit, self.active, self.began = None, True, now
            return True
        if self.active:
            if self.until == "stdin":
                self.active = not self.release.is_set()
            elif self.until != "close":
                self.active = now < self.began + self.until
        return False


class Connection:
    """A socket with an output that is shaped and an input that is decoded.

    Both directions advance in step(), whatever the caller waits for, so two
    peers that send each other any amount cannot lock up.  Not for use by more
    than one thread.
    """

    def __init__(self, sock, opts, release):
        self.sock = sock
        self.opts = opts
        sock.setblocking(False)
        if sock.family != getattr(socket, "AF_UNIX", None):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        # Output.  source yields messages; they are framed into pending no
        # earlier than the shape of the sends needs.
        self.source = iter(())
        self.pending = bytearray()
        self.queued = 0  # bytes ever put into pending
        self.sent = 0
        self.ends = collections.deque()  # offsets at which counted messages end
        self.messages_sent = 0
        self.out_base = 0  # bytes of the handshake
        self.fin_after_source = False
        self.fin_sent = False
        self.send_dead = False  # the other side takes no more
        self.next_send = 0.0
        self.send_stall = Stall(opts.stall_until, release)
        self.cut_at = None  # offset after which --reset or --cut closes

        # Input.
        self.decoder = Decoder()
        self.inbox = collections.deque()
        self.read = 0
        self.messages_read = 0
        self.in_base = 0
        self.exact = True  # read no byte beyond the item that has begun
        self.discard = False  # count messages, keep none
        self.eof = False
        self.reset = False
        self.next_read = 0.0
        self.read_stall = Stall(opts.stall_until, release)

    # What scripts use.

    def queue(self, data, counted=True):
        self.pending += data
        self.queued += len(data)
        if counted:
            self.ends.append(self.queued)

    def receive(self, what):
        """The next message, or None at the end of the input."""
        while not self.inbox:
            if self.eof:
                if self.opts.cut_ok or self.stalled_to_the_end():
                    raise Ended
                if self.reset and not self.opts.reset_ok:
                    raise Failure(f"connection reset while waiting for {what}")
                if self.decoder.partial():
                    raise Failure(f"connection ended within a message while waiting for {what}")
                return None
            self.step(f"waiting for {what}")
        return self.inbox.popleft()

    def flush(self):
        """Return when all of the output was handed to the kernel."""
        while True:
            self.refill()
            if not self.pending:
                break
            if self.send_dead:
                if self.opts.cut_ok or self.stalled_to_the_end():
                    raise Ended
                raise Failure(f"the other side closed after {self.sent - self.out_base} bytes were sent")
            self.step("sending")
        # A limit that is the exact end of the output acts only now.
        while self.cut_at is not None or self.send_stall.limit is not None or self.send_stall.active:
            limit = self.cut_at if self.cut_at is not None else self.send_stall.limit
            if limit is not None and limit > self.sent:
                raise Failure(f"only {self.sent - self.out_base} bytes to send, fewer than --stall, --reset or --cut says")
            self.step("stalling")

    def stalled_to_the_end(self):
        """Whether a stall until close has got the end it waits for."""
        ended = (self.send_stall, self.eof), (self.read_stall, self.send_dead)
        return any(stall.active and stall.until == "close" and end for stall, end in ended)

    def shutdown(self):
        """Send FIN."""
        if not self.fin_sent and not self.send_dead:
            self.fin_sent = True
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError as e:
                if e.errno not in RESETS and e.errno != errno.ENOTCONN:
                    raise
                self.send_dead = True

    def expect_end(self, what, reset_ok=False):
        """The other side must close and send nothing before that."""
        while True:
            if not self.discard and (self.inbox or self.decoder.partial()):
                n = sum(HEADER.size + len(m) for m in self.inbox) + len(self.decoder.buffer)
                n += HEADER.size if self.decoder.size is not None else 0
                raise Failure(f"{n} bytes came instead of {what}")
            if self.eof:
                break
            self.step(f"waiting for {what}")
        if self.opts.cut_ok or self.stalled_to_the_end():
            raise Ended
        if self.decoder.partial():
            raise Failure(f"connection ended within a message while waiting for {what}")
        if self.reset and not (reset_ok or self.opts.reset_ok):
            raise Failure(f"connection reset instead of {what}")

    def handshake_done(self):
        self.exact = False
        self.decoder.limit = MAX_BODY
        if not self.opts.from_start:
            self.arm()

    def arm(self):
        """Let --stall, --stall-read, --reset and --cut count from here on."""
        opts, from_start = self.opts, self.opts.from_start
        out_base, in_base = (0, 0) if from_start else (self.out_base, self.in_base)
        if opts.stall is not None:
            self.send_stall.limit = out_base + opts.stall
        if opts.stall_read is not None:
            self.read_stall.limit = in_base + opts.stall_read
        after = opts.reset if opts.reset is not None else opts.cut
        if after is not None:
            self.cut_at = out_base + after

    # The machinery.

    def step(self, doing):
        """Wait for the socket once, and do what it allows."""
        now = time.monotonic()
        if now >= self.opts.deadline:
            raise Failure(
                f"timed out after {self.opts.timeout:g} s {doing}"
                f" (sent {self.sent - self.out_base}, received {self.read - self.in_base} bytes)"
            )
        if self.cut_at is not None and self.sent >= self.cut_at:
            self.cut()
        if self.send_stall.update(self.sent, now):
            say(f"STALLED {self.opts.stall}")
        if self.read_stall.update(self.read, now):
            say(f"STALLED {self.opts.stall_read}")
        if self.stalled_to_the_end():
            raise Ended

        self.refill()
        if not self.pending and self.fin_after_source and not self.send_stall.active:
            if self.cut_at is None and self.send_stall.limit is None:
                self.shutdown()
        want_write = bool(self.pending) and not self.send_dead and not self.send_stall.active
        want_read = not self.eof and not self.read_stall.active

        # Whoever has to pause is left out of the wait, and bounds it.
        until = [self.opts.deadline]
        if self.send_stall.active or self.read_stall.active:
            until.append(now + TICK)
        if want_write and self.next_send > now:
            want_write = False
            until.append(self.next_send)
        if want_read and self.next_read > now:
            want_read = False
            until.append(self.next_read)
        readable, writable, hung_up = wait(
            self.sock,
            want_read,
            want_write,
            self.read_stall.active and self.read_stall.until == "close",
            max(0.0, min(until) - now),
        )
        if hung_up:
            raise Ended
        if readable:
            self.read_some()
        if writable:
            self.write_some()

    def refill(self):
        """Take as many messages from source as the next send needs.

        Without --chunk a send is one message; with it, sends are cut without
        regard to where messages end; with --join there is one send.
        """
        need = self.opts.chunk or 1
        while self.opts.join or len(self.pending) < need:
            message = next(self.source, None)
            if message is None:
                return
            self.queue(frame(message))

    def write_some(self):
        size = len(self.pending)
        if self.opts.chunk:
            size = min(size, self.opts.chunk)
        for limit in (self.send_stall.limit, self.cut_at):
            if limit is not None:
                size = min(size, limit - self.sent)
        if size <= 0:
            return  # the limit acts at the next step
        try:
            with memoryview(self.pending)[:size] as view:
                n = self.sock.send(view)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as e:
            if e.errno not in RESETS:
                raise
            self.send_dead = self.reset = True
            return
        del self.pending[:n]
        self.sent += n
        while self.ends and self.ends[0] <= self.sent:
            self.ends.popleft()
            self.messages_sent += 1
        if self.opts.send_pause:
            self.next_send = time.monotonic() + self.opts.send_pause

    def read_some(self):
        size = self.opts.read_chunk or READ_SIZE
        if self.exact:
            size = min(size, self.decoder.lacking())
        if self.read_stall.limit is not None:
            size = min(size, self.read_stall.limit - self.read)
        try:
            data = self.sock.recv(size)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as e:
            if e.errno not in RESETS:
                raise
            self.eof = self.reset = self.send_dead = True
            return
        if not data:
            self.eof = True
            return
        self.read += len(data)
        for message in self.decoder.feed(data):
            self.messages_read += 1
            if not self.discard:
                self.inbox.append(message)
        if self.opts.read_pause:
            self.next_read = time.monotonic() + self.opts.read_pause

    def cut(self):
        """Close in the middle: with RST for --reset, plainly for --cut."""
        if self.opts.reset is not None:
            # A reset throws away what the kernel still holds.  Wait until it
            # holds nothing, so that exactly so many bytes have arrived.
            while unacknowledged(self.sock) > 0:
                if time.monotonic() >= self.opts.deadline:
                    raise Failure("timed out waiting for acknowledgement before the reset")
                time.sleep(0.001)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_zero())
        self.sock.close()
        raise Ended


def wait(sock, read, write, hang_up, timeout):
    """Wait for what is asked for, at most timeout; (readable, writable, hung up).

    hang_up asks for an end of the connection that may stand behind unread
    data; only poll can tell.
    """
    if not read and not write:
        time.sleep(timeout)
        timeout = 0
    if not hasattr(select, "poll"):
        if not read and not write:
            return False, False, False
        r, w, x = select.select([sock] if read else [], [sock] if write else [], [sock], timeout)
        return bool(r), write and bool(w or x), False
    rdhup = getattr(select, "POLLRDHUP", 0) if hang_up else 0
    poll = select.poll()
    poll.register(sock, (select.POLLIN if read else 0) | (select.POLLOUT if write else 0) | rdhup)
    events = poll.poll(max(1, int(timeout * 1000)) if timeout > 0 else 0)
    flags = events[0][1] if events else 0
    ended = flags & (select.POLLHUP | select.POLLERR)
    return (
        read and bool(flags & select.POLLIN or ended),
        write and bool(flags & select.POLLOUT or ended),
        hang_up and bool(flags & rdhup or ended),
    )


def unacknowledged(sock):
    """Bytes in the kernel's send queue; 0 where that cannot be asked."""
    try:
        import fcntl
        import termios

        return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4))[0]
    except (ImportError, AttributeError, OSError):
        return 0


def linger_zero():
    return struct.pack("hh" if os.name == "nt" else "ii", 1, 0)


# --- handshake and scripts ---------------------------------------------------


def serve(sock, opts, index, release):
    """One connection from its first byte to its last."""
    c = Connection(sock, opts, release)
    try:
        if opts.role == "connect":
            connected(c, opts, index)
        else:
            accepted(c, opts, index)
        if c.read_stall.limit is not None and c.read_stall.limit > c.read:
            raise Failure(f"only {c.read - c.in_base} bytes to read, fewer than --stall-read says")
    except Ended:
        pass
    finally:
        sock.close()
    return (
        c.messages_sent,
        max(0, c.messages_read - (1 if c.in_base else 0)),
        max(0, c.sent - c.out_base),
        max(0, c.read - c.in_base),
    )


def connected(c, opts, index):
    if opts.from_start:
        c.arm()
    if opts.name is not None:
        name = os.fsencode(opts.name.replace("{n}", str(index)))
        c.queue(frame(name), counted=False)
        c.out_base = c.queued
        if opts.expect_refused:
            if opts.eager:
                start(c, opts)
            else:
                c.flush()
            c.expect_end("a close without an answer")
            return
        if opts.eager:
            start(c, opts)
        answer = c.receive("the answer OK")
        if answer is None:
            raise Failure("refused: closed after the name without an answer")
        if answer != b"OK":
            raise Failure(f"answer to the name is {answer!r}, want b'OK'")
        if c.sent < c.out_base:
            raise Failure(f"OK came when {c.sent} of the name's {c.out_base} bytes were sent")
        c.in_base = HEADER.size + len(answer)
    c.handshake_done()
    if opts.name is None or not opts.eager:
        start(c, opts)
    finish(c, opts)


def accepted(c, opts, index):
    if opts.from_start:
        c.arm()
    if not opts.anonymous:
        name = c.receive("a name")
        if name is None:
            raise Failure("closed before it gave a name")
        c.in_base = HEADER.size + len(name)
        admitted = opts.any_name or name in [os.fsencode(n) for n in opts.accept_name]
        if index < opts.refuse:
            return
        if opts.expect_refused:
            if admitted:
                raise Failure(f"name {name!r} came, want one to refuse")
            return
        if not admitted:
            raise Failure(f"refused the name {name[:MAX_NAME]!r}")
        c.queue(frame(os.fsencode(opts.answer)), counted=False)
        c.out_base = c.queued
    c.handshake_done()
    start(c, opts)
    finish(c, opts)


def start(c, opts):
    """Give the connection what it sends of its own accord."""
    if opts.claim_huge is not None:
        c.queue(HEADER.pack(opts.claim_huge), counted=False)
    elif opts.script == "send":
        c.source = (body(opts.seed, k, size) for k, size in enumerate(opts.sizes))
        c.fin_after_source = opts.half_close


def finish(c, opts):
    """Run the script to its end."""
    if opts.claim_huge is not None:
        c.flush()
        c.expect_end("a close after the header", reset_ok=True)
        return
    if opts.script == "echo":
        echo(c, opts)
        return

    # send and recv differ only in what start prepared and what is expected.
    if opts.expect_echo or opts.script == "recv":
        expected, seed = opts.sizes, opts.seed
    else:
        expected, seed = opts.expect_sizes, opts.expect_seed
    if expected is not None:
        for k, size in enumerate(expected):
            what = f"message {k} of {size} bytes"
            try:
                message = c.receive(what)
            except Ended:
                c.decoder.check_partial(seed, k, size)
                raise
            if message is None:
                raise Failure(f"connection ended while waiting for {what}")
            check(message, seed, k, size)
    elif opts.expect_count is not None:
        for k in range(opts.expect_count):
            if c.receive(f"message {k} of {opts.expect_count}") is None:
                raise Failure(f"connection ended after {k} of {opts.expect_count} messages")
    else:
        c.discard = True
        c.inbox.clear()
    c.flush()
    if opts.end == "close":
        return
    if opts.end == "fin" or opts.half_close:
        c.shutdown()
    c.expect_end("the end of the connection")


def echo(c, opts):
    count = 0
    while True:
        message = c.receive(f"message {count} or the end")
        if message is None:
            break
        if opts.sizes is not None:
            if count >= len(opts.sizes):
                raise Failure(f"more than {len(opts.sizes)} messages came")
            check(message, opts.seed, count, opts.sizes[count])
        c.queue(frame(message))
        count += 1
    want = len(opts.sizes) if opts.sizes is not None else opts.expect_count
    if want is not None and count != want:
        raise Failure(f"{count} messages came, want {want}")
    c.flush()
    c.shutdown()


# --- sockets --------------------------------------------------------------------


def parse_address(text):
    """(family, address for the socket module) of an ADDR."""
    network, _, rest = text.partition(":")
    if network == "tcp":
        host, _, port = rest.rpartition(":")
        host = host.strip("[]")
        if not port.isdigit():
            raise Failure(f"address {text!r} has no port")
        try:
            family, _, _, _, address = socket.getaddrinfo(host or "localhost", int(port), type=socket.SOCK_STREAM)[0]
        except OSError as e:
            raise Failure(f"address {text!r}: {e}") from None
        return family, address
    if network == "unix" and rest and hasattr(socket, "AF_UNIX"):
        if rest.startswith("@"):
            return socket.AF_UNIX, b"\0" + os.fsencode(rest[1:])
        return socket.AF_UNIX, rest
    raise Failure(f"address {text!r} is not tcp:HOST:PORT, unix:/path or unix:@abstract")


def format_address(family, address):
    """As Go's net.Dial takes it."""
    if family == socket.AF_INET6:
        return f"[{address[0]}]:{address[1]}"
    if family == socket.AF_INET:
        return f"{address[0]}:{address[1]}"
    if isinstance(address, bytes):
        return "@" + os.fsdecode(address[1:])
    return address


def new_socket(family, opts):
    sock = socket.socket(family, socket.SOCK_STREAM)
    if opts.rcvbuf:  # before connect and listen: it bounds the window
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, opts.rcvbuf)
    return sock


def connect_all(family, address, opts):
    for _ in range(opts.conns):
        sock = new_socket(family, opts)
        sock.settimeout(max(0.001, opts.deadline - time.monotonic()))
        while True:
            try:
                sock.connect(address)
                break
            except BlockingIOError:  # a Unix listener's backlog is full
                if time.monotonic() >= opts.deadline:
                    raise Failure(f"timed out after {opts.timeout:g} s connecting to {opts.addr}") from None
                time.sleep(0.001)
            except OSError as e:
                raise Failure(f"connect {opts.addr}: {e}") from None
        yield sock


def accept_all(family, address, opts):
    with new_socket(family, opts) as listener:
        if os.name == "posix" and family in (socket.AF_INET, socket.AF_INET6):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as e:
            raise Failure(f"bind {opts.addr}: {e}") from None
        if isinstance(address, str):
            opts.bound_path = address
        listener.listen(1024)
        say("LISTENING " + format_address(family, listener.getsockname()))
        for i in range(opts.conns):
            listener.settimeout(max(0.001, opts.deadline - time.monotonic()))
            try:
                sock, _ = listener.accept()
            except socket.timeout:
                raise Failure(f"timed out after {opts.timeout:g} s waiting for connection {i} of {opts.conns}") from None
            yield sock


def release_by_stdin(release):
    if sys.stdin is not None:
        os.read(sys.stdin.fileno(), 1)
    release.set()


def run(opts):
    """All connections, each in a thread of its own; their counts summed up."""
    opts.deadline = time.monotonic() + opts.timeout
    opts.bound_path = None  # of a Unix listener, for main to unlink
    release = threading.Event()
    if opts.stall_until == "stdin":
        threading.Thread(target=release_by_stdin, args=(release,), daemon=True).start()
    results = queue.Queue()

    def connection(sock, index):
        try:
            results.put(serve(sock, opts, index, release))
        except Exception as e:  # handed to the main thread
            results.put(Failure(f"connection {index}: {e}") if opts.conns > 1 else e)

    def connections():
        open_all = connect_all if opts.role == "connect" else accept_all
        try:
            sockets = open_all(*parse_address(opts.addr), opts)
            for index, sock in enumerate(sockets):
                threading.Thread(target=connection, args=(sock, index), daemon=True).start()
        except Exception as e:
            results.put(e)

    # Opening is a thread too, so that the first failure of a connection ends
    # the run while later ones are still awaited.
    threading.Thread(target=connections, daemon=True).start()
    totals = [0, 0, 0, 0]
    for _ in range(opts.conns):
        try:
            # Connections end at the deadline by themselves; the second is for
            # a system call that does not.
            result = results.get(timeout=max(0.0, opts.deadline - time.monotonic()) + 1)
        except queue.Empty:
            raise Failure(f"timed out after {opts.timeout:g} s") from None
        if isinstance(result, Exception):
            raise result
        totals = [a + b for a, b in zip(totals, result)]
    return totals


# --- command line -----------------------------------------------------------------

say_lock = threading.Lock()


def say(line):
    with say_lock:
        print(line, flush=True)


def sizes(text):
    """0,1,65536 or 8x1000 (a thousand of 8 bytes); empty: no message."""
    result = []
    for item in filter(None, text.split(",")):
        size, _, count = item.partition("x")
        result.extend(itertools.repeat(int(size), int(count or 1)))
    if any(size < 0 for size in result):
        raise ValueError("negative size")
    return result


def length(text):
    """A declared length: a number, or B**E, or B**E-N."""
    m = re.fullmatch(r"(\d+)(?:\*\*(\d+))?(?:-(\d+))?", text)
    if not m:
        raise ValueError(text)
    value = int(m[1]) ** int(m[2] or 1) - int(m[3] or 0)
    if not 0 <= value < 1 << 64:
        raise ValueError(text)
    return value


def until(text):
    return text if text in ("close", "stdin") else float(text)


def count(text):
    n = int(text)
    if n < 0:
        raise ValueError(text)
    return n


class Parser(argparse.ArgumentParser):
    def error(self, message):
        print(f"wirepeer: {message}", file=sys.stderr)
        sys.exit(2)


def arguments(argv):
    common = Parser(add_help=False)
    add = common.add_argument
    add("addr", metavar="ADDR")
    add("--script", choices=["echo", "send", "recv"], help="echo until EOF; send --sizes; receive and check --sizes")
    add("--claim-huge", type=length, metavar="LEN", help="instead: send a header that declares LEN (2**64-1), expect a close")
    add("--expect-refused", action="store_true", help="connect: expect a close without an answer to the name; listen: expect a name to refuse")
    add("--conns", type=count, default=1, metavar="N", help="connections, all at once; default 1")
    add("--timeout", type=float, default=20, metavar="S", help="bounds the whole run; default 20")
    add("--sizes", type=sizes, metavar="LIST", help="0,1,65536 or 8x1000; with echo: what must come")
    add("--seed", type=int, default=0)

    g = common.add_argument_group("how send and echo write")
    g.add_argument("--chunk", type=count, default=0, metavar="N", help="at most N bytes in a send")
    g.add_argument("--join", action="store_true", help="all messages in one send")
    g.add_argument("--send-pause", type=float, default=0, metavar="S", help="seconds between sends")
    g.add_argument("--half-close", action="store_true", help="send: FIN right after the last message")

    g = common.add_argument_group("what must come back (send; --expect-count for all)")
    g.add_argument("--expect-echo", action="store_true", help="the messages that were sent")
    g.add_argument("--expect-sizes", type=sizes, metavar="LIST", help="messages of these sizes")
    g.add_argument("--expect-seed", type=int, metavar="SEED", help="their seed; default --seed")
    g.add_argument("--expect-count", type=count, metavar="N", help="so many messages of any content")

    g = common.add_argument_group("how it reads")
    g.add_argument("--read-chunk", type=count, default=0, metavar="N", help="at most N bytes in a receive")
    g.add_argument("--read-pause", type=float, default=0, metavar="S", help="seconds between receives")
    g.add_argument("--rcvbuf", type=count, default=0, metavar="N", help="SO_RCVBUF")

    g = common.add_argument_group("misbehaviour, after N wire bytes that follow the handshake")
    g.add_argument("--stall", type=count, metavar="N", help="stop sending")
    g.add_argument("--stall-read", type=count, metavar="N", help="stop reading")
    g.add_argument("--stall-until", type=until, default="close", metavar="close|stdin|S",
                   help="close (default): the other side must end the connection, and that ends the script; "
                   "stdin: a line or EOF on stdin resumes; S: so many seconds")
    g.add_argument("--reset", type=count, metavar="N", help="close with RST (tcp), once the N bytes are acknowledged")
    g.add_argument("--cut", type=count, metavar="N", help="close plainly")
    g.add_argument("--from-start", action="store_true", help="N counts from the first byte, the handshake included")

    g = common.add_argument_group("how it ends")
    g.add_argument("--end", choices=["fin", "wait", "close"], default="fin",
                   help="send and recv, when all expected has come: fin (default): FIN, then expect EOF and nothing before it; "
                   "wait: the same without FIN; close: close at once")
    g.add_argument("--reset-ok", action="store_true", help="a reset will do where EOF is expected")
    g.add_argument("--cut-ok", action="store_true", help="the other side may end anywhere: what came must be a prefix of what is expected")

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    roles = parser.add_subparsers(dest="role", required=True, metavar="connect|listen")
    p = roles.add_parser("connect", parents=[common])
    p.add_argument("--name", help="{n} in it is the connection's number, from 0; without --name: anonymous")
    p.add_argument("--eager", action="store_true", help="send before OK has come; with --join the name is in the same send")
    p = roles.add_parser("listen", parents=[common])
    p.add_argument("--accept-name", action="append", default=[], metavar="NAME", help="may be repeated")
    p.add_argument("--any-name", action="store_true")
    p.add_argument("--anonymous", action="store_true", help="no handshake")
    p.add_argument("--refuse", type=count, default=0, metavar="K", help="refuse the first K connections whatever their name")
    p.add_argument("--answer", default="OK", help="to an admitted name; default OK")
    opts = parser.parse_args(argv)
    reason = contradiction(opts)
    if reason:
        parser.error(reason)
    if opts.expect_seed is None:
        opts.expect_seed = opts.seed
    return opts


def contradiction(o):
    """Why these arguments make no sense, or None."""
    if o.script is None and o.claim_huge is None and not o.expect_refused:
        return "one of --script, --claim-huge and --expect-refused is needed"
    if o.script is not None and o.claim_huge is not None:
        return "--script and --claim-huge exclude each other"
    if o.role == "connect" and o.expect_refused and o.name is None:
        return "--expect-refused needs a --name"
    if o.role == "listen" and not (o.anonymous or o.any_name or o.accept_name or o.refuse or o.expect_refused):
        return "one of --accept-name, --any-name and --anonymous is needed"
    if o.role == "listen" and o.anonymous and (o.any_name or o.accept_name or o.refuse or o.expect_refused):
        return "--anonymous excludes everything about names"
    if o.script == "send" and o.sizes is None:
        return "--script send needs --sizes"
    if o.script == "recv" and o.sizes is None and o.expect_count is None:
        return "--script recv needs --sizes or --expect-count"
    if o.script != "send" and (o.join or o.half_close or o.expect_echo or o.expect_sizes is not None):
        return "--join, --half-close, --expect-echo and --expect-sizes are for --script send"
    if o.join and o.chunk:
        return "--join and --chunk exclude each other"
    if sum((o.expect_echo, o.expect_sizes is not None, o.expect_count is not None)) > 1:
        return "--expect-echo, --expect-sizes and --expect-count exclude each other"
    if o.script == "send" and o.chunk and sum(o.sizes) // o.chunk > MAX_SENDS:
        return f"--chunk {o.chunk} would take more than {MAX_SENDS} sends"
    if o.reset is not None and o.cut is not None:
        return "--reset and --cut exclude each other"
    if o.reset is not None and not o.addr.startswith("tcp:"):
        return "--reset is for tcp; a Unix socket knows --cut alone"
    if o.conns < 1 or o.timeout <= 0:
        return "--conns and --timeout must be positive"
    return None


def main(argv):
    opts = arguments(argv)
    try:
        totals = run(opts)
    except Exception as e:
        text = str(e) if isinstance(e, (Failure, OSError)) else repr(e)
        print(f"wirepeer: {opts.role}: {text}", file=sys.stderr, flush=True)
        code = 1
    else:
        say("DONE messages_sent={} messages_received={} bytes_sent={} bytes_received={}".format(*totals))
        code = 0
    if opts.bound_path is not None:
        try:
            os.unlink(opts.bound_path)
        except OSError:
            pass  # the test's own tidying came first
    # Threads that still wait, for stdin or after another's failure, go with us.
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
