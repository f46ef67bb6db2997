// yardstick: what the machine allows. A server with one thread and one epoll set,
// level-triggered, that makes as few system calls as it can: one recv for each
// connection that is readable, one send for all the answers to what it brought.
// A connection without traffic holds nothing but its struct.
//
//   yardstick -mode echo|http|stream|fanout|commands -addr HOST:PORT|unix:PATH
//
// Modes, formats, and what it prints and reads are those of package server.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <malloc.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define SHARED (256 << 10) // bytes of the buffers that all connections use in turn
#define TEXT (16 << 20)    // bytes of the longest http answer
#define COPIED (16 << 10)  // http answers up to this size are put behind their head

enum mode { ECHO, HTTP, STREAM, FANOUT, COMMANDS };
static const char *const modes[] = {"echo", "http", "stream", "fanout", "commands"};

struct bytes {
    unsigned char *p;
    size_t len, cap;
};

struct peer {
    int fd;
    int stalled;         // output waits: it is watched for room, and not for input
    struct bytes in;     // beginning of a message or request; cap: as much as is needed next
    struct bytes out;    // unsent, from `gone` on
    size_t gone;
    size_t text;         // http: as much of the text is to be sent behind `out`
    size_t text_at;
    uint64_t repeat;     // stream, commands: as often is `msg` still to be sent
    uint64_t unanswered; // commands
    struct bytes msg;    // with header
    size_t slot;         // fanout: in `everybody`
};

static enum mode mode;
static int epfd, listener;
static unsigned char shared_in[SHARED], shared_out[SHARED + COPIED + 256], *text;
static struct peer **everybody;
static size_t members, room;

static void fatal(const char *what) {
    perror(what);
    exit(1);
}

static void *need(void *p) {
    if (!p) fatal("memory");
    return p;
}

static void append(struct bytes *b, const void *p, size_t n) {
    if (b->len + n > b->cap) b->p = need(realloc(b->p, b->cap = b->len + n));
    memcpy(b->p + b->len, p, n);
    b->len += n;
}

static void release(struct bytes *b) {
    free(b->p);
    *b = (struct bytes){0};
}

static void stall(struct peer *c, int stalled) {
    if (c->stalled == stalled) return;
    struct epoll_event e = {.events = stalled ? EPOLLOUT : EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epfd, EPOLL_CTL_MOD, c->fd, &e)) fatal("epoll_ctl");
    c->stalled = stalled;
}

static void hang_up(struct peer *c) {
    if (mode == FANOUT) (everybody[c->slot] = everybody[--members])->slot = c->slot;
    close(c->fd);
    release(&c->in), release(&c->out), release(&c->msg);
    free(c);
}

// try_send sends what the socket takes. -1: the connection is dead.
static ssize_t try_send(struct peer *c, const void *p, size_t n) {
    ssize_t k = send(c->fd, p, n, MSG_NOSIGNAL);
    return k < 0 && errno == EAGAIN ? 0 : k;
}

// put sends n bytes, now or as soon as there is room. 0: the connection is dead.
static int put(struct peer *c, const unsigned char *p, size_t n) {
    if (!c->stalled) {
        ssize_t k = try_send(c, p, n);
        if (k < 0) return 0;
        p += k, n -= k;
    }
    if (n) append(&c->out, p, n), stall(c, 1);
    return 1;
}

// ---- messages ----

static uint64_t length(const unsigned char *p) {
    uint64_t n;
    memcpy(&n, p, sizeof n);
    return n;
}

// repeat sends the requested messages until the socket is full.
static int repeat(struct peer *c) {
    while (c->repeat && !c->stalled) {
        size_t n = 0;
        for (; c->repeat && n + c->msg.len <= SHARED; c->repeat--, n += c->msg.len)
            memcpy(shared_out + n, c->msg.p, c->msg.len);
        if (!n) return 0; // larger than anybody asks for
        if (!put(c, shared_out, n)) return 0;
    }
    return 1;
}

// request is asked by a body of a count and a message to send that often.
static int request(struct peer *c, const unsigned char *body, uint64_t len) {
    uint64_t n = len - 8;
    c->repeat = length(body);
    c->msg.len = 0;
    append(&c->msg, &n, 8);
    append(&c->msg, body + 8, n);
    if (mode == COMMANDS) c->unanswered = c->repeat;
    return repeat(c);
}

// to_all gives everybody the same bytes. Who is dead will be found when he is read.
static void to_all(const unsigned char *p, size_t n) {
    for (size_t i = 0; n && i < members; i++) put(everybody[i], p, n);
}

