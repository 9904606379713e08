/* A load generator for servers that echo lines: one thread, epoll, every reply compared with what was sent.

   load HOST PORT CONNECTIONS ACTIVE SECONDS

   Opens CONNECTIONS, exchanges one line over each, says `open SECONDS` and waits for a byte (or the end) on stdin: the
   moment to look at the server's memory. Then ACTIVE of them, spread evenly, have one line of 32 bytes outstanding each,
   for SECONDS. Says what it saw as JSON. A connection of 127.0.0.0/8 gets a source address of its own for every 20,000,
   since an address has only so many ports. Built by benchmarks/serving.py. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 32, CONNECTING = 256, PER_ADDRESS = 20000 };
#define PATIENCE 10.0 /* seconds without any reply after which those outstanding are lost */

struct line { int fd, got, open; uint64_t serial; double sent; char text[SIZE + 1], reply[SIZE]; };

static struct line *lines;
static struct sockaddr_in server;
static int poll_fd, connections, active;
static uint64_t errors, replies, serial;
static const char *first_error = "";
static uint32_t *samples; /* microseconds */
static size_t kept, room;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void failed(const char *what) {
    if (!errors++) first_error = what;
}

static void fatal(const char *what) {
    perror(what);
    exit(1);
}

/* Ends a connection that went wrong. */
static void drop(struct line *line, const char *what) {
    failed(what);
    close(line->fd);
    line->fd = -1;
}

static void dial(struct line *line, int number) {
    int one = 1;
    struct sockaddr_in source = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + number / PER_ADDRESS)};
    line->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (line->fd < 0) fatal("socket");
    setsockopt(line->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(line->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (ntohl(server.sin_addr.s_addr) >> 24 == 127 && bind(line->fd, (struct sockaddr *)&source, sizeof source)) fatal("bind");
    if (connect(line->fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS) fatal("connect");
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = line};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, line->fd, &event);
}

static void ask(struct line *line) {
    snprintf(line->text, sizeof line->text, "%010d %020llu\n", (int)(line - lines), (unsigned long long)serial++);
    line->got = 0;
    line->sent = now();
    if (send(line->fd, line->text, SIZE, MSG_NOSIGNAL) != SIZE) drop(line, "a line could not be sent");
}

/* What is there of the reply. 1: all of it, and right. */
static int answered(struct line *line) {
    ssize_t n = recv(line->fd, line->reply + line->got, SIZE - line->got, 0);
    if (n < 0 && errno == EAGAIN) return 0;
    if (n <= 0) return drop(line, n ? "a connection was reset" : "a connection was closed"), 0;
    line->got += n;
    if (line->got < SIZE) return 0;
    if (memcmp(line->text, line->reply, SIZE)) return drop(line, "a reply was wrong"), 0;
    return 1;
}

static void keep(double seconds) {
    if (kept == room) {
        room = room ? room * 2 : 1 << 20;
        if (!(samples = realloc(samples, room * sizeof *samples))) fatal("realloc");
    }
    samples[kept++] = seconds * 1e6;
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Connects all, a bounded number at a time, and exchanges a line over each. */
static void open_all(void) {
    struct epoll_event events[512];
    int begun = 0, over = 0;
    double heard = now();
    while (over < connections) {
        for (; begun < connections && begun - over < CONNECTING; begun++) dial(&lines[begun], begun);
        int n = epoll_wait(poll_fd, events, 512, 1000);
        if (n > 0) heard = now();
        else if (now() - heard > PATIENCE) { failed("no connection for a while"); return; }
        for (int i = 0; i < n; i++) {
            struct line *line = events[i].data.ptr;
            if (!line->open) {
                int error = 0;
                socklen_t size = sizeof error;
                getsockopt(line->fd, SOL_SOCKET, SO_ERROR, &error, &size);
                if (error) { drop(line, strerror(error)), over++; continue; }
                struct epoll_event event = {.events = EPOLLIN, .data.ptr = line};
                epoll_ctl(poll_fd, EPOLL_CTL_MOD, line->fd, &event);
                line->open = 1;
                ask(line);
                if (line->fd < 0) over++;
            } else if (answered(line) || line->fd < 0) over++;
        }
    }
}

/* Every active connection has a line outstanding, until the time is over and all are answered. */
static double exchange(double seconds) {
    struct epoll_event events[512];
    int outstanding = 0;
    for (int i = 0; i < active; i++) {
        struct line *line = &lines[(int64_t)i * connections / active];
        if (line->fd < 0) continue;
        ask(line);
        if (line->fd >= 0) outstanding++;
    }
    double began = now(), end = began + seconds, heard = began, last = began;
    while (outstanding) {
        int n = epoll_wait(poll_fd, events, 512, 1000);
        double at = now();
        if (n > 0) heard = at;
        else if (at - heard > PATIENCE) { while (outstanding--) failed("a line was not answered"); break; }
        for (int i = 0; i < n; i++) {
            struct line *line = events[i].data.ptr;
            int whole = answered(line);
            if (line->fd < 0) { outstanding--; continue; }
            if (!whole) continue;
            last = now();
            keep(last - line->sent);
            replies++;
            if (last < end) ask(line);
            if (last >= end || line->fd < 0) outstanding--;
        }
    }
    return last - began;
}

int main(int argc, char **argv) {
    if (argc != 6) return fprintf(stderr, "usage: load HOST PORT CONNECTIONS ACTIVE SECONDS\n"), 2;
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    server.sin_family = AF_INET;
    server.sin_port = htons(atoi(argv[2]));
    if (!inet_pton(AF_INET, argv[1], &server.sin_addr)) return fprintf(stderr, "%s is no IPv4 address\n", argv[1]), 2;
    connections = atoi(argv[3]), active = atoi(argv[4]);
    if (connections < 1 || active < 1 || active > connections) return fprintf(stderr, "1 <= ACTIVE <= CONNECTIONS\n"), 2;
    lines = calloc(connections, sizeof *lines);
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (!lines || poll_fd < 0) fatal("start");

    double began = now();
    open_all();
    double connected = now() - began;
    printf("open %.3f\n", connected);
    fflush(stdout);
    char byte;
    if (read(0, &byte, 1) < 0) fatal("stdin");
    double took = exchange(atof(argv[5]));
    qsort(samples, kept, sizeof *samples, ascending);
    int left = 0;
    for (int i = 0; i < connections; i++) left += lines[i].fd >= 0;
    printf("{\"rate\": %.1f, \"replies\": %llu, \"errors\": %llu, \"first_error\": \"%s\", \"connect\": %.3f, \"open\": %d, "
           "\"p50\": %.6f, \"p99\": %.6f, \"worst\": %.6f}\n",
           took > 0 ? replies / took : 0.0, (unsigned long long)replies, (unsigned long long)errors, first_error, connected, left,
           kept ? samples[kept / 2] / 1e6 : 0, kept ? samples[kept * 99 / 100] / 1e6 : 0, kept ? samples[kept - 1] / 1e6 : 0);
    return 0;
}
