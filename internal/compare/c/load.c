// load: drives a server and checks every byte that it answers.
//
//   load -mode MODE -addr HOST:PORT|unix:PATH -pid SERVER [-conns N] [-size BYTES]
//        [-depth N] [-count N] [-flood N] [-rate PER_SECOND]
//        [-warm SECONDS] [-time SECONDS] [-from ADDRESS]
//
// echo      keeps `depth` messages in flight on each connection; with -flood, N
//           on the first, whose latencies do not count; with -rate, sends at
//           that rate whatever comes back
// http      the same with requests of /<size>
// stream    asks for `count` messages on each connection, again and again
// commands  the same, and answers each of them
// fanout    sends `depth` messages on the first connection and waits until all
//           connections have all of them, again and again
// idle      sends one message on each connection, prints "ready", and holds them
//           until standard input ends
//
// One line of JSON tells what happened in the measured time. The server's CPU
// time is taken at both ends of it, in here, so that it belongs to these messages
// exactly. Its clock is the kernel's for the process: utime + stime, in ns.
#define _GNU_SOURCE
#include "load.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE 30.0 // seconds beyond the measured time for what must still come

struct settings set = {.mode = "echo", .addr = "", .conns = 1, .size = 64, .depth = 1, .count = 100000, .warm = 0.3, .time = 1};
struct conn *conns;
unsigned char received[256 << 10];
uint64_t now;

static int epfd;
static int measuring;
static uint64_t whole, bytes;           // in the measured time
static uint64_t mistakes;
static char mistake[200];
static unsigned char *served;           // by connection: got a whole message, in the measured time or before it
static size_t lacking;                  // connections that did not
static uint64_t enough;                 // messages that are waited for, however long it takes

void fatal(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, errno ? ": %s\n" : "\n", strerror(errno));
    exit(1);
}

void wrong(struct conn *c, const char *what) {
    if (mistakes++ == 0)
        snprintf(mistake, sizeof mistake, "connection %zu, message %llu, byte %zu: %s", (size_t)(c - conns), (unsigned long long)c->got, c->got_of, what);
    if (mistakes > 1000) errno = 0, fatal("%s; and many more", mistake);
}

// ---- clocks ----

static double seconds(clockid_t id) {
    struct timespec t;
    if (clock_gettime(id, &t)) fatal("clock");
    return t.tv_sec + t.tv_nsec / 1e9;
}

uint64_t clock_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static double server_cpu(void) {
    clockid_t id;
    if (!set.pid) return 0;
    if ((errno = clock_getcpuclockid(set.pid, &id))) fatal("clock of process %d", set.pid);
    return seconds(id);
}

// Latencies are counted in classes: by their highest six bits, and how many bits
// follow.
static uint64_t class[64][64], timed;
static uint64_t timed_from; // what was due before this is not counted

static void count_latency(uint64_t ns) {
    int e = 0;
    while (ns >> e >= 64) e++;
    class[e][ns >> e]++;
    timed++;
}

// latency is what this part of all took at most, in microseconds.
static double latency(double part) {
    uint64_t left = part * timed;
    for (int e = 0; e < 64; e++)
        for (int i = 0; i < 64; i++) {
            if (class[e][i] > left) return ((uint64_t)i << e) / 1e3;
            left -= class[e][i];
        }
    return 0;
}

void done(struct conn *c, uint64_t since, uint64_t n) {
    c->got += n;
    unsigned char *s = served + (c - conns);
    if (!*s) *s = 1, lacking--;
    if (!measuring) return;
    whole += n;
    if (since && since >= timed_from) count_latency(now - since);
}

// ---- connections ----

void all_or_nothing(int fd, void *p, size_t n, int out) {
    while (n) {
        ssize_t k = out ? send(fd, p, n, MSG_NOSIGNAL) : recv(fd, p, n, 0);
        if (k == 0) errno = ECONNRESET;
        if (k <= 0) fatal("the beginning of a connection");
        p = (char *)p + k, n -= k;
    }
}