// messages handles what is complete in p and returns its length, or -1.
static ssize_t messages(struct peer *c, const unsigned char *p, size_t n) {
    static const unsigned char empty[8];
    size_t done = 0, run = 0; // run: start of what is to be given to all at once
    while (n - done >= 8) {
        uint64_t len = length(p + done);
        if (len > 1u << 30) return -1;
        if (n - done - 8 < len) break;
        const unsigned char *body = p + done + 8;
        done += 8 + len;
        if (mode == ECHO) continue;
        if (mode == COMMANDS && c->unanswered) {
            if (--c->unanswered == 0 && !put(c, empty, 8)) return -1;
            continue;
        }
        if (mode == FANOUT && len) continue;
        to_all(p + run, mode == FANOUT ? done - 8 - run : 0);
        run = done;
        if (!len && !put(c, empty, 8)) return -1;
        if (len && (len < 8 || c->repeat || !request(c, body, len))) return -1;
    }
    if (mode == FANOUT) to_all(p + run, done - run);
    if (mode == ECHO && done && !put(c, p, done)) return -1; // the very same bytes
    return done;
}

// ---- http ----

// answer sends what was gathered, then the text uncopied.
static int answer(struct peer *c, unsigned char *head, size_t n, size_t size) {
    struct iovec v[] = {{head, n}, {text, size}};
    ssize_t k = writev(c->fd, v, 2);
    if (k < 0 && errno != EAGAIN) return 0;
    if (k < 0) k = 0;
    if ((size_t)k < n) append(&c->out, head + k, n - k), k = n;
    c->text_at = k - n;
    c->text = size - c->text_at;
    if (c->text || c->out.len) stall(c, 1);
    return 1;
}

static ssize_t requests(struct peer *c, const unsigned char *p, size_t n) {
    size_t done = 0, filled = 0;
    while (!c->stalled) {
        const unsigned char *end = memmem(p + done, n - done, "\r\n\r\n", 4);
        if (!end) break;
        if (memcmp(p + done, "GET /", 5)) return -1;
        size_t size = strtoul((const char *)p + done + 5, NULL, 10);
        if (size > TEXT) return -1;
        done = end + 4 - p;
        filled += sprintf((char *)shared_out + filled, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n\r\n", size);
        if (size > COPIED) {
            if (!answer(c, shared_out, filled, size)) return -1;
            filled = 0;
            continue;
        }
        memcpy(shared_out + filled, text, size);
        filled += size;
        if (filled < SHARED) continue;
        if (!put(c, shared_out, filled)) return -1;
        filled = 0;
    }
    if (filled && !put(c, shared_out, filled)) return -1;
    return done;
}

// ---- events ----

static ssize_t handle(struct peer *c, const unsigned char *p, size_t n) {
    return mode == HTTP ? requests(c, p, n) : messages(c, p, n);
}

// large goes on reading a message that needs a buffer of its own.
static int large(struct peer *c) {
    ssize_t k = recv(c->fd, c->in.p + c->in.len, c->in.cap - c->in.len, 0);
    if (k <= 0) return k < 0 && errno == EAGAIN;
    if ((c->in.len += k) < c->in.cap) return 1;
    struct bytes b = c->in;
    c->in = (struct bytes){0};
    if (mode != ECHO) {
        ssize_t used = handle(c, b.p, b.len);
        release(&b);
        return used >= 0;
    }
    k = try_send(c, b.p, b.len);
    if (k < 0 || (size_t)k == b.len) return release(&b), k >= 0;
    c->out = b, c->gone = k; // not copied
    stall(c, 1);
    return 1;
}

// keep holds the beginning of a message until its rest comes.
static void keep(struct peer *c, const unsigned char *p, size_t n) {
    uint64_t want = n;
    if (mode != HTTP && n >= 8 && (want = 8 + length(p)) < n) want = n; // more than one, on a stalled connection
    unsigned char *b = need(malloc(want));
    memcpy(b, p, n);
    free(c->in.p);
    c->in = (struct bytes){b, n, want};
}

static int readable(struct peer *c) {
    if (c->in.cap > SHARED) return large(c);
    size_t n = c->in.len;
    if (n) memcpy(shared_in, c->in.p, n);
    ssize_t k = recv(c->fd, shared_in + n, SHARED - n, 0);
    if (k <= 0) return k < 0 && errno == EAGAIN;
    n += k;
    ssize_t used = handle(c, shared_in, n);
    if (used < 0) return 0;
    if ((size_t)used < n) keep(c, shared_in + used, n - used);
    else if (c->in.p) release(&c->in);
    return 1;
}

// writable sends what waits, then watches for input again.
static int writable(struct peer *c) {
    while (c->gone < c->out.len) {
        ssize_t k = send(c->fd, c->out.p + c->gone, c->out.len - c->gone, MSG_NOSIGNAL);
        if (k < 0) return errno == EAGAIN;
        c->gone += k;
    }
    release(&c->out), c->gone = 0;
    while (c->text) {
        ssize_t k = send(c->fd, text + c->text_at, c->text, MSG_NOSIGNAL);
        if (k < 0) return errno == EAGAIN;
        c->text_at += k, c->text -= k;
    }
    c->text_at = 0;
    stall(c, 0);
    if (c->repeat) return repeat(c);
    if (mode == HTTP && c->in.len) { // requests that came with the one just answered
        size_t n = c->in.len;
        memcpy(shared_in, c->in.p, n);
        ssize_t used = handle(c, shared_in, n);
        if (used < 0) return 0;
        if ((size_t)used < n) keep(c, shared_in + used, n - used);
        else release(&c->in);
    }
    return 1;
}

static void accept_all(void) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); // not on Unix sockets
        struct peer *c = need(calloc(1, sizeof *c));
        c->fd = fd;
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &e)) fatal("epoll_ctl");
        if (mode != FANOUT) continue;
        if (members == room) everybody = need(realloc(everybody, (room = 2 * room + 64) * sizeof *everybody));
        everybody[c->slot = members++] = c;
    }
}

