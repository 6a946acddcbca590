// Two ends of a TLS connection in one thread, under a seccomp filter that allows next to nothing: what
// a probe would make the program call on top would end it. Arguments: certificate, key, calls.
// Waits for a line on stdin.
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <openssl/ssl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ALLOW(name) \
  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static void strict(void) {
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      ALLOW(read), ALLOW(write), ALLOW(brk), ALLOW(mmap), ALLOW(munmap), ALLOW(exit_group),
      ALLOW(getpid), ALLOW(getrandom), ALLOW(futex), ALLOW(newfstatat),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
  };
  struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
    exit(3);
}

static void require(int ok, const char *what) {
  if (ok) return;
  fprintf(stderr, "%s\n", what);
  _exit(4);
}

static void say(SSL *from, SSL *to, const char *text, int length) {
  static char back[4096];
  require(SSL_write(from, text, length) == length, "write");
  require(SSL_read(to, back, sizeof back) == length, "read");
  require(!memcmp(back, text, length), "content");
}

int main(int argc, char **argv) {
  require(argc == 4, "arguments");
  SSL_CTX *server_context = SSL_CTX_new(TLS_server_method());
  SSL_CTX *client_context = SSL_CTX_new(TLS_client_method());
  require(SSL_CTX_use_certificate_chain_file(server_context, argv[1]) == 1, "certificate");
  require(SSL_CTX_use_PrivateKey_file(server_context, argv[2], SSL_FILETYPE_PEM) == 1, "key");
  // No sleeping in a record that is not there: both ends are this thread.
  BIO *near, *far;
  require(BIO_new_bio_pair(&near, 1 << 16, &far, 1 << 16) == 1, "pair");
  SSL *server = SSL_new(server_context), *client = SSL_new(client_context);
  SSL_set_bio(client, near, near);
  SSL_set_bio(server, far, far);
  SSL_set_connect_state(client);
  SSL_set_accept_state(server);
  puts("ready");
  fflush(stdout);
  require(getchar() != EOF, "stdin");
  for (int i = 0; i < 10 && !(SSL_is_init_finished(client) && SSL_is_init_finished(server)); i++) {
    SSL_do_handshake(client);
    SSL_do_handshake(server);
  }
  require(SSL_is_init_finished(client) && SSL_is_init_finished(server), "handshake");
  strict();
  int calls = atoi(argv[3]);
  for (int i = 0; i < calls; i++) {
    char text[64];
    int length = snprintf(text, sizeof text, "call %d", i);
    say(client, server, text, length);
  }
  static const char done[] = "unharmed\n";
  require(write(1, done, sizeof done - 1) == sizeof done - 1, "stdout");
  _exit(0);
}
