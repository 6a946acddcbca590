"""HTTPS by aiohttp: asyncio, OpenSSL on buffers in memory. Arguments: certificate, key."""
import socket
import ssl
import sys

from aiohttp import web


async def answer(request):
    await request.read()
    size = 50_000 if "/big/" in request.path else 100
    status = 404 if "/missing/" in request.path else 200
    return web.Response(status=status, body=b"x" * size)


app = web.Application()
app.router.add_route("*", "/{path:.*}", answer)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
listener = socket.create_server(("127.0.0.1", 0), backlog=128)
print(listener.getsockname()[1], flush=True)
web.run_app(app, sock=listener, ssl_context=context, print=None)
