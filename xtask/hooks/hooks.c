// What `cargo xtask vm hooks` runs in each machine: what system call tracepoints and fentry/fexit programs of the
// socket layer cost, and what each of them does not see. The machine counts instructions: a nanosecond each.
//
// Programs are written out as instructions, so that nothing but a C compiler is needed. Each result is a line
// `hooks NAME VALUE`; what is not there on a kernel has no line.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/btf.h>
#include <linux/perf_event.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void tell(const char *name, double value) {
    printf("hooks %s %.0f\n", name, value);
    fflush(stdout);
}

static void give_up(const char *what) {
    printf("hooks: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

// A text of at most `size - 1` bytes.
static ssize_t slurp(const char *path, char *text, size_t size) {
    int file = open(path, O_RDONLY);
    ssize_t length = 0, more;
    if (file < 0)
        return -1;
    while ((more = read(file, text + length, size - 1 - length)) > 0)
        length += more;
    close(file);
    text[length] = 0;
    return length;
}

// The number of the kernel's function of this name among its types; 0 if there is none.
static int function(const char *name) {
    enum { SIZE = 64 << 20, KINDS = 20 };
    // Bytes behind a type by its kind, and for each of its members (include/uapi/linux/btf.h).
    static const int fixed[KINDS] = {[1] = 4, [3] = 12, [14] = 4, [17] = 4};
    static const int each[KINDS] = {[4] = 12, [5] = 12, [6] = 8, [13] = 8, [15] = 12, [19] = 12};
    static char *types;
    if (!types && (!(types = malloc(SIZE)) || slurp("/sys/kernel/btf/vmlinux", types, SIZE) < 0))
        give_up("types of the kernel");
    const struct btf_header *header = (void *)types;
    const char *at = types + header->hdr_len + header->type_off, *end = at + header->type_len;
    const char *strings = types + header->hdr_len + header->str_off;
    for (int id = 1; at < end; id++) {
        const struct btf_type *type = (void *)at;
        unsigned kind = BTF_INFO_KIND(type->info);
        if (kind >= KINDS)
            return 0;
        if (kind == BTF_KIND_FUNC && !strcmp(strings + type->name_off, name))
            return id;
        at += sizeof *type + fixed[kind] + each[kind] * BTF_INFO_VLEN(type->info);
    }
    return 0;
}

static int bpf(int command, union bpf_attr *attributes) {
    return syscall(SYS_bpf, command, attributes, sizeof *attributes);
}

enum { COUNTERS = 16 };
static int counters, programs;

static int map(int type, int value, int entries) {
    union bpf_attr a = {.map_type = type, .key_size = 4, .value_size = value, .max_entries = entries};
    int made = bpf(BPF_MAP_CREATE, &a);
    if (made < 0)
        give_up("a map");
    return made;
}

static unsigned long counted(int index) {
    unsigned long value = 0;
    union bpf_attr a = {.map_fd = counters, .key = (long)&index, .value = (long)&value};
    bpf(BPF_MAP_LOOKUP_ELEM, &a);
    return value;
}

enum hook { TRACEPOINT, ENTRY, EXIT };

// A program that counts its runs, goes around `rounds` times, and goes to program 0 of `programs` if that is wanted.
// -1 where the kernel refuses it.
static int program(enum hook hook, const char *at, int counter, int rounds, int goes_on) {
    struct bpf_insn code[32];
    int n = 0;
#define I(...) code[n++] = (struct bpf_insn){__VA_ARGS__}
    I(.code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = 6, .src_reg = 1);
    I(.code = BPF_ST | BPF_W | BPF_MEM, .dst_reg = 10, .off = -4, .imm = counter);
    I(.code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = 2, .src_reg = 10);
    I(.code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = 2, .imm = -4);
    I(.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_FD, .imm = counters);
    I(.code = 0);
    I(.code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_map_lookup_elem);
    I(.code = BPF_JMP | BPF_JEQ | BPF_K, .off = 2);
    I(.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 1, .imm = 1);
    I(.code = BPF_STX | BPF_DW | BPF_XADD, .src_reg = 1);
    if (rounds) {
        I(.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 7, .imm = rounds);
        I(.code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = 7, .imm = -1);
        I(.code = BPF_JMP | BPF_JNE | BPF_K, .dst_reg = 7, .off = -2);
    }
    if (goes_on) {
        I(.code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = 1, .src_reg = 6);
        I(.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 2, .src_reg = BPF_PSEUDO_MAP_FD, .imm = programs);
        I(.code = 0);
        I(.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 3);
        I(.code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_tail_call);
    }
    I(.code = BPF_ALU64 | BPF_MOV | BPF_K);
    I(.code = BPF_JMP | BPF_EXIT);
#undef I
    union bpf_attr a = {.insns = (long)code, .insn_cnt = n, .license = (long)"GPL"};
    if (hook == TRACEPOINT) {
        a.prog_type = BPF_PROG_TYPE_TRACEPOINT;
    } else {
        a.prog_type = BPF_PROG_TYPE_TRACING;
        a.expected_attach_type = hook == ENTRY ? BPF_TRACE_FENTRY : BPF_TRACE_FEXIT;
        if (!(a.attach_btf_id = function(at)))
            return -1;
    }
    return bpf(BPF_PROG_LOAD, &a);
}

static int on_event(const char *group, const char *name, int program) {
    char path[128], number[32];
    snprintf(path, sizeof path, "/sys/kernel/tracing/events/%s/%s/id", group, name);
    if (slurp(path, number, sizeof number) < 0)
        give_up(name);
    struct perf_event_attr a = {
        .type = PERF_TYPE_TRACEPOINT, .size = sizeof a, .config = atoi(number), .sample_period = 1};
    int event = syscall(SYS_perf_event_open, &a, -1, 0, -1, PERF_FLAG_FD_CLOEXEC);
    if (event < 0 || ioctl(event, PERF_EVENT_IOC_SET_BPF, program) || ioctl(event, PERF_EVENT_IOC_ENABLE, 0))
        give_up(name);
    return event;
}

static int on_tracepoint(const char *name, int program) { return on_event("syscalls", name, program); }

static int on_function(int program) {
    union bpf_attr a = {.raw_tracepoint.prog_fd = program};
    int link = bpf(BPF_RAW_TRACEPOINT_OPEN, &a);
    if (link < 0)
        give_up("fentry or fexit");
    return link;
}

static struct sockaddr_in address;
static int listener;

static void listen_here(void) {
    socklen_t length = sizeof address;
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&address, length) || listen(listener, 64) ||
        getsockname(listener, (void *)&address, &length))
        give_up("listen");
}

