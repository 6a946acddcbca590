// HTTPS on a libssl that is loaded late, by its path: linked with none, so that any version does.
//
//   dlopen LIBRARY server CERTIFICATE KEY
//   dlopen LIBRARY client PORT TAG REQUESTS CONNECTIONS
//
// With `KERNEL_TLS=1` in the environment (OpenSSL 3) the kernel encrypts, or the program fails; the server then
// sends large bodies by SSL_sendfile. `TLS12=1` has it decrypt too, which OpenSSL 3.0 leaves to it in TLS 1.2 only.
//
// Prints `ready`, loads LIBRARY at the first line on stdin and prints its version; the server then prints its
// port, the client waits for another line. Threads, a connection each, HTTP/1.1 kept alive.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static const void *(*server_method)(void), *(*client_method)(void);
static void *(*context_new)(const void *), *(*ssl_new)(void *);
static int (*use_certificate)(void *, const char *), (*use_key)(void *, const char *, int);
static int (*set_fd)(void *, int), (*ssl_connect)(void *), (*ssl_accept)(void *), (*ssl_shutdown)(void *);
static int (*ssl_read)(void *, void *, int), (*ssl_write)(void *, const void *, int);
static void (*ssl_free)(void *);
static const char *(*version)(int);
static uint64_t (*set_options)(void *, uint64_t);
static ssize_t (*ssl_sendfile)(void *, int, off_t, size_t, int);
static void *(*write_bio)(void *), *(*read_bio)(void *);
static long (*bio_ctrl)(void *, int, long, void *);

static const char *const KINDS[] = {"small", "missing", "big"};
static void *context;
static struct sockaddr_in address = {.sin_family = AF_INET};
static const char *tag;
static int requests, connections, failed, kernel_tls, tls12, file;

enum { BODY = 50000, ENABLE_KTLS = 1 << 3, NO_TLS13 = 1 << 29, KTLS_SENDS = 73, KTLS_RECEIVES = 76 };

static void die(const char *what) {
  fprintf(stderr, "%s\n", what);
  exit(1);
}

static void *open_library(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) die(dlerror());
  return library;
}

struct symbol {
  const char *name;
  void *at;
};

static void look_up(void *library, const struct symbol *symbols, size_t count) {
  for (size_t i = 0; i < count; i++) {
    // libcrypto, where some of them are, comes with it.
    void *symbol = dlsym(library, symbols[i].name);
    if (!symbol) die(symbols[i].name);
    memcpy(symbols[i].at, &symbol, sizeof symbol);
  }
}

static void load(const char *path) {
  void *library = open_library(path);
  const struct symbol symbols[] = {
      {"TLS_server_method", &server_method}, {"TLS_client_method", &client_method},
      {"SSL_CTX_new", &context_new}, {"SSL_new", &ssl_new},
      {"SSL_CTX_use_certificate_chain_file", &use_certificate}, {"SSL_CTX_use_PrivateKey_file", &use_key},
      {"SSL_set_fd", &set_fd}, {"SSL_connect", &ssl_connect}, {"SSL_accept", &ssl_accept},
      {"SSL_shutdown", &ssl_shutdown}, {"SSL_read", &ssl_read}, {"SSL_write", &ssl_write},
      {"SSL_free", &ssl_free}, {"OpenSSL_version", &version},
  };
  look_up(library, symbols, sizeof symbols / sizeof *symbols);
  if (!kernel_tls) return;
  const struct symbol more[] = {
      {"SSL_CTX_set_options", &set_options}, {"SSL_sendfile", &ssl_sendfile}, {"SSL_get_wbio", &write_bio},
      {"SSL_get_rbio", &read_bio},           {"BIO_ctrl", &bio_ctrl},
  };
  look_up(library, more, sizeof more / sizeof *more);
  file = memfd_create("body", 0);
  char body[BODY];
  memset(body, 'x', sizeof body);
  if (file < 0 || write(file, body, sizeof body) != sizeof body) die("memfd");
}

static void *new_context(const void *method) {
  void *made = context_new(method);
  if (made && kernel_tls) set_options(made, ENABLE_KTLS | (tls12 ? NO_TLS13 : 0));
  return made;
}

// Whether the kernel does what it was asked to do.
static int kernel_works(void *ssl) {
  if (!kernel_tls) return 1;
  return bio_ctrl(write_bio(ssl), KTLS_SENDS, 0, NULL) > 0 &&
         (!tls12 || bio_ctrl(read_bio(ssl), KTLS_RECEIVES, 0, NULL) > 0);
}

// Sends all of the file.
static int put_file(void *ssl, size_t length) {
  size_t done = 0;
  while (done < length) {
    ssize_t n = ssl_sendfile(ssl, file, done, length - done, 0);
    if (n <= 0) return 0;
    done += n;
  }
  return 1;
}

