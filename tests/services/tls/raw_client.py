"""HTTP/1.1 on asyncio's TLS streams, which keep the ciphertext in memory; each path tells the client's
own port. Arguments: ports (comma), tag, requests, connections. Waits for a line on stdin; `early` as
fifth argument: opens the connections, with one request each, before it."""
import asyncio
import ssl
import sys

ports, tag = [int(port) for port in sys.argv[1].split(",")], sys.argv[2]
count, connections = int(sys.argv[3]), int(sys.argv[4])
early = len(sys.argv) > 5
context = ssl._create_unverified_context()


async def ask(stream, path):
    reader, writer = stream
    writer.write(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            await reader.readexactly(int(line.split(b":")[1]))


async def run(first, streams):
    for turn, i in enumerate(range(first, count, connections)):
        port = ports[i % len(ports)]
        # Objects and sockets are used again and again.
        if not early and turn % 10 == 0 and port in streams:
            streams.pop(port)[1].close()
        if port not in streams:
            streams[port] = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        own = streams[port][1].get_extra_info("sockname")[1]
        await ask(streams[port], f"/{tag}/small/{i}/{own}/{port}")


async def main():
    streams = [{} for _ in range(connections)]
    if early:
        for of_one in streams:
            for port in ports:
                of_one[port] = await asyncio.open_connection("127.0.0.1", port, ssl=context)
                await ask(of_one[port], "/before")
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await asyncio.gather(*[run(n, streams[n]) for n in range(connections)])
    print(count, flush=True)


asyncio.run(main())
