"""aiohttp as server and client: calls in a row and gathered."""
import asyncio
import os

import aiohttp
from aiohttp import web

NEXT = os.environ["NEXT"]
FRESH = os.environ.get("FRESH") == "1"


async def call(session, path):
    async with session.get(f"http://{NEXT}{path}") as response:
        await response.read()


async def background(session):
    n = 0
    while True:
        await call(session, f"/b/background-{os.getpid()}-{n}/0")
        n += 1
        await asyncio.sleep(0.01)


async def serve(request):
    session = request.app["session"]
    name = request.match_info["name"]
    row, fan = int(request.query.get("row", 0)), int(request.query.get("fan", 0))
    for n in range(row):
        await call(session, f"/b/{name}/{n}")
    await asyncio.gather(*(call(session, f"/b/{name}/{row + n}") for n in range(fan)))
    return web.Response(text="ok")


async def prepare(app):
    connector = aiohttp.TCPConnector(force_close=FRESH, limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        app["session"] = session
        task = asyncio.create_task(background(session))
        yield
        task.cancel()


app = web.Application()
app.cleanup_ctx.append(prepare)
app.router.add_get("/r/{name}", serve)
web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]), access_log=None, print=None)