// Writes all of it, in one call.
static int put(void *ssl, const char *text, int length) { return ssl_write(ssl, text, length) == length; }

// Reads a message: its head into `head`, of its body only so much as Content-Length says. 0 at the end.
static int get(void *ssl, char *head, int room) {
  int have = 0;
  char *end = NULL;
  while (!end) {
    if (have == room - 1) return 0;
    int n = ssl_read(ssl, head + have, room - 1 - have);
    if (n <= 0) return 0;
    have += n;
    head[have] = 0;
    end = strstr(head, "\r\n\r\n");
  }
  const char *length = strstr(head, "Content-Length: ");
  long left = length && length < end ? atol(length + 16) : 0;
  left -= have - (end + 4 - head);
  char body[16384];
  while (left > 0) {
    int n = ssl_read(ssl, body, left < (long)sizeof body ? (int)left : (int)sizeof body);
    if (n <= 0) return 0;
    left -= n;
  }
  return left == 0;
}

static int no_delay(int fd) {
  int on = 1;
  return setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void *answer(void *argument) {
  int fd = (int)(long)argument;
  void *ssl = ssl_new(context);
  no_delay(fd);
  char head[8192], text[60000];
  if (ssl && set_fd(ssl, fd) == 1 && ssl_accept(ssl) == 1 && kernel_works(ssl)) {
    while (get(ssl, head, sizeof head)) {
      char *line = strchr(head, '\r');
      if (line) *line = 0;
      int body = strstr(head, "/big/") ? BODY : 100;
      const char *status = strstr(head, "/missing/") ? "404 Not Found" : "200 OK";
      int n = snprintf(text, sizeof text, "HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n", status, body);
      memset(text + n, 'x', body);
      int by_file = kernel_tls && body == BODY;
      if (!put(ssl, text, by_file ? n : n + body) || (by_file && !put_file(ssl, body))) break;
    }
    ssl_shutdown(ssl);
  }
  ssl_free(ssl);
  close(fd);
  return NULL;
}

static void serve(const char *certificate, const char *key) {
  context = new_context(server_method());
  if (!context || use_certificate(context, certificate) != 1 || use_key(context, key, 1) != 1) die("certificate");
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  socklen_t size = sizeof address;
  if (bind(listener, (void *)&address, size) || listen(listener, 128)) die("listen");
  getsockname(listener, (void *)&address, &size);
  printf("%d\n", ntohs(address.sin_port));
  for (;;) {
    int fd = accept(listener, NULL, NULL);
    pthread_t thread;
    if (fd < 0 || pthread_create(&thread, NULL, answer, (void *)(long)fd)) die("accept");
    pthread_detach(thread);
  }
}

static void *ask(void *argument) {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  void *ssl = ssl_new(context);
  char head[8192], text[8192];
  int good = !connect(fd, (void *)&address, sizeof address) && !no_delay(fd) && set_fd(ssl, fd) == 1 &&
             ssl_connect(ssl) == 1 && kernel_works(ssl);
  for (int i = (int)(long)argument; good && i < requests; i += connections) {
    int body = i % 4 ? 0 : 3000;
    int n = snprintf(text, sizeof text, "%s /%s/%s/%d HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n",
                     body ? "POST" : "GET", tag, KINDS[i % 3], i, body);
    memset(text + n, 'y', body);
    good = put(ssl, text, n + body) && get(ssl, head, sizeof head) &&
           !strncmp(head, i % 3 == 1 ? "HTTP/1.1 404" : "HTTP/1.1 200", 12);
  }
  if (!good) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
  ssl_shutdown(ssl);
  ssl_free(ssl);
  close(fd);
  return NULL;
}

static void wait_for_a_line(void) {
  char line[64];
  if (!fgets(line, sizeof line, stdin)) exit(0);
}

int main(int count, char **words) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (count < 5) die("dlopen LIBRARY server|client ...");
  kernel_tls = getenv("KERNEL_TLS") != NULL;
  tls12 = getenv("TLS12") != NULL;
  puts("ready");
  wait_for_a_line();
  load(words[1]);
  puts(version(0));
  if (!strcmp(words[2], "server")) serve(words[3], words[4]);
  if (count != 7) die("client PORT TAG REQUESTS CONNECTIONS");
  address.sin_port = htons(atoi(words[3]));
  tag = words[4], requests = atoi(words[5]), connections = atoi(words[6]);
  context = new_context(client_method());
  wait_for_a_line();
  pthread_t threads[256];
  if (!context || connections < 1 || connections > 256) die("connections");
  for (long i = 0; i < connections; i++)
    if (pthread_create(&threads[i], NULL, ask, (void *)i)) die("thread");
  for (int i = 0; i < connections; i++) pthread_join(threads[i], NULL);
  printf("%d\n", requests);
  return failed;
}
