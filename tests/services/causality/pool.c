// Work that threads hand to each other; HOW says in which way, WITH what else runs in the program. Calls for a request
// are /b/ID/N, those of nobody in particular /b/background-N/0.
//
// HOW:
// condition  a queue under a lock, with a condition for workers and one for each request
// semaphore  the same with semaphores
// pipe       workers read jobs from a pipe, and answer in a pipe of the request's
// eventfd    one worker waits for an eventfd's number
// loop       the same in an event loop (epoll)
// after      as condition, but the request answers without waiting
// batch      requests leave notes for a thread that sends all there are, and do not wait for it
// lock       no workers: requests call while they hold a lock
// WITH:
// own        a thread that calls now and then, which sleeps in between
// polls      the same, which waits in poll
// ticks      the same, which waits for a timer (timerfd)
// shares     the same, which gives the work to the workers
// holds      the same, which holds a lock that requests take as well while it calls
// waits      the same with a lock that is a semaphore
// logs       requests wake a thread that calls for nobody, and do not wait for it
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { WORKERS = 4, JOBS = 3, MOST = 4096 };

struct request {
    int left, pipe[2];
    pthread_mutex_t lock;
    pthread_cond_t done;
    sem_t sem;
};
struct job {
    char path[200];
    struct request *request;
};

static struct sockaddr_in next_address;
static const char *how, *with;
static struct job queue[MOST];
static unsigned head, tail;
static pthread_mutex_t queue_lock = PTHREAD_MUTEX_INITIALIZER, shared_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t filled = PTHREAD_COND_INITIALIZER, noted = PTHREAD_COND_INITIALIZER;
static sem_t filled_sem, shared_sem;
static int job_pipe[2], event;
static unsigned notes, logs;
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t logged = PTHREAD_COND_INITIALIZER;

// Jobs that no request waits for, and that were not done yet.
static int nobodys;

static int is(const char *what, const char *name) { return strcmp(what, name) == 0; }

static void call(const char *path) {
    char text[400];
    int n = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&next_address, sizeof next_address) == 0 && write(fd, text, n) == n)
        while (read(fd, text, sizeof text) > 0) {
        }
    close(fd);
}

static void call_for(const char *name, int n) {
    char path[200];
    snprintf(path, sizeof path, "/b/%s/%d", name, n);
    call(path);
}

static void finish(struct request *request) {
    if (!request) {
        __atomic_sub_fetch(&nobodys, 1, __ATOMIC_RELAXED);
        return;
    }
    if (is(how, "semaphore")) {
        sem_post(&request->sem);
    } else if (is(how, "pipe") || is(how, "eventfd") || is(how, "loop")) {
        if (write(request->pipe[1], "x", 1) != 1)
            abort();
    } else {
        pthread_mutex_lock(&request->lock);
        if (--request->left == 0)
            pthread_cond_signal(&request->done);
        pthread_mutex_unlock(&request->lock);
    }
}

static void put(const char *path, struct request *request) {
    struct job job = {.request = request};
    if (!request)
        __atomic_add_fetch(&nobodys, 1, __ATOMIC_RELAXED);
    snprintf(job.path, sizeof job.path, "%s", path);
    if (is(how, "pipe")) {
        if (write(job_pipe[1], &job, sizeof job) != sizeof job)
            abort();
        return;
    }
    pthread_mutex_lock(&queue_lock);
    queue[tail++ % MOST] = job;
    if (!is(how, "semaphore") && !is(how, "eventfd") && !is(how, "loop"))
        pthread_cond_signal(&filled);
    pthread_mutex_unlock(&queue_lock);
    unsigned long one = 1;
    if (is(how, "semaphore"))
        sem_post(&filled_sem);
    else if ((is(how, "eventfd") || is(how, "loop")) && write(event, &one, sizeof one) != sizeof one)
        abort();
}

// False when there is none.
static int take(struct job *job, int waits) {
    pthread_mutex_lock(&queue_lock);
    while (waits && head == tail)
        pthread_cond_wait(&filled, &queue_lock);
    int some = head != tail;
    if (some)
        *job = queue[head++ % MOST];
    pthread_mutex_unlock(&queue_lock);
    return some;
}

static void *work(void *_) {
    (void)_;
    struct job job;
    unsigned long number;
    int loop = epoll_create1(0);
    struct epoll_event wanted = {.events = EPOLLIN}, ready;
    epoll_ctl(loop, EPOLL_CTL_ADD, event, &wanted);
    for (;;) {
        if (is(how, "pipe")) {
            if (read(job_pipe[0], &job, sizeof job) != sizeof job)
                abort();
        } else if (is(how, "eventfd") || is(how, "loop")) {
            if (is(how, "loop") && epoll_wait(loop, &ready, 1, -1) != 1)
                continue;
            if (read(event, &number, sizeof number) != sizeof number)
                abort();
            while (take(&job, 0)) {
                call(job.path);
                finish(job.request);
            }
            continue;
        } else if (is(how, "semaphore")) {
            while (sem_wait(&filled_sem) != 0) {
            }
            take(&job, 0);
        } else {
            take(&job, 1);
        }
        call(job.path);
        finish(job.request);
    }
    return NULL;
}

static void *send_notes(void *_) {
    (void)_;
    for (int n = 0;; n++) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 20000000;
        if (until.tv_nsec >= 1000000000)
            until.tv_nsec -= 1000000000, until.tv_sec++;
        pthread_mutex_lock(&queue_lock);
        while (notes == 0 && pthread_cond_timedwait(&noted, &queue_lock, &until) == 0) {
        }
        notes = 0;
        pthread_mutex_unlock(&queue_lock);
        call_for("background-notes", n);
    }
    return NULL;
}

