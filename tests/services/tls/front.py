"""HTTPS on a thread per connection, which calls another HTTPS server twice while it serves a request: for
/TAG/KIND/I it asks for /TAG/back/I/0 on a connection of the thread's own that it keeps, and for
/TAG/back/I/1 on the same, for one I in eight on a new one. Arguments: port of the other, certificate, key."""
import http.client
import http.server
import ssl
import sys
import threading

OTHER = int(sys.argv[1])
own = threading.local()
trusting = ssl._create_unverified_context()


def connect():
    return http.client.HTTPSConnection("127.0.0.1", OTHER, context=trusting, timeout=60)


def ask(connection, path):
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    assert response.status == 200, path


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        _, tag, _, i = self.path.split("/")
        if not hasattr(own, "kept"):
            own.kept = connect()
        ask(own.kept, f"/{tag}/back/{i}/0")
        second = own.kept if int(i) % 8 else connect()
        ask(second, f"/{tag}/back/{i}/1")
        if second is not own.kept:
            second.close()
        body = b"x" * (50_000 if "/big/" in self.path else 100)
        self.send_response(404 if "/missing/" in self.path else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer

    def log_message(self, *arguments):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


server = Server(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
server.socket = context.wrap_socket(
    server.socket, server_side=True, do_handshake_on_connect=False
)
print(server.server_address[1], flush=True)
server.serve_forever()
