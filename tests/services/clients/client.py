"""A client on Python's http.client, a thread per connection: ADDRESS RUN REQUESTS.

Prints the driver's report; ends with its stdin.
"""

import http.client
import json
import os
import sys
import threading

address, run, requests = sys.argv[1], sys.argv[2], int(sys.argv[3])
records = [None] * requests
LANES = 8


def send(connection, number):
    method = ("GET", "POST", "PUT", "DELETE")[number % 4]
    status = (200, 201, 404, 500, 200)[number % 5]
    size = (0, 17, 4000, 150000)[number // 4 % 4]
    path, query = f"/r/{run}-{number}", f"status={status}&bytes={size}&delay_ms=0"
    reused = connection.sock is not None
    # An iterable body goes in chunks.
    body = {"POST": b"b" * 3000, "PUT": iter([b"b" * 5000, b"more"])}.get(method)
    connection.request(method, f"{path}?{query}", body, {"User-Agent": "tracer-driver/1"})
    port = connection.sock.getsockname()[1]
    response = connection.getresponse()
    read = len(response.read())
    # Not a measurement: the interpreter's lock lies between it and the system calls.
    records[number] = {
        "method": method, "path": path, "query": query, "status": response.status, "duration_ns": 0,
        "started_ns": 0, "local_port": port, "reused": reused, "preopened": False, "preempted": True,
        "response_bytes": read, "error": None,
    }  # fmt: skip


def lane(first):
    connection = http.client.HTTPConnection(address)
    for number in range(first, requests, LANES):
        send(connection, number)


threads = [threading.Thread(target=lane, args=(first,)) for first in range(LANES)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps({"pid": os.getpid(), "address": address, "run": run, "records": records}), flush=True)
sys.stdin.read()
