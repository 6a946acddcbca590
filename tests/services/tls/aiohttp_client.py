"""HTTPS by aiohttp. Arguments: port, tag, requests, connections. Waits for a line on stdin."""
import asyncio
import sys

import aiohttp

port, tag, count, connections = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
KINDS = ["small", "missing", "big"]


async def main():
    done = 0
    connector = aiohttp.TCPConnector(ssl=False, limit=connections)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def run(first):
            nonlocal done
            for i in range(first, count, connections):
                url = f"https://localhost:{port}/{tag}/{KINDS[i % 3]}/{i}"
                method, body = ("POST", b"y" * 3000) if i % 4 == 0 else ("GET", None)
                async with session.request(method, url, data=body) as response:
                    await response.read()
                    assert response.status == (404 if i % 3 == 1 else 200)
                    done += 1

        await asyncio.gather(*[run(n) for n in range(connections)])
    print(done, flush=True)


print("ready", flush=True)
sys.stdin.readline()
asyncio.run(main())
