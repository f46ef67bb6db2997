// messages: what goes to and comes from a server of messages. The bytes of each
// are a function of its number, so that all can be compared: its length, its
// number, and a piece of a fixed filling that begins where the number says.
#include "load.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define TAPE (64 << 10) // bytes of a tape, or a little less
#define SMALL (8 << 10)
#define SHIFTS 61
#define LATE 4096 // paced: messages without an answer on a connection

static enum { ECHO, STREAM, COMMANDS, FANOUT } mode;
static unsigned char *filling;
static uint64_t missing;    // messages, or connections, that the round still lacks
static size_t ring;         // of sent_at
static uint64_t unanswered; // paced: messages that were due

// Small messages are made once, one behind the other on a tape that is sent and
// expected again and again: so what comes can be compared in one piece, however
// many messages it holds. Large ones have a number that goes on and on.
static unsigned char tape[TAPE];
static size_t tape_len; // 0: no tape, messages are large

struct shape {
    unsigned char head[16]; // length and number
    size_t head_len;
    const unsigned char *rest;
    size_t len; // of it all
};

static struct shape shape(uint64_t size, uint64_t number) {
    struct shape s = {.head_len = 8 + (size < 8 ? size : 8), .rest = filling + number % SHIFTS, .len = 8 + size};
    memcpy(s.head, &size, 8);
    memcpy(s.head + 8, &number, s.head_len - 8);
    return s;
}

// ---- input ----

// at_end: the next message is the one that ends a round of commands.
static int at_end(struct conn *c) { return mode == COMMANDS && c->got == c->asked; }

// arrived counts n messages, one if they are commands' end.
static void arrived(struct conn *c, uint64_t n) {
    if (at_end(c)) {
        missing--;
        return;
    }
    if (mode != ECHO && mode != COMMANDS) missing -= n;
    if ((mode == ECHO && !set.rate) || mode == COMMANDS) c->due += n;
    unanswered -= n;
    for (; c->sent_at && n; n--) done(c, c->sent_at[c->got % ring], 1);
    if (n) done(c, 0, n);
}

// compare takes what is there of one message and returns how much that was.
static size_t compare(struct conn *c, const unsigned char *p, size_t n) {
    struct shape s = shape(at_end(c) ? 0 : set.size, mode == ECHO || mode == FANOUT ? c->got : 0);
    size_t from = c->got_of, to = from + n < s.len ? from + n : s.len, cut = s.head_len;
    if (from < cut && memcmp(p, s.head + from, (to < cut ? to : cut) - from)) wrong(c, "wrong length or number");
    if (to > cut) {
        size_t begin = from > cut ? from : cut;
        if (memcmp(p + (begin - from), s.rest + (begin - cut), to - begin)) wrong(c, "wrong bytes");
    }
    c->got_of = to % s.len;
    if (to == s.len) arrived(c, 1);
    return to - from;
}

// compare_tape is compare for as many small messages as there are.
static size_t compare_tape(struct conn *c, const unsigned char *p, size_t n) {
    size_t len = 8 + set.size, left = tape_len - c->tape_at;
    if (mode == COMMANDS && (c->asked - c->got) * len - c->got_of < left) left = (c->asked - c->got) * len - c->got_of;
    if (n > left) n = left;
    if (memcmp(p, tape + c->tape_at, n)) wrong(c, "wrong bytes");
    if ((c->tape_at += n) == tape_len) c->tape_at = 0;
    c->got_of += n;
    uint64_t whole = c->got_of / len;
    c->got_of %= len;
    if (whole) arrived(c, whole);
    return n;
}

static void input(struct conn *c, const unsigned char *p, size_t n) {
    while (n) {
        if (!missing && mode != ECHO) errno = 0, fatal("connection %zu: more than was asked for", (size_t)(c - conns));
        size_t k = tape_len && !at_end(c) ? compare_tape(c, p, n) : compare(c, p, n);
        p += k, n -= k;
    }
}

// ---- output ----

// send_some sends what comes next, many small messages or a large one. -1: no
// room.
static ssize_t send_some(struct conn *c) {
    size_t skip = c->sent_of, len = 8 + set.size;
    if (tape_len) {
        size_t at = c->sent * len % tape_len + skip, n = (c->due - c->sent) * len - skip;
        return send(c->fd, tape + at, n < tape_len - at ? n : tape_len - at, MSG_NOSIGNAL);
    }
    struct shape s = shape(set.size, c->sent);
    struct iovec v[2] = {{s.head, s.head_len}, {(void *)s.rest, s.len - s.head_len}};
    int i = skip >= s.head_len;
    v[i].iov_base = (char *)v[i].iov_base + (skip -= i * s.head_len);
    v[i].iov_len -= skip;
    return writev(c->fd, v + i, 2 - i);
}

