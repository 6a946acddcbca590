// A thread per connection; reads with readv and writes with writev, several iovecs each, some of
// them empty. Prints its port; ends with its stdin.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define CAPACITY (256 * 1024)

struct connection {
    int fd;
    size_t length;
    char bytes[CAPACITY + 1];
};

// Reads more behind what is there, scattered over four iovecs. False at the end.
static int more(struct connection *c) {
    size_t space = CAPACITY - c->length;
    char *at = c->bytes + c->length;
    if (space < 16)
        return 0;
    struct iovec parts[4] = {{at, 5}, {at, 0}, {at + 5, 6}, {at + 11, space - 11}};
    ssize_t count = readv(c->fd, parts, 4);
    if (count <= 0)
        return 0;
    c->length += (size_t)count;
    c->bytes[c->length] = 0;
    return 1;
}

static void consume(struct connection *c, size_t count) {
    c->length -= count;
    memmove(c->bytes, c->bytes + count, c->length + 1);
}

static int need(struct connection *c, size_t count) {
    while (c->length < count)
        if (!more(c))
            return 0;
    return 1;
}

// Length of the line at the front including CRLF, 0 at the end of the stream.
static size_t line(struct connection *c) {
    char *end;
    while (!(end = strstr(c->bytes, "\r\n")))
        if (!more(c))
            return 0;
    return (size_t)(end - c->bytes) + 2;
}

static int skip_chunks(struct connection *c) {
    for (;;) {
        size_t length = line(c);
        if (!length)
            return 0;
        size_t size = strtoul(c->bytes, NULL, 16);
        consume(c, length);
        if (!need(c, size + 2))
            return 0;
        consume(c, size + 2);
        if (!size)
            return 1;
    }
}

static long number(const char *head, const char *key) {
    const char *at = strstr(head, key);
    return at ? strtol(at + strlen(key), NULL, 10) : 0;
}

static int write_all(int fd, struct iovec *parts, int count) {
    while (count > 0) {
        ssize_t written = writev(fd, parts, count);
        if (written < 0)
            return 0;
        while (count > 0 && (size_t)written >= parts->iov_len) {
            written -= (ssize_t)parts->iov_len;
            parts++, count--;
        }
        if (count > 0) {
            parts->iov_base = (char *)parts->iov_base + written;
            parts->iov_len -= (size_t)written;
        }
    }
    return 1;
}

static int serve_one(struct connection *c) {
    char *end;
    c->bytes[c->length] = 0;
    while (!(end = strstr(c->bytes, "\r\n\r\n")))
        if (!more(c))
            return 0;
    *end = 0;
    int head_request = !strncmp(c->bytes, "HEAD ", 5);
    int chunked = strcasestr(c->bytes, "\r\ntransfer-encoding: chunked") != NULL;
    int close_after = strcasestr(c->bytes, "\r\nconnection: close") != NULL;
    char *given = strcasestr(c->bytes, "\r\ncontent-length:");
    size_t body = given ? strtoul(given + 17, NULL, 10) : 0;
    long status = number(c->bytes, "status="), delay = number(c->bytes, "delay_ms=");
    size_t size = (size_t)number(c->bytes, "bytes=");
    consume(c, (size_t)(end - c->bytes) + 4);
    if (chunked ? !skip_chunks(c) : !need(c, body))
        return 0;
    if (!chunked)
        consume(c, body);
    struct timespec pause = {0, delay * 1000000};
    nanosleep(&pause, NULL);

    int bodiless = status == 204 || status == 304;
    char first[64], second[128];
    int first_length = snprintf(first, sizeof first, "HTTP/1.1 %ld Status\r\n", status);
    int second_length = bodiless ? snprintf(second, sizeof second, "server: iovec\r\n\r\n")
                                 : snprintf(second, sizeof second, "content-length: %zu\r\n\r\n", size);
    size_t sent = bodiless || head_request ? 0 : size;
    char *content = malloc(sent + 1);
    memset(content, 'x', sent);
    struct iovec parts[5] = {{first, (size_t)first_length}, {NULL, 0}, {second, (size_t)second_length},
                             {content, sent / 2}, {content + sent / 2, sent - sent / 2}};
    int ok = write_all(c->fd, parts, 5);
    free(content);
    return ok && !close_after;
}

static void *serve(void *argument) {
    struct connection *c = argument;
    while (serve_one(c)) {
    }
    close(c->fd);
    free(c);
    return NULL;
}

static void *accept_loop(void *argument) {
    int listener = *(int *)argument, one = 1;
    for (;;) {
        struct connection *c = calloc(1, sizeof *c);
        c->fd = accept(listener, NULL, NULL);
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        pthread_t thread;
        if (c->fd < 0 || pthread_create(&thread, NULL, serve, c) != 0) {
            free(c);
            continue;
        }
        pthread_detach(thread);
    }
    return NULL;
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, length) != 0 || listen(listener, 128) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) != 0)
        return 1;
    pthread_t thread;
    pthread_create(&thread, NULL, accept_loop, &listener);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) > 0) {
    }
    return 0;
}
