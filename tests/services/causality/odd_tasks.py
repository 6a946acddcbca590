"""Work of an event loop that is easily taken for a request's: each kind of path does it in its own way.

/r/ID?how=after   a task calls once the answer was written
/r/ID?how=queue   hands the call to a worker task made by the first request
/r/ID?how=pool    calls from threads that all requests share
/r/ID?how=thread  calls from those of the event loop (`to_thread`)
"""
import asyncio
import http.client
import os
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

NEXT = os.environ["NEXT"]
pool = ThreadPoolExecutor(2)
jobs = None
tasks = set()


def blocking(name):
    connection = http.client.HTTPConnection(NEXT, timeout=30)
    connection.request("GET", f"/b/{name}/0")
    connection.getresponse().read()
    connection.close()


async def call(name):
    host, port = NEXT.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET /b/{name}/0 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    await reader.read()
    writer.close()


async def work():
    while True:
        name, done = await jobs.get()
        await call(name)
        done.set_result(None)


def start(coroutine):
    task = asyncio.create_task(coroutine)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def later(name, answered):
    await answered.wait()
    await call(name)


async def serve(reader, writer):
    global jobs
    loop = asyncio.get_running_loop()
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            url = urllib.parse.urlsplit(head.split(b" ")[1].decode())
            name = url.path.split("/")[2]
            how = dict(urllib.parse.parse_qsl(url.query))["how"]
            answered = asyncio.Event()
            if how == "after":
                start(later(name, answered))
            elif how == "queue":
                if jobs is None:
                    jobs = asyncio.Queue()
                    start(work())
                done = loop.create_future()
                jobs.put_nowait((name, done))
                await done
            elif how == "thread":
                await asyncio.to_thread(blocking, name)
            else:
                await loop.run_in_executor(pool, blocking, name)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()
            answered.set()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(os.environ["PORT"]), backlog=128)
    async with server:
        await server.serve_forever()


asyncio.run(main())
