"""A client that sends odd but valid requests, and checks the answers.

client.py WHERE RUN ACT [read=...] [write=...] [connect=blocking|nonblocking|refused] [close=...]

Prints its pid in brackets when all went as it should; ends with its stdin.
"""

import errno
import os
import select
import socket
import sys
import time

from moves import Wire, options


def connect(where, how="blocking"):
    if where.startswith(("unix:", "abstract:")):
        kind, name = where.split(":", 1)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect("\0" + name if kind == "abstract" else name)
        return sock
    host, port = where.rsplit(":", 1)
    sock = socket.socket(socket.AF_INET6 if host.startswith("[") else socket.AF_INET)
    address = (host.strip("[]"), int(port))
    if how == "nonblocking":
        # As event loops do it.
        sock.setblocking(False)
        assert sock.connect_ex(address) in (0, errno.EINPROGRESS)
        select.select([], [sock], [], 10)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        sock.setblocking(True)
    elif how == "refused":
        # A failed attempt before, with the same descriptor number.
        with socket.socket() as other, socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            assert other.connect_ex(nobody.getsockname()) == errno.ECONNREFUSED
        sock.connect(address)
    else:
        sock.connect(address)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def head(method, target, host, run, *headers, version="HTTP/1.1"):
    lines = [f"{method} {target} {version}", f"Host: {host}", f"User-Agent: oddity/{run}", *headers]
    return "\r\n".join(lines) + "\r\n\r\n"


def target(run, name, **query):
    return f"/r/{run}-{name}?" + "&".join(f"{key}={value}" for key, value in query.items())


def answer(wire, status, length=None, method="GET"):
    """Reads one response and checks it."""
    words, headers = wire.head()
    assert int(words[1]) == status, words
    if method == "HEAD" or status in (101, 204, 304):
        return
    if headers.get("transfer-encoding") == "chunked":
        body = wire.chunks()
    elif "content-length" in headers:
        body = wire.exactly(int(headers["content-length"]))
    else:
        body = wire.to_end()
    assert length is None or len(body) == length, (len(body), length)


def plain(opened, run, host):
    """Three requests over one connection."""
    wire = opened()
    wire.write(head("GET", target(run, "a", status=200, bytes=500), host, run))
    answer(wire, 200, 500)
    wire.write(head("POST", target(run, "b", status=201, bytes=0), host, run, "Content-Length: 3000"), b"b" * 3000)
    answer(wire, 201, 0)
    wire.write(head("DELETE", target(run, "c", status=404, bytes=150000), host, run))
    answer(wire, 404, 150000)


def pipelined(opened, run, host):
    wire = opened()
    wire.write("".join(head("GET", target(run, n, status=200 + n % 2, bytes=n * 30), host, run) for n in range(10)))
    for n in range(10):
        answer(wire, 200 + n % 2, n * 30)


def headpipe(opened, run, host):
    """A HEAD that is answered after a later request was sent."""
    wire = opened()
    wire.write(head("GET", target(run, "0", status=200, bytes=5), host, run))
    wire.write(head("HEAD", target(run, "1", status=200, bytes=100000), host, run))
    answer(wire, 200, 5)
    wire.write(head("GET", target(run, "2", status=201, bytes=7), host, run))
    answer(wire, 200, method="HEAD")
    answer(wire, 201, 7)
    wire.write(head("GET", target(run, "3", status=202, bytes=7), host, run))
    answer(wire, 202, 7)


def spent(opened, run, host):
    """The answer is read after writing has failed."""
    wire = opened()
    wire.write(head("GET", target(run, "a", status=200, bytes=500), host, run))
    wire.sock.shutdown(socket.SHUT_WR)
    try:
        wire.sock.send(b"more")
    except BrokenPipeError:
        pass
    answer(wire, 200, 500)


def bighead(opened, run, host):
    wire = opened()
    filling = [f"X-Filling-{n}: {'f' * 900}" for n in range(65)]
    wire.write(head("GET", target(run, "a", status=200, bytes=10), host, run, *filling))
    answer(wire, 200, 10)


