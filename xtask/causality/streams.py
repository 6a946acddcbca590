"""asyncio's own streams, a task for each connection: calls in a row and gathered, nothing to install."""
import asyncio
import os
import urllib.parse

HOST, NEXT_PORT = os.environ["NEXT"].split(":")


async def call(path):
    reader, writer = await asyncio.open_connection(HOST, int(NEXT_PORT))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
    await reader.read()
    writer.close()


async def background():
    n = 0
    while True:
        await call(f"/b/background-{os.getpid()}-{n}/0")
        n += 1
        await asyncio.sleep(0.01)


async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            url = urllib.parse.urlsplit(head.split(b" ")[1].decode())
            query = dict(urllib.parse.parse_qsl(url.query))
            name = url.path.split("/")[2]
            row, fan = int(query.get("row", 0)), int(query.get("fan", 0))
            for n in range(row):
                await call(f"/b/{name}/{n}")
            await asyncio.gather(*(call(f"/b/{name}/{row + n}") for n in range(fan)))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(os.environ["PORT"]), backlog=128)
    task = asyncio.create_task(background())  # Held: the loop itself does not keep it.
    async with server:
        await server.serve_forever()
    task.cancel()


asyncio.run(main())