void stall(struct conn *c, int stalled) {
    if (c->stalled == stalled) return;
    struct epoll_event e = {.events = EPOLLIN | (stalled ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(epfd, EPOLL_CTL_MOD, c->fd, &e)) fatal("epoll_ctl");
    c->stalled = stalled;
}

// come_from gives a socket an address, and no port before it is known to whom it
// connects: so each address has all ports.
static void come_from(int fd, const char *addr) {
    int on = 1;
    struct sockaddr_in a = {.sin_family = AF_INET};
    if (inet_pton(AF_INET, addr, &a.sin_addr) != 1) fatal("address %s", addr);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (bind(fd, (void *)&a, sizeof a)) fatal("%s", addr);
}

static int dial(void) {
    int fd, on = 1;
    struct timeval patience = {(int)PATIENCE, 0};
    struct linger reset = {1, 0};
    if (!strncmp(set.addr, "unix:", 5)) {
        struct sockaddr_un a = {.sun_family = AF_UNIX};
        strncpy(a.sun_path, set.addr + 5, sizeof a.sun_path - 1);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0 || connect(fd, (void *)&a, sizeof a)) fatal("%s", set.addr);
    } else {
        char host[64] = "";
        unsigned port = 0;
        struct sockaddr_in a = {.sin_family = AF_INET};
        sscanf(set.addr, "%63[^:]:%u", host, &port);
        a.sin_port = htons(port);
        if (inet_pton(AF_INET, host, &a.sin_addr) != 1) fatal("address %s", set.addr);
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd >= 0 && set.from) come_from(fd, set.from);
        if (fd < 0 || connect(fd, (void *)&a, sizeof a)) fatal("%s", set.addr);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        // A reset at the end: thousands of connections in TIME_WAIT would be in
        // the way of the next run.
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    }
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return fd;
}

// ping makes sure that the server knows the connection.
static void ping(int fd) {
    uint64_t n = 0;
    all_or_nothing(fd, &n, sizeof n, 1);
    n = 1;
    all_or_nothing(fd, &n, sizeof n, 0);
    if (n) errno = 0, fatal("an empty message came back with a length of %llu", (unsigned long long)n);
}

static void connect_all(int framed) {
    struct rlimit files;
    if (!getrlimit(RLIMIT_NOFILE, &files)) files.rlim_cur = files.rlim_max, setrlimit(RLIMIT_NOFILE, &files);
    conns = calloc(set.conns, sizeof *conns);
    served = calloc(set.conns, 1);
    if (!conns || !served || (epfd = epoll_create1(EPOLL_CLOEXEC)) < 0) fatal("start");
    for (struct conn *c = conns; c < conns + set.conns; c++) {
        c->fd = dial();
        if (framed) ping(c->fd);
        fcntl(c->fd, F_SETFL, O_NONBLOCK);
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(epfd, EPOLL_CTL_ADD, c->fd, &e)) fatal("epoll_ctl");
    }
}

// ---- the run ----

static void readable(const struct kind *k, struct conn *c) {
    ssize_t n = recv(c->fd, received, sizeof received, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n == 0) errno = ECONNRESET;
    if (n <= 0) fatal("connection %zu after %llu messages", (size_t)(c - conns), (unsigned long long)c->got);
    if (measuring) bytes += n;
    k->input(c, received, n);
    if (!c->stalled) k->output(c);
}

// nap is how long epoll_wait may take, in ms, when the next message is due in so
// many ns. A sleep ends late, and a message must not: short ones are spun away.
static int nap(uint64_t due) { return due < 1500000 ? 0 : due < 100000000 ? due / 1000000 - 1 : 100; }

static void wait_and_handle(const struct kind *k, uint64_t due) {
    struct epoll_event ready[512];
    int n = epoll_wait(epfd, ready, 512, nap(due));
    if (n < 0 && errno != EINTR) fatal("epoll_wait");
    for (int i = 0; i < n; i++) {
        struct conn *c = ready[i].data.ptr;
        now = clock_now();
        if (ready[i].events & EPOLLOUT) k->output(c);
        if (ready[i].events & ~EPOLLOUT) readable(k, c);
    }
    now = clock_now();
}