static void *send_logs(void *_) {
    (void)_;
    for (int n = 0;; n++) {
        pthread_mutex_lock(&log_lock);
        while (logs == 0)
            pthread_cond_wait(&logged, &log_lock);
        logs = 0;
        pthread_mutex_unlock(&log_lock);
        call_for("background-logs", n);
    }
    return NULL;
}

static void *background(void *_) {
    (void)_;
    int timer = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec every = {{0, 5000000}, {0, 5000000}};
    timerfd_settime(timer, 0, &every, NULL);
    unsigned long number;
    for (int n = 0;; n++) {
        char path[100];
        snprintf(path, sizeof path, "/b/background-%d/0", n);
        if (is(with, "shares")) {
            // No more than the workers can do, however busy the machine is.
            if (__atomic_load_n(&nobodys, __ATOMIC_RELAXED) < 2)
                put(path, NULL);
        } else if (is(with, "holds")) {
            pthread_mutex_lock(&shared_lock);
            call(path);
            pthread_mutex_unlock(&shared_lock);
        } else if (is(with, "waits")) {
            while (sem_wait(&shared_sem) != 0) {
            }
            call(path);
            sem_post(&shared_sem);
        } else {
            call(path);
        }
        if (is(with, "polls"))
            poll(NULL, 0, 5);
        else if (is(with, "ticks") && read(timer, &number, sizeof number) != sizeof number)
            abort();
        else if (!is(with, "ticks"))
            usleep(is(with, "holds") || is(with, "waits") ? 1000 : 5000);
    }
    return NULL;
}

static void serve_one(const char *name) {
    char path[200];
    if (is(with, "holds") || is(how, "lock"))
        pthread_mutex_lock(&shared_lock);
    if (is(with, "waits"))
        while (sem_wait(&shared_sem) != 0) {
        }
    if (is(how, "lock"))
        call_for(name, 0);
    if (is(with, "waits"))
        sem_post(&shared_sem);
    if (is(with, "holds") || is(how, "lock"))
        pthread_mutex_unlock(&shared_lock);
    if (is(with, "logs")) {
        pthread_mutex_lock(&log_lock);
        logs++;
        pthread_cond_signal(&logged);
        pthread_mutex_unlock(&log_lock);
    }
    if (is(how, "lock"))
        return;
    if (is(how, "batch")) {
        pthread_mutex_lock(&queue_lock);
        notes++;
        pthread_cond_signal(&noted);
        pthread_mutex_unlock(&queue_lock);
        call_for(name, 0);
        return;
    }
    // Kept: who is still awake may look at it after the last answer.
    struct request *request = calloc(1, sizeof *request);
    request->left = JOBS;
    pthread_mutex_init(&request->lock, NULL);
    pthread_cond_init(&request->done, NULL);
    sem_init(&request->sem, 0, 0);
    if (pipe(request->pipe) != 0)
        abort();
    for (int n = 0; n < JOBS; n++) {
        snprintf(path, sizeof path, "/b/%s/%d", name, n);
        put(path, is(how, "after") ? NULL : request);
    }
    char byte;
    if (is(how, "semaphore")) {
        for (int n = 0; n < JOBS; n++)
            while (sem_wait(&request->sem) != 0) {
            }
    } else if (is(how, "pipe") || is(how, "eventfd") || is(how, "loop")) {
        for (int n = 0; n < JOBS; n++)
            if (read(request->pipe[0], &byte, 1) != 1)
                abort();
    } else if (!is(how, "after")) {
        pthread_mutex_lock(&request->lock);
        while (request->left > 0)
            pthread_cond_wait(&request->done, &request->lock);
        pthread_mutex_unlock(&request->lock);
    }
    close(request->pipe[0]);
    close(request->pipe[1]);
}

static void *serve(void *argument) {
    int fd = (int)(long)argument;
    char text[4096];
    int have = 0;
    for (;;) {
        char *end;
        text[have] = 0;
        while (!(end = strstr(text, "\r\n\r\n"))) {
            int n = read(fd, text + have, sizeof text - 1 - have);
            if (n <= 0) {
                close(fd);
                return NULL;
            }
            have += n;
            text[have] = 0;
        }
        char name[100];
        if (sscanf(text, "GET /r/%99[^? ]", name) != 1)
            abort();
        end += 4;
        have -= end - text;
        memmove(text, end, have);
        serve_one(name);
        static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        if (write(fd, answer, sizeof answer - 1) < 0) {
            close(fd);
            return NULL;
        }
    }
}

static void start(void *(*what)(void *), void *argument) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, what, argument) != 0)
        abort();
    pthread_detach(thread);
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    how = getenv("HOW");
    with = getenv("WITH");
    char host[100];
    int port;
    if (sscanf(getenv("NEXT"), "%99[^:]:%d", host, &port) != 2)
        abort();
    next_address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
    inet_aton(host, &next_address.sin_addr);
    sem_init(&filled_sem, 0, 0);
    sem_init(&shared_sem, 0, 1);
    event = eventfd(0, 0);
    if (pipe(job_pipe) != 0)
        abort();
    int workers = is(how, "eventfd") || is(how, "loop") ? 1 : is(how, "batch") || is(how, "lock") ? 0 : WORKERS;
    for (int n = 0; n < workers; n++)
        start(work, NULL);
    if (is(how, "batch"))
        start(send_notes, NULL);
    start(is(with, "logs") ? send_logs : background, NULL);
    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(getenv("PORT")))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 128) != 0)
        abort();
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd >= 0)
            start(serve, (void *)(long)fd);
    }
}