// attend does what standard input asks for, and ends with it.
static void attend(void) {
    char line[64];
    if (read(0, line, sizeof line) <= 0) exit(0);
    malloc_trim(0);
    printf("freed\n");
    fflush(stdout);
}

static void listen_at(const char *addr) {
    int on = 1;
    if (!strncmp(addr, "unix:", 5)) {
        struct sockaddr_un a = {.sun_family = AF_UNIX};
        strncpy(a.sun_path, addr + 5, sizeof a.sun_path - 1);
        listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (listener < 0 || bind(listener, (void *)&a, sizeof a) || listen(listener, 4096)) fatal(addr);
        printf("ready %s\n", a.sun_path);
    } else {
        char host[64] = "";
        unsigned port = 0;
        struct sockaddr_in a = {.sin_family = AF_INET};
        socklen_t len = sizeof a;
        sscanf(addr, "%63[^:]:%u", host, &port);
        a.sin_port = htons(port);
        if (inet_pton(AF_INET, host, &a.sin_addr) != 1) fatal(addr);
        listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (listener < 0 || bind(listener, (void *)&a, sizeof a) || listen(listener, 4096)) fatal(addr);
        if (getsockname(listener, (void *)&a, &len)) fatal(addr);
        printf("ready %s:%u\n", host, ntohs(a.sin_port));
    }
    fflush(stdout);
}

int main(int argc, char **argv) {
    const char *addr = "127.0.0.1:0";
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "-addr")) addr = argv[i + 1];
        for (int m = ECHO; !strcmp(argv[i], "-mode") && m <= COMMANDS; m++)
            if (!strcmp(argv[i + 1], modes[m])) mode = m;
    }
    signal(SIGPIPE, SIG_IGN); // writev has no MSG_NOSIGNAL
    struct rlimit files;
    if (!getrlimit(RLIMIT_NOFILE, &files)) files.rlim_cur = files.rlim_max, setrlimit(RLIMIT_NOFILE, &files);
    // Memory of large messages is used again, not mapped anew each time.
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    if (mode == HTTP) {
        text = need(malloc(TEXT));
        for (size_t i = 0; i < TEXT; i++) text[i] = 'a' + i % 26;
    }
    epfd = epoll_create1(EPOLL_CLOEXEC);
    listen_at(addr);
    struct epoll_event set = {.events = EPOLLIN, .data.ptr = &listener}, ready[512];
    if (epoll_ctl(epfd, EPOLL_CTL_ADD, listener, &set)) fatal("epoll_ctl");
    set.data.ptr = NULL;
    if (epoll_ctl(epfd, EPOLL_CTL_ADD, 0, &set)) fatal("standard input cannot be waited for");
    for (;;) {
        int n = epoll_wait(epfd, ready, 512, -1);
        for (int i = 0; i < n; i++) {
            struct peer *c = ready[i].data.ptr;
            if (!c) attend();
            else if (c == (void *)&listener) accept_all();
            else if (!(ready[i].events & EPOLLOUT ? writable(c) : readable(c))) hang_up(c);
        }
    }
}
