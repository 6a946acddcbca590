"""HTTPS by uvicorn: asyncio, OpenSSL on buffers in memory. Arguments: certificate, key."""
import socket
import sys

import uvicorn


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    path = scope["path"]
    body = b"x" * (50_000 if "/big/" in path else 100)
    headers = [(b"content-length", str(len(body)).encode())]
    status = 404 if "/missing/" in path else 200
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


listener = socket.create_server(("127.0.0.1", 0), backlog=128)
print(listener.getsockname()[1], flush=True)
config = uvicorn.Config(
    app, ssl_certfile=sys.argv[1], ssl_keyfile=sys.argv[2], log_level="error"
)
uvicorn.Server(config).run(sockets=[listener])