static int dial(in_port_t port) {
    struct sockaddr_in to = address;
    int end = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    to.sin_port = port;
    if (connect(end, (void *)&to, sizeof to)) {
        close(end);
        return -1;
    }
    setsockopt(end, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return end;
}

static pthread_mutex_t connecting = PTHREAD_MUTEX_INITIALIZER;

// Both ends of a connection.
static void connect_pair(int ends[2]) {
    pthread_mutex_lock(&connecting);
    if ((ends[0] = dial(address.sin_port)) < 0 || (ends[1] = accept(listener, 0, 0)) < 0)
        give_up("connect");
    pthread_mutex_unlock(&connecting);
}

static void close_pair(int ends[2]) {
    close(ends[0]);
    close(ends[1]);
}

static void write_and_read(int to, int from, int times) {
    char bytes[512] = {0};
    for (int i = 0; i < times; i++)
        if (write(to, bytes, 200) < 0 || read(from, bytes, sizeof bytes) < 0)
            give_up("write and read");
}

// What is attached goes after a while.
static void settle(void) { usleep(500000); }

// Instructions of a pair of calls on a connection, of one on a file, and of a call that nothing looks at.
static void costs(const char *with) {
    enum { ROUNDS = 7, TIMES = 2000 };
    double best[3] = {1e18, 1e18, 1e18};
    int ends[2], file = open("/dev/zero", O_RDWR);
    char name[64];
    connect_pair(ends);
    write_and_read(ends[0], ends[1], TIMES);
    for (int round = 0; round < ROUNDS; round++) {
        double times[4] = {now()};
        write_and_read(ends[0], ends[1], TIMES);
        times[1] = now();
        write_and_read(file, file, TIMES);
        times[2] = now();
        for (int i = 0; i < TIMES; i++)
            syscall(SYS_getppid);
        times[3] = now();
        for (int i = 0; i < 3; i++)
            if ((times[i + 1] - times[i]) / TIMES < best[i])
                best[i] = (times[i + 1] - times[i]) / TIMES;
    }
    const char *what[] = {"tcp", "file", "other"};
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "%s/%s", with, what[i]);
        tell(name, best[i]);
    }
    close_pair(ends);
    close(file);
}

