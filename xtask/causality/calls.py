"""What the Python fronts do for a request: calls to the backend, in a row and at the same time.

NEXT is the backend's host:port; FRESH=1 opens a connection for every call.
"""
import http.client
import os
import threading
import time
import urllib.parse

NEXT = os.environ["NEXT"]
FRESH = os.environ.get("FRESH") == "1"
_local = threading.local()


def call(path):
    if FRESH:
        connection = http.client.HTTPConnection(NEXT, timeout=30)
    else:
        connection = getattr(_local, "connection", None)
        if connection is None:
            connection = _local.connection = http.client.HTTPConnection(NEXT, timeout=30)
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    if FRESH:
        connection.close()


def at_the_same_time(paths):
    """In threads of their own."""
    threads = [threading.Thread(target=call, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def serve(target):
    """/r/ID?row=N&fan=M: N calls in a row, then M at the same time."""
    url = urllib.parse.urlsplit(target)
    query = dict(urllib.parse.parse_qsl(url.query))
    name = url.path.split("/")[2]
    row, fan = int(query.get("row", 0)), int(query.get("fan", 0))
    for n in range(row):
        call(f"/b/{name}/{n}")
    at_the_same_time([f"/b/{name}/{row + n}" for n in range(fan)])


def work_in_background():
    """Calls that belong to no request."""
    def run():
        n = 0
        while True:
            call(f"/b/background-{os.getpid()}-{n}/0")
            n += 1
            time.sleep(0.01)
    threading.Thread(target=run, daemon=True).start()
