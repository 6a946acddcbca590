"""What gunicorn serves over TLS."""


def application(environ, start_response):
    environ["wsgi.input"].read()
    path = environ["PATH_INFO"]
    body = b"x" * (50_000 if "/big/" in path else 100)
    status = "404 Not Found" if "/missing/" in path else "200 OK"
    start_response(status, [("Content-Length", str(len(body)))])
    return [body]
