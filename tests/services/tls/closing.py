"""HTTPS responses that end with their session: the client and the server of them, in one process.

Arguments: certificate, key, tag, requests of each way. Prints `ready`, waits for a line, asks for /<tag>/<way>/<i>,
and prints for each way the time (ns) at which the last session had ended but its socket had not.

notify: close_notify, then the socket is closed. abrupt: the socket is closed without. half: close_notify, the
socket stays open until the client closes it. memory: the same as notify, with OpenSSL on memory at both ends.
"""
import asyncio
import contextlib
import socket
import ssl
import sys
import threading
import time

BODY = b"x" * 30_000
HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
HOLD = 1.5  # seconds

certificate, key, tag, count = sys.argv[1:5]
serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
serving.load_cert_chain(certificate, key)
asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
asking.check_hostname, asking.verify_mode = False, ssl.CERT_NONE


def answer(plain):
    with serving.wrap_socket(plain, server_side=True) as tls:
        request = b""
        while b"\r\n\r\n" not in request:
            request += tls.recv(4096)
        tls.sendall(HEAD + BODY)
        if b"/abrupt/" in request:
            return
        # Sends close_notify and waits for the client's.
        with contextlib.suppress(OSError):
            tls.unwrap().close()


def serve(listener):
    while True:
        plain, _ = listener.accept()
        threading.Thread(target=answer, args=(plain,), daemon=True).start()


def ask(port, way, number):
    plain = socket.create_connection(("127.0.0.1", port))
    tls = asking.wrap_socket(plain)
    tls.sendall(f"GET /{tag}/{way}/{number} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    response = b""
    while part := tls.recv(65536):
        response += part
    assert response == HEAD + BODY, len(response)
    ended = time.time_ns()
    if way == "half":
        time.sleep(HOLD)
    tls.close()
    return ended


async def memory():
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + BODY)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=serving)
    port = server.sockets[0].getsockname()[1]
    for number in range(int(count)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=asking)
        writer.write(f"GET /{tag}/memory/{number} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert await reader.read() == HEAD + BODY
        writer.close()


listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=serve, args=(listener,), daemon=True).start()
print("ready", flush=True)
sys.stdin.readline()
port = listener.getsockname()[1]
for way in ("notify", "abrupt"):
    for number in range(int(count)):
        ask(port, way, number)
print(ask(port, "half", 0), flush=True)
asyncio.run(memory())
