// HTTP over recvmmsg and sendmmsg on a TCP socket.
//   mmsg server              prints its address; after each line on stdin, its pid in brackets
//   mmsg client ADDRESS RUN  three requests, then its pid in brackets
// Both end with their stdin.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char input[1 << 20];
static size_t held;

// Up to three messages per call, the first two small.
static int more(int fd) {
    char first[9], second[64], third[65536];
    struct iovec parts[3] = {{first, sizeof first}, {second, sizeof second}, {third, sizeof third}};
    struct mmsghdr messages[3];
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < 3; i++) {
        messages[i].msg_hdr.msg_iov = &parts[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    int count = recvmmsg(fd, messages, 3, MSG_WAITFORONE, NULL);
    size_t before = held;
    for (int i = 0; i < count; i++) {
        if (held + messages[i].msg_len >= sizeof input)
            return 0;
        memcpy(input + held, parts[i].iov_base, messages[i].msg_len);
        held += messages[i].msg_len;
    }
    input[held] = 0;
    return held > before;
}

// Three messages of two iovecs each, some empty; again for what was not taken.
static int send_all(int fd, const char *data, size_t size) {
    while (size > 0) {
        size_t cut = size < 7 ? size : 7, middle = (size - cut) / 2, rest = size - cut - middle;
        struct iovec parts[6] = {{(char *)data, cut}, {NULL, 0}, {(char *)data + cut, middle / 2},
                                 {(char *)data + cut + middle / 2, middle - middle / 2},
                                 {(char *)data + cut + middle, 0}, {(char *)data + cut + middle, rest}};
        struct mmsghdr messages[3];
        memset(messages, 0, sizeof messages);
        for (int i = 0; i < 3; i++) {
            messages[i].msg_hdr.msg_iov = &parts[2 * i];
            messages[i].msg_hdr.msg_iovlen = 2;
        }
        int count = sendmmsg(fd, messages, 3, MSG_NOSIGNAL);
        if (count <= 0)
            return 0;
        for (int i = 0; i < count; i++) {
            data += messages[i].msg_len;
            size -= messages[i].msg_len;
            // A message that was cut short and others after it: the stream would be out of order.
            size_t whole = parts[2 * i].iov_len + parts[2 * i + 1].iov_len;
            if (messages[i].msg_len < whole && i + 1 < count)
                exit(1);
        }
    }
    return 1;
}

// One message of head and body at the front of the input. 0 at the end of the stream.
static size_t message(int fd) {
    char *end;
    while (!(end = strstr(input, "\r\n\r\n")))
        if (!more(fd))
            return 0;
    char *given = strcasestr(input, "\r\ncontent-length:");
    size_t size = (size_t)(end - input) + 4 + (given && given < end ? strtoul(given + 17, NULL, 10) : 0);
    while (held < size)
        if (!more(fd))
            return 0;
    return size;
}

static void drop(size_t size) {
    held -= size;
    memmove(input, input + size, held + 1);
}

static void *serve(void *argument) {
    int listener = *(int *)argument, fd;
    while ((fd = accept(listener, NULL, NULL)) >= 0) {
        held = 0, input[0] = 0;
        size_t size;
        while ((size = message(fd)) > 0) {
            char *status = strstr(input, "status="), *bytes = strstr(input, "bytes=");
            size_t length = bytes ? strtoul(bytes + 6, NULL, 10) : 0;
            char *response = malloc(length + 200);
            int head = sprintf(response, "HTTP/1.1 %ld Status\r\ncontent-length: %zu\r\n\r\n",
                               status ? strtol(status + 7, NULL, 10) : 200, length);
            memset(response + head, 'x', length);
            drop(size);
            int sent = send_all(fd, response, (size_t)head + length);
            free(response);
            if (!sent)
                break;
        }
        close(fd);
    }
    return NULL;
}

static int request(int fd, const char *method, const char *run, const char *rest, int status, size_t body) {
    char *text = malloc(body + 1000), expected[32];
    int head = sprintf(text, "%s /r/%s-%s HTTP/1.1\r\nhost: mmsg\r\nuser-agent: oddity/%s\r\ncontent-length: %zu\r\n\r\n",
                       method, run, rest, run, body);
    memset(text + head, 'b', body);
    int ok = send_all(fd, text, (size_t)head + body);
    free(text);
    size_t size = ok ? message(fd) : 0;
    sprintf(expected, "HTTP/1.1 %d ", status);
    ok = size > 0 && !strncmp(input, expected, strlen(expected));
    if (ok)
        drop(size);
    return ok;
}

int main(int count, char **arguments) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1, port = 0;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    char line[64];
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (count == 4 && sscanf(arguments[2], "127.0.0.1:%d", &port) == 1) {
        address.sin_port = htons((unsigned short)port);
        if (connect(fd, (struct sockaddr *)&address, length) != 0 ||
            !request(fd, "GET", arguments[3], "a?status=200&bytes=500", 200, 0) ||
            !request(fd, "POST", arguments[3], "b?status=201&bytes=0", 201, 3000) ||
            !request(fd, "DELETE", arguments[3], "c?status=404&bytes=150000", 404, 0))
            return 1;
        close(fd);
        printf("[%d]\n", getpid());
        fflush(stdout);
        while (fgets(line, sizeof line, stdin)) {
        }
        return 0;
    }
    if (bind(fd, (struct sockaddr *)&address, length) != 0 || listen(fd, 16) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) != 0)
        return 1;
    pthread_t thread;
    pthread_create(&thread, NULL, serve, &fd);
    printf("127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        printf("[%d]\n", getpid());
        fflush(stdout);
    }
    return 0;
}