static void print(double took, double cpu, double own) {
    // Where few messages are whole in the measured time, parts of them count.
    double parts = set.size >= 65536 ? (double)bytes / (set.size + 8) : 0;
    printf("{\"messages\":%.2f,\"seconds\":%.6f,\"bytes\":%llu,\"cpu\":%.6f,\"load_cpu\":%.6f,\"p50_us\":%.2f,\"p99_us\":%.2f,\"p999_us\":%.2f,"
           "\"mistakes\":%llu,\"mistake\":\"%s\",\"lacking\":%zu}\n",
           parts > whole ? parts : (double)whole, took, (unsigned long long)bytes, cpu, own,
           latency(.5), latency(.99), latency(.999), (unsigned long long)mistakes, mistake, lacking);
}

// run drives the connections. Where there are rounds, the measured time begins
// and ends between two of them, and latencies are theirs. It begins when every
// connection has got something, and does not end before they have got it a few
// times: what lies in the sockets' buffers at either end, and belongs to the
// other side of it, is then a small part. At a rate, all that was due in the
// measured time is waited for: the slowest of it counts as well.
static void run(const struct kind *k) {
    int rounds = strcmp(set.mode, "echo") && strcmp(set.mode, "http");
    double cpu = 0, own = 0, t = 0;
    uint64_t began = now = clock_now(), round = 0;
    lacking = set.conns;
    k->start();
    for (;;) {
        uint64_t due = k->pace ? k->pace(!measuring || t < set.time) : UINT64_MAX;
        int between = k->between();
        t = (now - began) / 1e9;
        if (!measuring && t >= set.warm && between && !lacking) {
            measuring = 1, lacking = set.conns, enough = 3 * set.conns;
            memset(served, 0, set.conns);
            began = timed_from = now, t = 0, round = 0;
            own = seconds(CLOCK_PROCESS_CPUTIME_ID), cpu = server_cpu();
        }
        if (measuring && t >= set.time && between && (k->pace || (!lacking && whole >= enough))) break;
        if (t >= set.time + set.warm + PATIENCE) {
            if (!between || !measuring) errno = 0, fatal("after %.0f s, %zu of %zu connections still wait", t, lacking, set.conns);
            break;
        }
        if (between) {
            if (measuring && round && rounds) count_latency(now - round);
            round = now;
            k->round();
        }
        wait_and_handle(k, due);
    }
    print(t, server_cpu() - cpu, seconds(CLOCK_PROCESS_CPUTIME_ID) - own);
}

static void hold(void) {
    char b[64];
    printf("ready\n");
    fflush(stdout);
    while (read(0, b, sizeof b) > 0) {}
}

int main(int argc, char **argv) {
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *v = argv[i + 1];
        if (!strcmp(argv[i], "-mode")) set.mode = v;
        else if (!strcmp(argv[i], "-addr")) set.addr = v;
        else if (!strcmp(argv[i], "-pid")) set.pid = atoi(v);
        else if (!strcmp(argv[i], "-conns")) set.conns = strtoul(v, NULL, 10);
        else if (!strcmp(argv[i], "-size")) set.size = strtoul(v, NULL, 10);
        else if (!strcmp(argv[i], "-depth")) set.depth = strtoul(v, NULL, 10);
        else if (!strcmp(argv[i], "-count")) set.count = strtoull(v, NULL, 10);
        else if (!strcmp(argv[i], "-flood")) set.flood = strtoul(v, NULL, 10);
        else if (!strcmp(argv[i], "-from")) set.from = v;
        else if (!strcmp(argv[i], "-rate")) set.rate = atof(v);
        else if (!strcmp(argv[i], "-warm")) set.warm = atof(v);
        else if (!strcmp(argv[i], "-time")) set.time = atof(v);
        else errno = 0, fatal("no such flag: %s", argv[i]);
    }
    int framed = strcmp(set.mode, "http");
    connect_all(framed);
    if (!strcmp(set.mode, "idle")) hold();
    else run(!framed ? &http : set.rate > 0 ? &paced : &messages);
    return mistakes != 0;
}
