"""Work that is easily taken for a request's: each kind of path does it in its own way.

/r/ID?how=after     calls once the answer was written
/r/ID?how=pool      calls from a pool that all requests share and that grows while they are served; a thread
                    of nobody's gives it work as well, which it does not wait for
/r/ID?how=queue     hands the call to a worker made by the first request
/r/ID?how=queues    hands three calls to workers that are there from the start, and waits for them; a thread of nobody's
                    calls as well
/r/ID?how=shared    the same, and nobody's thread gives its calls to the same workers
/r/ID?how=selected  waits for several descriptors, then calls
"""
import http.client
import os
import queue
import select
import socket
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NEXT = os.environ["NEXT"]
pool = ThreadPoolExecutor(6)
jobs = queue.Queue()
calls = queue.Queue()
worker = background = None
lock = threading.Lock()


def call(name, number=0):
    connection = http.client.HTTPConnection(NEXT, timeout=30)
    connection.request("GET", f"/b/{name}/{number}")
    connection.getresponse().read()
    connection.close()


def work():
    while True:
        name, done = jobs.get()
        call(name)
        done.set()


def work_for_nobody():
    n = 0
    while True:
        pool.submit(call, f"background-{n}")
        n += 1
        time.sleep(0.02)


def work_for_anybody():
    while True:
        name, number, done = calls.get()
        call(name, number)
        if done:
            done.release()


def call_for_nobody(how):
    n = 0
    while True:
        if how == "shared":
            calls.put((f"background-{n}", 0, None))
        else:
            call(f"background-{n}")
        n += 1
        time.sleep(0.02)


def begin_workers(how):
    global background
    with lock:
        if background is None:
            background = threading.Thread(target=call_for_nobody, args=(how,), daemon=True)
            background.start()


def begin_background():
    global background
    with lock:
        if background is None:
            background = threading.Thread(target=work_for_nobody, daemon=True)
            background.start()


def hand_over(name):
    global worker
    with lock:
        if worker is None:
            worker = threading.Thread(target=work, daemon=True)
            worker.start()
    done = threading.Event()
    jobs.put((name, done))
    done.wait()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        name = url.path.split("/")[2]
        how = urllib.parse.parse_qs(url.query)["how"][0]
        if how == "pool":
            begin_background()
            list(pool.map(lambda n: call(name, n), range(3)))
        elif how in ("queues", "shared"):
            begin_workers(how)
            done = threading.Semaphore(0)
            for n in range(3):
                calls.put((name, n, done))
            for n in range(3):
                done.acquire()
        elif how == "queue":
            hand_over(name)
        elif how == "selected":
            one, other = socket.socketpair()
            other.send(b"x")
            select.select([one, other], [], [])
            one.close()
            other.close()
            call(name)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
        if how == "after":
            self.wfile.flush()
            call(name)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


for _ in range(4):
    threading.Thread(target=work_for_anybody, daemon=True).start()
Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
