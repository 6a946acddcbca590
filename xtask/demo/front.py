"""Demo: the shop's front, in Python with threads. Passes requests on to NEXT; no tracing code."""
import http.client
import os
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NEXT = urllib.parse.urlsplit(os.environ["NEXT"]) if os.environ.get("NEXT") else None


class Front(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        status, text = 200, b'{"from":"front"}'
        if NEXT:
            connection = http.client.HTTPConnection(NEXT.hostname, NEXT.port, timeout=10)
            try:
                connection.request(self.command, self.path, body or None)
                response = connection.getresponse()
                status, text = response.status, response.read()
            except OSError:
                status, text = 502, b'{"error":"no answer"}'
            finally:
                connection.close()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = answer

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Front)
print(server.server_address[1], flush=True)
server.serve_forever()
