"""HTTPS by asyncio. Arguments: aiohttp or httpx, URL, path, groups, requests in each, mark. As ask.js."""
import asyncio
import sys

library, base, path, groups, each = sys.argv[1:6]


async def by_aiohttp(number):
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session:
        for i in range(int(each)):
            async with session.get(f"{base}{path}-{number}-{i}") as response:
                assert (response.status, await response.read()) == (200, b"ok")


async def by_httpx(number):
    import httpx

    async with httpx.AsyncClient(verify=False, trust_env=False, timeout=60) as session:
        for i in range(int(each)):
            response = await session.get(f"{base}{path}-{number}-{i}")
            assert (response.status_code, response.content) == (200, b"ok")


async def main():
    group = by_aiohttp if library == "aiohttp" else by_httpx
    await asyncio.gather(*[group(number) for number in range(int(groups))])
    print(int(groups) * int(each), flush=True)


__import__(library)
print("ready", flush=True)
sys.stdin.readline()
asyncio.run(main())
