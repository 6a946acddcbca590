"""uvicorn with httpx: calls in a row and gathered."""
import asyncio
import os
import urllib.parse

import httpx

NEXT = os.environ["NEXT"]
FRESH = os.environ.get("FRESH") == "1"
client = None
# The loop itself does not keep tasks.
tasks = []


async def call(path):
    headers = {"connection": "close"} if FRESH else {}
    await client.get(f"http://{NEXT}{path}", headers=headers)


async def background():
    n = 0
    while True:
        await call(f"/b/background-{os.getpid()}-{n}/0")
        n += 1
        await asyncio.sleep(0.01)


async def application(scope, receive, send):
    global client
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                client = httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=None))
                tasks.append(asyncio.create_task(background()))
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    query = dict(urllib.parse.parse_qsl(scope["query_string"].decode()))
    name = scope["path"].split("/")[2]
    row, fan = int(query.get("row", 0)), int(query.get("fan", 0))
    for n in range(row):
        await call(f"/b/{name}/{n}")
    await asyncio.gather(*(call(f"/b/{name}/{row + n}") for n in range(fan)))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