def expect(opened, run, host):
    wire = opened()
    wire.write(head("PUT", target(run, "a", bytes=5), host, run, "Content-Length: 9000", "Expect: 100-continue"))
    assert wire.head()[0][1] == "100"
    wire.write("", b"b" * 9000)
    answer(wire, 200, 5)
    wire.write(head("GET", target(run, "b", bytes=5), host, run))
    answer(wire, 200, 5)


def upgrade(opened, run, host):
    wire = opened()
    wire.write(head("GET", target(run, "a", do="upgrade"), host, run, "Connection: upgrade", "Upgrade: binary"))
    answer(wire, 101)
    # What follows looks like HTTP to the careless.
    noise = b"GET /r/%b-no HTTP/1.1\r\nHost: x\r\n\r\n" % run.encode()
    wire.write("", noise.ljust(64, b"\xff")[:64])
    assert len(wire.to_end()) == 64


def tunnel(opened, run, _host):
    wire = opened()
    wire.write(head("CONNECT", f"{run}.test:443", f"{run}.test:443", run))
    words, _ = wire.head()
    assert words[1] == "200"
    wire.write("", bytes(range(64)))
    assert len(wire.to_end()) == 64


def absolute(opened, run, host):
    wire = opened()
    wire.write(head("GET", f"http://{run}.test" + target(run, "a", bytes=5), host, run))
    answer(wire, 200, 5)


def undelimited(opened, run, host):
    wire = opened()
    wire.write(head("GET", target(run, "a", bytes=90000, do="close"), host, run))
    answer(wire, 200, 90000)


def slow(opened, run, host):
    """Lets a large response wait until the server's buffers are full."""
    wire = opened()
    wire.write(head("GET", target(run, "a", bytes=3_000_000), host, run))
    time.sleep(0.1)
    answer(wire, 200, 3_000_000)


def chunked(opened, run, host):
    wire = opened()
    body = b"".join(b"%x;e=f\r\n%b\r\n" % (n, b"c" * n) for n in (1, 700, 16, 9000)) + b"0\r\nX-Trailer: GET / HTTP/1.1\r\n\r\n"
    for name in "ab":
        wire.write(head("POST", target(run, name, bytes=6001, do="chunked"), host, run, "Transfer-Encoding: chunked"), body)
        answer(wire, 200, 6001)


def early(opened, run, host):
    """The answer comes before the body was sent."""
    wire = opened()
    wire.write(head("POST", target(run, "a", do="early"), host, run, "Content-Length: 1000000"), b"b" * 1000)
    answer(wire, 413, 3)


def reset(opened, run, host):
    """Goes away in the middle of a large response."""
    wire = opened()
    wire.write(head("GET", target(run, "a", bytes=20_000_000), host, run))
    wire.exactly(100_000)
    wire.reset()


def refused(opened, run, host):
    """The server resets instead of answering."""
    wire = opened()
    wire.write(head("GET", target(run, "a", do="abort"), host, run))
    try:
        assert wire.head() is None
    except ConnectionResetError:
        pass


def half(opened, run, host):
    """Ends its side before the answer."""
    wire = opened()
    wire.write(head("GET", target(run, "a", bytes=5), host, run))
    wire.sock.shutdown(socket.SHUT_WR)
    answer(wire, 200, 5)


def old(opened, run, host):
    wire = opened()
    wire.write(head("GET", target(run, "a", bytes=5, do="close"), host, run, version="HTTP/1.0"))
    answer(wire, 200, 5)


def main():
    where, run, act, *rest = sys.argv[1:]
    given = options(rest)
    wires = []

    def opened():
        wires.append(Wire(connect(where, given.get("connect", "blocking")), given.get("read", "plain"), given.get("write", "plain")))
        return wires[-1]

    host = "localhost" if ":" in where and where.split(":")[0] in ("unix", "abstract") else where
    globals()[act](opened, run, host)
    for wire in wires:
        if given.get("close") == "range":
            # close_range(2), where the kernel and the library have it.
            number = wire.sock.detach()
            os.closerange(number, number + 1)
        elif given.get("close") == "shutdown":
            wire.sock.shutdown(socket.SHUT_RDWR)
            wire.close()
        else:
            wire.close()
    print(f"[{os.getpid()}]", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
