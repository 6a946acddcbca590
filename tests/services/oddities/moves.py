"""Ways to move bytes over a stream socket that a tracer must see alike."""

import os
import select
import signal
import socket
import tempfile
import threading

_dups = {}


def _dup(sock):
    """A second descriptor of the same socket, one per socket, closed with the process."""
    if sock not in _dups:
        _dups[sock] = os.dup(sock.fileno())
    return _dups[sock]


def forget(sock):
    """Closes the second descriptor, so that the connection ends."""
    if sock in _dups:
        os.close(_dups.pop(sock))


# Readers: (socket, size) -> bytes, empty at the end of the stream.


def read_plain(sock, size):
    return sock.recv(size)


def read_peek(sock, size):
    """Looks twice before it reads, the second time at less."""
    seen = sock.recv(size, socket.MSG_PEEK)
    sock.recv(max(1, len(seen) // 2), socket.MSG_PEEK)
    return sock.recv(len(seen) or 1)


def read_nonblocking(sock, size):
    """Reads until EAGAIN, every time, as edge-triggered event loops do."""
    sock.setblocking(False)
    data = b""
    while True:
        try:
            piece = sock.recv(size)
            if not piece:
                return data
            data += piece
        except BlockingIOError:
            if data:
                return data
            select.select([sock], [], [], 10)


def _scattered(size):
    return [bytearray(5), bytearray(0), bytearray(13), bytearray(size)]


def _gather(buffers, count):
    return b"".join(bytes(buffer) for buffer in buffers)[:count]


def read_recvmsg(sock, size):
    buffers = _scattered(size)
    return _gather(buffers, sock.recvmsg_into(buffers)[0])


def read_readv(sock, size):
    buffers = [buffer for buffer in _scattered(size)]
    return _gather(buffers, os.readv(sock.fileno(), buffers))


def read_byte(sock, _size):
    return sock.recv(1)


def read_dup(sock, size):
    return os.read(_dup(sock), size)


def read_splice(sock, size):
    """Heads as usual, bodies through a pipe, as proxies do it."""
    seen = sock.recv(size, socket.MSG_PEEK)
    if b"HTTP/1." in seen:
        return sock.recv(seen.index(b"\r\n\r\n") + 4)
    reader, writer = os.pipe()
    try:
        count = os.splice(sock.fileno(), writer, min(size, 16384))
        return os.read(reader, count) if count else b""
    finally:
        os.close(reader)
        os.close(writer)


def read_preadv2(sock, size):
    """preadv2 at no offset, as readv."""
    buffers = _scattered(size)
    return _gather(buffers, os.preadv(sock.fileno(), buffers, -1))


def read_truncated(sock, size):
    """MSG_PEEK | MSG_TRUNC counts what it does not take; a read of no bytes takes nothing."""
    seen = sock.recv(size, socket.MSG_PEEK | socket.MSG_TRUNC)
    os.read(sock.fileno(), 0)
    return sock.recv(len(seen) or 1)


def read_waitall(sock, size):
    """As much as there is in one call that waits for all of it."""
    seen = sock.recv(size, socket.MSG_PEEK)
    return sock.recv(len(seen), socket.MSG_WAITALL) if seen else b""


def read_interrupted(sock, size):
    """A signal comes while the call waits: it fails with EINTR and is made again."""
    main = threading.main_thread().ident
    if threading.get_ident() == main and not select.select([sock], [], [], 0)[0]:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.siginterrupt(signal.SIGUSR1, True)
        timer = threading.Timer(0.02, signal.pthread_kill, (main, signal.SIGUSR1))
        timer.start()
        try:
            return sock.recv(size)
        finally:
            timer.cancel()
            timer.join()
    return sock.recv(size)


# Writers: (socket, head, body) -> None; all bytes must go.


def write_plain(sock, head, body):
    sock.sendall(head + body)


def write_apart(sock, head, body):
    """Head and body in two calls, as many servers do."""
    sock.sendall(head)
    if body:
        sock.sendall(body)


def write_partial(sock, head, body):
    data = head + body
    for start in range(0, len(data), 1000):
        sock.sendall(data[start : start + 1000])


def write_byte(sock, head, body):
    """The head one byte per call."""
    for byte in head:
        sock.sendall(bytes([byte]))
    if body:
        sock.sendall(body)


def write_nonblocking(sock, head, body):
    """Writes until EAGAIN; the kernel takes what fits."""
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    left = memoryview(head + body)
    while left:
        try:
            left = left[sock.send(left) :]
        except BlockingIOError:
            select.select([], [sock], [], 10)


def _in_parts(call, head, body):
    left = memoryview(head + body)
    while left:
        middle = len(left) // 3
        left = left[call([left[:5], left[5:5], left[5 : 5 + middle], left[5 + middle :]]) :]


def write_sendmsg(sock, head, body):
    _in_parts(lambda parts: sock.sendmsg(parts), head, body)


def write_writev(sock, head, body):
    _in_parts(lambda parts: os.writev(sock.fileno(), parts), head, body)


def write_pwritev2(sock, head, body):
    _in_parts(lambda parts: os.pwritev(sock.fileno(), parts, -1), head, body)


def write_empty(sock, head, body):
    """Calls with nothing to write between those that have."""
    sock.send(b"")
    sock.sendall(head)
    os.write(sock.fileno(), b"")
    os.writev(sock.fileno(), [b"", b""])
    sock.sendmsg([b""])
    sock.sendall(body)


def write_more(sock, head, body):
    """The head waits in the kernel for the body."""
    sock.sendall(head, socket.MSG_MORE if body else 0)
    if body:
        sock.sendall(body)


def write_vectors(sock, head, body):
    """The head in a vector per byte, some of them empty."""
    parts = [piece for byte in head for piece in (bytes([byte]), b"")]
    for start in range(0, len(parts), 400):
        sock.sendmsg(parts[start : start + 400])
    if body:
        sock.sendall(body)


def write_dup(sock, head, body):
    left = memoryview(head + body)
    while left:
        left = left[os.write(_dup(sock), left) :]


def write_sendfile(sock, head, body):
    sock.sendall(head)
    with tempfile.TemporaryFile() as file:
        file.write(body)
        file.flush()
        offset = 0
        while offset < len(body):
            offset += os.sendfile(sock.fileno(), file.fileno(), offset, len(body) - offset)


def write_splice(sock, head, body):
    sock.sendall(head)
    reader, writer = os.pipe()
    try:
        for start in range(0, len(body), 16384):
            piece = body[start : start + 16384]
            os.write(writer, piece)
            left = len(piece)
            while left:
                left -= os.splice(reader, sock.fileno(), left)
    finally:
        os.close(reader)
        os.close(writer)


READERS = {name[5:]: value for name, value in globals().items() if name.startswith("read_")}
WRITERS = {name[6:]: value for name, value in globals().items() if name.startswith("write_")}


class Wire:
    """One connection: buffered reading in a chosen way, writing in a chosen way."""

    def __init__(self, sock, read="plain", write="plain"):
        self.sock = sock
        self.reader = READERS[read]
        self.writer = WRITERS[write]
        self.buffer = b""

    def more(self):
        data = self.reader(self.sock, 65536)
        self.buffer += data
        return bool(data)

    def until(self, mark):
        """Everything up to and including `mark`; empty at the end of the stream."""
        while mark not in self.buffer:
            if not self.more():
                return b""
        end = self.buffer.index(mark) + len(mark)
        taken, self.buffer = self.buffer[:end], self.buffer[end:]
        return taken

    def exactly(self, count):
        while len(self.buffer) < count:
            if not self.more():
                raise EOFError("the stream ended early")
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def to_end(self):
        while self.more():
            pass
        taken, self.buffer = self.buffer, b""
        return taken

    def chunks(self):
        body = b""
        while size := int(self.until(b"\r\n").split(b";")[0], 16):
            body += self.exactly(size)
            self.exactly(2)
        while self.until(b"\r\n") != b"\r\n":
            pass
        return body

    def head(self):
        """First line as words, headers by lower-case name; None at the end of the stream."""
        text = self.until(b"\r\n\r\n").decode("latin-1")
        if not text:
            return None
        first, *lines = text.rstrip("\r\n").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return first.split(" "), headers

    def write(self, head, body=b""):
        self.writer(self.sock, head.encode("latin-1"), body)

    def reset(self):
        """Ends the connection with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.close()

    def close(self):
        forget(self.sock)
        self.sock.close()


def options(arguments):
    return dict(argument.split("=", 1) for argument in arguments)
