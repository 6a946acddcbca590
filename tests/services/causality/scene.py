"""One scene: a backend, a service that calls it, and clients of the service.

scene.py CONCURRENCY REQUESTS QUERY COMMAND...: COMMAND is the service; it is told PORT, where it
listens, and NEXT, the backend's host:port. Clients ask for /r/ID?QUERY, and the service is to call
/b/ID/N. The measured requests begin when a call for a first one (ids begin with "warm") has a parent
in the file SPANS, or after WAIT seconds: until the agent has looked a new program's functions up,
nothing can have one. Ends with status 0 when every request was answered with 200.
"""
import http.client
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[3] / "xtask" / "causality"))

from server import Server  # noqa: E402

CONCURRENCY, REQUESTS = int(sys.argv[1]), int(sys.argv[2])
QUERY, COMMAND = sys.argv[3], sys.argv[4:]
SPANS, WAIT = os.environ["SPANS"], float(os.environ["WAIT"])
START_LIMIT = 60


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def get(connection, name, failures):
    connection.request("GET", f"/r/{name}?{QUERY}")
    response = connection.getresponse()
    response.read()
    if response.status != 200:
        failures.append(response.status)


def ask(port, client, failures):
    kept = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for n in range(REQUESTS // CONCURRENCY):
        connection = kept
        if client % 2:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        get(connection, f"x-{client}-{n}", failures)
        if client % 2:
            connection.close()


def followed():
    """A call for a first request has a parent."""
    try:
        lines = pathlib.Path(SPANS).read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        try:
            request = json.loads(line)
        except ValueError:
            # Being written.
            continue
        for resource in request.get("resourceSpans", []):
            for scope in resource.get("scopeSpans", []):
                for span in scope.get("spans", []):
                    if (span.get("kind") == 3 and span.get("parentSpanId")
                            and "/b/warm" in json.dumps(span.get("attributes", []))):
                        return True
    return False


backend = Server(0, lambda path: time.sleep(hash(path) % 3 / 1000))
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
    failures = []
    deadline = time.monotonic() + WAIT
    first = 0
    while not followed() and time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        get(connection, f"warm-{first}", failures)
        connection.close()
        first += 1
        time.sleep(0.25)
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
