// What the two kinds of load have in common: one thread, one epoll set, and the
// figures that are printed at the end.
#ifndef LOAD_H
#define LOAD_H

#include <stddef.h>
#include <stdint.h>

struct conn {
    int fd;
    int stalled;       // output waits for room
    uint64_t asked;    // commands, in all
    uint64_t due;      // messages that may be sent, in all
    uint64_t sent;     // whole ones
    size_t sent_of;    // bytes of the one after these
    uint64_t got;      // whole ones
    size_t got_of;     // bytes of the one after these
    size_t tape_at;    // messages: as much as was got of the tape
    uint64_t *sent_at; // when, ring of `ring`; only where each is answered, and what that takes counts
    struct head *head; // http: of the answer that is being received
};

struct settings {
    const char *mode, *addr;
    const char *from;  // NULL: wherever the system says
    size_t conns, size, depth;
    size_t flood;      // messages in flight on the first connection, if not `depth`
    double rate;       // messages a second, on all connections in turn, whether or not answers come; 0: see depth
    uint64_t count;
    double warm, time; // seconds
    int pid;           // of the server
};
extern struct settings set;
extern struct conn *conns;
extern unsigned char received[256 << 10]; // what recv brings, of all connections in turn

struct kind {
    void (*start)(void);                                            // when all are connected
    void (*input)(struct conn *c, const unsigned char *p, size_t n); // handles what came
    void (*output)(struct conn *c);                                 // sends what is due, as far as there is room
    int (*between)(void);                                           // whether no round is under way
    void (*round)(void);                                            // begins the next one; nothing, where there are no rounds
    uint64_t (*pace)(int more);                                     // sends what is due by now, and more if there is to be more; ns until the next
};
extern const struct kind messages, paced, http;

void fatal(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
void wrong(struct conn *c, const char *what); // counts and describes what should not have come
void done(struct conn *c, uint64_t since, uint64_t n); // n messages are complete; since: when they were asked for, or 0
void all_or_nothing(int fd, void *p, size_t n, int out); // blocking; n bytes or the end
void stall(struct conn *c, int stalled);
uint64_t clock_now(void);
extern uint64_t now; // of the event that is handled

#endif
