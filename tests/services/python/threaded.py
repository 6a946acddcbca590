"""Threaded http.server. Prints its port; ends with its stdin."""

import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def read_body(self):
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self.rfile.read(size + 2)
            while self.rfile.readline().strip():
                pass
        else:
            self.rfile.read(int(self.headers.get("content-length", 0)))

    def answer(self):
        self.read_body()
        query = parse_qs(urlsplit(self.path).query)
        status, size, delay = (int(query[key][0]) for key in ("status", "bytes", "delay_ms"))
        time.sleep(delay / 1000)
        bodiless = status in (204, 304)
        self.send_response(status)
        if not bodiless:
            self.send_header("content-length", str(size))
        self.end_headers()
        if not bodiless and self.command != "HEAD":
            self.wfile.write(b"x" * size)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = answer

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


server = Server(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
sys.stdin.read()
