"""One scene: a backend, a service that calls it, and clients of the service.

scene.py CONCURRENCY REQUESTS QUERY COMMAND...: COMMAND is the service; it is told PORT, where it
listens, and NEXT, the backend's host:port. Clients ask for /r/ID?QUERY, and the service is to call
/b/ID/N. Ends with status 0 when every request was answered with 200.
"""
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONCURRENCY, REQUESTS = int(sys.argv[1]), int(sys.argv[2])
QUERY, COMMAND = sys.argv[3], sys.argv[4:]
START_LIMIT = 60


class Backend(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        time.sleep(hash(self.path) % 3 / 1000)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ask(port, client, failures):
    kept = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for n in range(REQUESTS // CONCURRENCY):
        connection = kept
        if client % 2:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", f"/r/x-{client}-{n}?{QUERY}")
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            failures.append(response.status)
        if client % 2:
            connection.close()


backend = Server(("127.0.0.1", 0), Backend)
threading.Thread(target=backend.serve_forever, daemon=True).start()
port = free_port()
environment = dict(os.environ, PORT=str(port), NEXT=f"127.0.0.1:{backend.server_port}")
service = subprocess.Popen(COMMAND, env=environment, stdin=subprocess.DEVNULL)
try:
    deadline = time.monotonic() + START_LIMIT
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
            break
        except OSError:
            if service.poll() is not None or time.monotonic() > deadline:
                sys.exit("the service does not listen")
            time.sleep(0.05)
    # The agent looks a new program's symbols up meanwhile.
    time.sleep(2)
    failures = []
    clients = [threading.Thread(target=ask, args=(port, n, failures)) for n in range(CONCURRENCY)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    # What a service does after its answers.
    time.sleep(0.5)
finally:
    service.terminate()
    service.wait()
sys.exit(1 if failures else 0)
