"""HTTPS by aiohttp. Arguments: address, certificate, key, mark. Prints its port."""
import socket
import ssl
import sys

from aiohttp import web


async def answer(request):
    await request.read()
    return web.Response(body=b"ok")


app = web.Application()
app.router.add_route("*", "/{path:.*}", answer)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
listener = socket.create_server((sys.argv[1], 0), backlog=128)
print(listener.getsockname()[1], flush=True)
web.run_app(app, sock=listener, ssl_context=context, print=None)
