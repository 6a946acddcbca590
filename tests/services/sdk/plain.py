"""A service without an SDK, on the standard library: asks the next one the same, with the trace context that it
was asked with (as services do that only pass it on). Arguments: the next one's URL, or nothing.
Prints its port; ends with its stdin."""

import http.client
import http.server
import os
import sys
import threading
import urllib.parse

NEXT = urllib.parse.urlsplit(sys.argv[1]) if len(sys.argv) > 1 else None


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if NEXT and not self.path.startswith("/leaf"):
            headers = {name: self.headers[name] for name in ("traceparent", "tracestate") if name in self.headers}
            connection = http.client.HTTPConnection(NEXT.hostname, NEXT.port, timeout=60)
            connection.request("GET", self.path, headers=headers)
            response = connection.getresponse()
            response.read()
            connection.close()
            status = response.status
        else:
            status = 200
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
os._exit(0)