// What is measured with nothing attached is measured again at the end: the smaller one counts.
static void compare_costs(void) {
    // Machines are busy with themselves after they were started.
    sleep(20);
    int plain = program(TRACEPOINT, 0, 0, 0, 0);
    costs("nothing");
    int other = on_tracepoint("sys_exit_epoll_wait", plain);
    costs("other");
    int all = on_event("raw_syscalls", "sys_exit", plain);
    costs("all");
    close(all);
    settle();
    int events[] = {on_tracepoint("sys_enter_write", plain), on_tracepoint("sys_exit_write", plain),
                    on_tracepoint("sys_exit_read", plain)};
    costs("tracepoints");
    for (int i = 0; i < 3; i++)
        close(events[i]);
    settle();
    int loaded[] = {program(ENTRY, "inet_sendmsg", 1, 0, 0), program(EXIT, "inet_sendmsg", 2, 0, 0),
                    program(EXIT, "inet_recvmsg", 3, 0, 0)};
    if (loaded[0] >= 0 && loaded[1] >= 0 && loaded[2] >= 0) {
        int links[3];
        for (int i = 0; i < 3; i++)
            links[i] = on_function(loaded[i]);
        costs("functions");
        for (int i = 0; i < 3; i++)
            close(links[i]);
    } else {
        printf("hooks: no programs of functions: %s\n", strerror(errno));
    }
    close(other);
    settle();
    costs("nothing");
}

static void *one_read(void *end) {
    char bytes[512];
    if (read(*(int *)end, bytes, sizeof bytes) < 0)
        give_up("read");
    return 0;
}

// Which of both sees the return of a call that a thread was in when it was attached.
static void blocked(void) {
    int ends[2], by_function = program(EXIT, "inet_recvmsg", 5, 0, 0);
    pthread_t thread;
    connect_pair(ends);
    pthread_create(&thread, 0, one_read, &ends[1]);
    settle();
    int event = on_tracepoint("sys_exit_read", program(TRACEPOINT, 0, 4, 0, 0));
    int link = by_function < 0 ? -1 : on_function(by_function);
    unsigned long before = counted(4);
    if (write(ends[0], "x", 1) != 1)
        give_up("write");
    pthread_join(thread, 0);
    tell("blocked/tracepoint", counted(4) - before);
    if (link >= 0)
        tell("blocked/function", counted(5));
    close(event);
    close(link);
    close_pair(ends);
    settle();
}

// Whether a program sees the return of a call in which a thread sleeps while another program comes to the function, or goes: the
// kernel makes the code around the function anew for that.
static void replaced(void) {
    int ends[2], first = program(EXIT, "inet_recvmsg", 5, 0, 0), second = program(ENTRY, "inet_recvmsg", 6, 0, 0);
    pthread_t thread;
    if (first < 0 || second < 0)
        return;
    int link = on_function(first), other = -1;
    for (int goes = 0; goes < 2; goes++) {
        connect_pair(ends);
        unsigned long before = counted(5);
        pthread_create(&thread, 0, one_read, &ends[1]);
        settle();
        if (goes)
            close(other);
        else
            other = on_function(second);
        settle();
        if (write(ends[0], "x", 1) != 1)
            give_up("write");
        pthread_join(thread, 0);
        tell(goes ? "blocked/gone" : "blocked/joined", counted(5) - before);
        close_pair(ends);
    }
    close(link);
    settle();
}

// Whether programs of one function can go on to those of another.
static void shared(void) {
    int first = 0, target = program(EXIT, "inet_recvmsg", 6, 0, 0);
    union bpf_attr a = {.map_fd = programs, .key = (long)&first, .value = (long)&target};
    if (target < 0 || bpf(BPF_MAP_UPDATE_ELEM, &a))
        return;
    tell("shared/same", program(EXIT, "inet_recvmsg", 7, 0, 1) >= 0);
    tell("shared/send", program(EXIT, "inet_sendmsg", 7, 0, 1) >= 0);
    tell("shared/unix", program(EXIT, "unix_stream_recvmsg", 7, 0, 1) >= 0);
}

enum { THREADS = 8, CALLS = 10000, ROUNDS_OF_A_CALL = 2500 };

static void *busy(void *unused) {
    int ends[2];
    connect_pair(ends);
    write_and_read(ends[0], ends[1], CALLS);
    close_pair(ends);
    return unused;
}

// Calls in 10,000 for which a program as long as the agent's did not run, with more threads than processors. By a
// hook of all system calls it runs for writes too.
static void skipped(const char *name, enum hook hook, int all, int counter) {
    int loaded = program(hook, "inet_recvmsg", counter, ROUNDS_OF_A_CALL, 0);
    if (loaded < 0)
        return;
    int attached = all                  ? on_event("raw_syscalls", "sys_exit", loaded)
                   : hook == TRACEPOINT ? on_tracepoint("sys_exit_read", loaded)
                                        : on_function(loaded);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], 0, busy, 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], 0);
    double calls = (double)THREADS * CALLS * (all ? 2 : 1), runs = counted(counter);
    tell(name, runs < calls ? (calls - runs) / calls * 10000 : 0);
    close(attached);
    close(loaded);
    settle();
}

static const char request[] = "GET /api/items/42?x=1 HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: bench/1.0\r\n"
                              "Accept: */*\r\nAccept-Encoding: gzip\r\n\r\n";
