"""A server that moves bytes in odd ways.

server.py [address=v4|v6|mapped|unix|abstract|pair] [read=...] [write=...] [serve=here|fork|pass|dup2|dup3|fcntl] [run=...]

Prints where to connect; after a line on stdin, the pids that served; ends with its stdin.
"""

import fcntl
import json
import os
import signal
import socket
import sys
import tempfile
import threading
from urllib.parse import parse_qs, urlsplit

import client
from moves import Wire, options

given = options(sys.argv[1:])
serving = []


def respond(wire, words, headers):
    """Answers one request; False if the connection is over."""
    method, target, version = words
    query = {key: value[0] for key, value in parse_qs(urlsplit(target).query).items()}
    act = query.get("do", "")
    if method == "CONNECT":
        wire.write("HTTP/1.1 200 Connection established\r\n\r\n")
        wire.write("", wire.exactly(64))
        return False
    if act == "abort":
        wire.reset()
        return False
    if act == "early":
        wire.write("HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 3\r\n\r\n", b"no\n")
        wire.sock.shutdown(socket.SHUT_WR)
        wire.to_end()
        return False
    if act == "upgrade":
        wire.write("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: binary\r\n\r\n")
        wire.write("", wire.exactly(64))
        return False
    if headers.get("expect") == "100-continue":
        wire.write("HTTP/1.1 100 Continue\r\n\r\n")
    if headers.get("transfer-encoding") == "chunked":
        wire.chunks()
    else:
        wire.exactly(int(headers.get("content-length", 0)))
    body = b"x" * int(query.get("bytes", 0))
    head = f"HTTP/1.1 {query.get('status', 200)} Status\r\n"
    if act == "close":
        wire.write(head + "connection: close\r\n\r\n", body)
        return False
    if act == "chunked":
        head += "transfer-encoding: chunked\r\n\r\n"
        middle = len(body) // 2
        parts = [body[:middle], body[middle:]]
        chunks = b"".join(b"%x;name=\"a;b\"\r\n%b\r\n" % (len(part), part) for part in parts if part)
        wire.write(head, chunks + b"0\r\nx-trailer: HTTP/1.1 500 not a response\r\n\r\n")
    else:
        wire.write(head + f"content-length: {len(body)}\r\n\r\n", b"" if method == "HEAD" else body)
    return version == "HTTP/1.1" and headers.get("connection") != "close"


def serve(sock):
    wire = Wire(sock, given.get("read", "plain"), given.get("write", "plain"))
    try:
        while (head := wire.head()) and respond(wire, *head):
            pass
    except (ConnectionError, EOFError):
        pass
    wire.close()


def listen(kind):
    """A listening socket and how to connect to it."""
    if kind in ("unix", "abstract"):
        name = f"odd-{os.getpid()}"
        path = "\0" + name if kind == "abstract" else os.path.join(tempfile.gettempdir(), name)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        where = f"abstract:{name}" if kind == "abstract" else f"unix:{path}"
    elif kind == "v4":
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        where = "127.0.0.1:%d" % listener.getsockname()[1]
    else:
        listener = socket.socket(socket.AF_INET6)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(kind == "v6"))
        address = "::1" if kind == "v6" else "::ffff:127.0.0.1"
        listener.bind((address, 0))
        where = "[%s]:%d" % (address, listener.getsockname()[1])
    listener.listen(16)
    return listener, where


def here(listener):
    serving.append(os.getpid())
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


def renumbered(move):
    """Accepts on one descriptor, serves on another one made from it; the first is closed before."""

    def mode(listener):
        serving.append(os.getpid())
        while True:
            sock, _ = listener.accept()
            number = move(sock.fileno())
            sock.close()
            threading.Thread(target=serve, args=(socket.socket(fileno=number),), daemon=True).start()

    return mode


def onto_another(inheritable):
    """dup2, or dup3 with O_CLOEXEC, onto a descriptor that is open already."""

    def move(number):
        other = os.open("/dev/null", os.O_RDONLY)
        return os.dup2(number, other, inheritable)

    return move


def fork(listener):
    """Accepts in the parent, serves in a child that inherits the connection."""
    while True:
        sock, _ = listener.accept()
        child = os.fork()
        if child == 0:
            listener.close()
            serve(sock)
            os._exit(0)
        serving.append(child)
        sock.close()


def hand_over(listener):
    """Accepts here, and passes the descriptor to another process that serves."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        listener.close()
        ours.close()
        while True:
            message, descriptors, _, _ = socket.recv_fds(theirs, 16, 1)
            if not message:
                os._exit(0)
            serve(socket.socket(fileno=descriptors[0]))
    theirs.close()
    serving.append(child)
    while True:
        sock, _ = listener.accept()
        socket.send_fds(ours, [b"take it"], [sock.fileno()])
        sock.close()


def pair():
    """A child serves its parent over a socketpair; the parent is the client."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        serve(theirs)
        os._exit(0)
    theirs.close()
    serving.append(child)
    client.plain(lambda: Wire(ours), given["run"], "localhost")
    ours.close()


signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if given.get("address") == "pair":
    pair()
    print("none", flush=True)
else:
    listener, where = listen(given.get("address", "v4"))
    modes = {
        "here": here,
        "fork": fork,
        "pass": hand_over,
        "dup2": renumbered(onto_another(True)),
        "dup3": renumbered(onto_another(False)),
        "fcntl": renumbered(lambda number: fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 100)),
    }
    mode = modes[given.get("serve", "here")]
    threading.Thread(target=mode, args=(listener,), daemon=True).start()
    print(where, flush=True)
while sys.stdin.readline():
    print(json.dumps(serving), flush=True)
if given.get("address") == "unix":
    os.unlink(listener.getsockname())
