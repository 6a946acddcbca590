"""HTTPS by uvicorn. Arguments: address, certificate, key, mark. Prints its port."""
import socket
import sys

import uvicorn


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


listener = socket.create_server((sys.argv[1], 0), backlog=128)
print(listener.getsockname()[1], flush=True)
config = uvicorn.Config(app, ssl_certfile=sys.argv[2], ssl_keyfile=sys.argv[3], log_level="error")
uvicorn.Server(config).run(sockets=[listener])