static const char response[] = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n"
                               "Server: bench\r\n\r\n{\"ok\":\"true\"}";

static void *serve(void *end) {
    char bytes[2048];
    while (read(*(int *)end, bytes, sizeof bytes) > 0)
        if (write(*(int *)end, response, sizeof response - 1) < 0)
            break;
    return 0;
}

static double ask(int end, int times) {
    char bytes[2048];
    double start = now();
    for (int i = 0; i < times; i++)
        if (write(end, request, sizeof request - 1) < 0 || read(end, bytes, sizeof bytes) <= 0)
            give_up("ask");
    return (now() - start) / times;
}

// What all programs of a process ran so far, in nanoseconds.
static double run_time(int pid) {
    char path[512], text[4096], *found;
    double sum = 0;
    snprintf(path, sizeof path, "/proc/%d/fdinfo", pid);
    DIR *directory = opendir(path);
    struct dirent *entry;
    while (directory && (entry = readdir(directory))) {
        snprintf(path, sizeof path, "/proc/%d/fdinfo/%s", pid, entry->d_name);
        if (slurp(path, text, sizeof text) > 0 && (found = strstr(text, "run_time_ns:")))
            sum += atof(found + strlen("run_time_ns:"));
    }
    closedir(directory);
    return sum;
}

static int is_ready(in_port_t port) {
    char text[512] = "";
    int end = dial(port);
    if (end < 0)
        return 0;
    const char get[] = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    int ready = write(end, get, sizeof get - 1) > 0 && read(end, text, sizeof text - 1) > 0 && strstr(text, " 200 ");
    close(end);
    return ready;
}

static void tell_of(const char *tier, const char *what, double value) {
    char name[64];
    snprintf(name, sizeof name, "request/%s/%s", tier, what);
    tell(name, value);
}

// What a request costs on a connection whose both ends are traced, in programs of the agent, and in all that the kernel
// does. With no line where the agent does not start in this tier.
static void agent(const char *path, const char *tier) {
    enum { TIMES = 3000, PORT = 9468, TRIES = 600 };
    int ends[2], nowhere = open("/dev/null", O_RDWR);
    pthread_t thread;
    connect_pair(ends);
    pthread_create(&thread, 0, serve, &ends[1]);
    ask(ends[0], TIMES);
    tell_of(tier, "alone", ask(ends[0], TIMES));
    int pid = fork();
    if (!pid) {
        setenv("TRACER_TIER", tier, 1);
        dup2(nowhere, 1);
        dup2(nowhere, 2);
        execl(path, path, "run", NULL);
        _exit(127);
    }
    for (int tries = 0; !is_ready(htons(PORT)); tries++) {
        if (tries == TRIES)
            give_up("the agent");
        if (waitpid(pid, 0, WNOHANG)) {
            printf("hooks: the agent did not start in tier %s\n", tier);
            shutdown(ends[0], SHUT_RDWR);
            pthread_join(thread, 0);
            close_pair(ends);
            close(nowhere);
            return;
        }
        usleep(100000);
    }
    int measure = open("/proc/sys/kernel/bpf_stats_enabled", O_WRONLY);
    ask(ends[0], TIMES);
    // What waited when the agent came has returned: tracepoints that were there for that go.
    sleep(15);
    // What the agent makes of it is the same in both tiers, and much more.
    kill(pid, SIGSTOP);
    tell_of(tier, "traced", ask(ends[0], TIMES));
    kill(pid, SIGCONT);
    settle();
    if (write(measure, "1", 1) != 1)
        give_up("measure programs");
    double before = run_time(pid);
    ask(ends[0], TIMES);
    tell_of(tier, "programs", (run_time(pid) - before) / TIMES);
    if (write(measure, "0", 1) != 1)
        give_up("measure programs no more");
    close(measure);
    kill(pid, SIGTERM);
    waitpid(pid, 0, 0);
    shutdown(ends[0], SHUT_RDWR);
    pthread_join(thread, 0);
    close_pair(ends);
    close(nowhere);
    settle();
}

int main(int count, char **arguments) {
    counters = map(BPF_MAP_TYPE_ARRAY, 8, COUNTERS);
    programs = map(BPF_MAP_TYPE_PROG_ARRAY, 4, 1);
    listen_here();
    compare_costs();
    blocked();
    replaced();
    shared();
    skipped("skipped/tracepoint", TRACEPOINT, 0, 8);
    skipped("skipped/function", EXIT, 0, 9);
    skipped("skipped/all", TRACEPOINT, 1, 10);
    if (count > 1) {
        agent(arguments[1], "base");
        agent(arguments[1], "fast");
    }
    tell("done", 1);
    return 0;
}
