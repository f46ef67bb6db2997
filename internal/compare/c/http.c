// http: requests of /<size>, and answers of that many letters of the alphabet.
#define _GNU_SOURCE
#include "load.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#define LETTERS 26

struct head {
    char text[1024];
    size_t len;
    int complete; // the body follows
};

static unsigned char letters[sizeof received + LETTERS];
static char request[128];
static size_t request_len;

// check_head looks at the status line and at Content-Length, unless it is the
// same head as last time.
static void check_head(struct head *h) {
    static struct head last;
    unsigned long long size = ~0ull;
    h->complete = 1;
    if (h->len == last.len && !memcmp(h->text, last.text, h->len)) return;
    h->text[h->len] = 0;
    for (char *line = strstr(h->text, "\r\n"); line; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, "Content-Length:", 15)) size = strtoull(line + 17, NULL, 10);
    if (strncmp(h->text, "HTTP/1.1 200 ", 13) || size != set.size) errno = 0, fatal("an answer with the head %s", h->text);
    last = *h;
}

// take_head adds to the head what p has of it, and returns how much that is.
static size_t take_head(struct head *h, const unsigned char *p, size_t n) {
    size_t before = h->len, k = n < sizeof h->text - 1 - before ? n : sizeof h->text - 1 - before;
    memcpy(h->text + before, p, k);
    size_t from = before < 3 ? 0 : before - 3; // the end may have begun before
    char *end = memmem(h->text + from, before + k - from, "\r\n\r\n", 4);
    if (!end) {
        if ((h->len += k) == sizeof h->text - 1) errno = 0, fatal("an answer with a long head");
        return k;
    }
    h->len = end + 4 - h->text;
    check_head(h);
    return h->len - before;
}

static void input(struct conn *c, const unsigned char *p, size_t n) {
    while (n) {
        size_t k = c->head->complete ? 0 : take_head(c->head, p, n);
        p += k, n -= k;
        if (!c->head->complete) return;
        k = set.size - c->got_of < n ? set.size - c->got_of : n;
        if (memcmp(p, letters + c->got_of % LETTERS, k)) wrong(c, "wrong bytes");
        p += k, n -= k;
        if ((c->got_of += k) < set.size) return;
        c->got_of = c->head->len = c->head->complete = 0;
        if (c->got == c->sent) errno = 0, fatal("more answers than requests");
        done(c, c->sent_at[c->got % set.depth], 1);
        c->due++;
    }
}

static void output(struct conn *c) {
    while (c->sent < c->due) {
        ssize_t n = send(c->fd, request + c->sent_of, request_len - c->sent_of, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            stall(c, 1);
            return;
        }
        if (n < 0) fatal("sending on connection %zu", (size_t)(c - conns));
        if ((c->sent_of += n) < request_len) continue;
        c->sent_at[c->sent++ % set.depth] = now;
        c->sent_of = 0;
    }
    stall(c, 0);
}

static void start(void) {
    for (size_t i = 0; i < sizeof letters; i++) letters[i] = 'a' + i % LETTERS;
    request_len = snprintf(request, sizeof request, "GET /%zu HTTP/1.1\r\nHost: compare\r\n\r\n", set.size);
    for (struct conn *c = conns; c < conns + set.conns; c++) {
        c->head = calloc(1, sizeof *c->head);
        c->sent_at = calloc(set.depth, sizeof *c->sent_at);
        if (!c->head || !c->sent_at) fatal("memory");
        c->due = set.depth;
        output(c);
    }
}

static int always(void) { return 1; }
static void no_rounds(void) {}

const struct kind http = {.start = start, .input = input, .output = output, .between = always, .round = no_rounds};