static void output(struct conn *c) {
    while (c->sent < c->due) {
        ssize_t n = send_some(c);
        if (n < 0 && errno == EAGAIN) {
            stall(c, 1);
            return;
        }
        if (n < 0) fatal("sending on connection %zu", (size_t)(c - conns));
        for (c->sent_of += n; c->sent_of >= 8 + set.size; c->sent_of -= 8 + set.size) {
            if (c->sent_at && !set.rate) c->sent_at[c->sent % ring] = now;
            c->sent++;
        }
    }
    stall(c, 0);
}

// ---- rounds ----

static void start(void) {
    mode = !strcmp(set.mode, "stream") ? STREAM : !strcmp(set.mode, "commands") ? COMMANDS : !strcmp(set.mode, "fanout") ? FANOUT : ECHO;
    filling = malloc(set.size + SHIFTS);
    if (!filling) fatal("memory");
    uint32_t r = 1;
    for (size_t i = 0; i < set.size + SHIFTS; i++) filling[i] = (r = r * 1664525 + 1013904223) >> 24;
    for (uint64_t i = 0; set.size <= SMALL && tape_len + 8 + set.size <= TAPE; i++) {
        struct shape s = shape(set.size, mode == ECHO || mode == FANOUT ? i : 0); // else the server repeats the one it is shown
        memcpy(tape + tape_len, s.head, s.head_len);
        memcpy(tape + tape_len + s.head_len, s.rest, s.len - s.head_len);
        tape_len += s.len;
    }
    ring = set.rate ? LATE : set.depth;
    for (struct conn *c = conns; mode == ECHO && c < conns + set.conns; c++) {
        int floods = c == conns && set.flood;
        if (!floods && !(c->sent_at = calloc(ring, sizeof *c->sent_at))) fatal("memory");
        if (set.rate) continue;
        c->due = floods ? set.flood : set.depth;
        output(c);
    }
}

static int between(void) { return !missing; }

// ask requests `count` messages, each the one that it shows.
static void ask(struct conn *c) {
    struct shape s = shape(set.size, 0);
    uint64_t head[2] = {8 + set.size, set.count};
    size_t n = sizeof head + set.size;
    unsigned char *b = malloc(n);
    if (!b) fatal("memory");
    memcpy(b, head, sizeof head);
    memcpy(b + 16, s.head + 8, s.head_len - 8);
    memcpy(b + 16 + s.head_len - 8, s.rest, s.len - s.head_len);
    if (send(c->fd, b, n, MSG_NOSIGNAL) != (ssize_t)n) fatal("asking");
    free(b);
    c->asked += set.count;
}

static void round_of(void) {
    switch (mode) {
    case ECHO:
        return;
    case FANOUT:
        missing = set.conns * set.depth;
        conns->due += set.depth;
        output(conns);
        return;
    default:
        missing = mode == COMMANDS ? set.conns : set.conns * set.count;
        for (struct conn *c = conns; c < conns + set.conns; c++) ask(c);
    }
}

const struct kind messages = {.start = start, .input = input, .output = output, .between = between, .round = round_of};

// ---- at a rate ----

static int stopped;

// pace makes messages due at the moments at which somebody who does not wait for
// answers would send them: independent of each other, so that the time between
// two is exponentially distributed. Connections take turns. A message counts from
// the moment at which it was due, however late the server, or this program, lets
// it leave: else a server that stands still would be asked less.
static uint64_t pace(int more) {
    static uint64_t next, number, random = 1;
    if ((stopped = !more)) return UINT64_MAX;
    if (!next) next = now;
    while (next <= now) {
        struct conn *c = conns + number++ % set.conns;
        if (c->due - c->got == LATE) errno = 0, fatal("too late: %d messages of one connection have no answer at %.0f a second", LATE, set.rate);
        c->sent_at[c->due++ % LATE] = next;
        unanswered++;
        if (!c->stalled) output(c);
        random = random * 6364136223846793005 + 1442695040888963407;
        next += -log(((random >> 11) + 1) * 0x1p-53) / set.rate * 1e9;
    }
    return next - now;
}

static int all_answered(void) { return !stopped || !unanswered; }
static void no_rounds(void) {}

const struct kind paced = {start, input, output, all_answered, no_rounds, pace};
