"""WSGI application, served by gunicorn."""

import http
import time
from urllib.parse import parse_qs


def application(environ, start_response):
    environ["wsgi.input"].read()
    query = parse_qs(environ["QUERY_STRING"])
    status, size, delay = (int(query[key][0]) for key in ("status", "bytes", "delay_ms"))
    if delay:
        time.sleep(delay / 1000)
    line = f"{status} {http.HTTPStatus(status).phrase}"
    if status in (204, 304):
        start_response(line, [])
        return []
    start_response(line, [("Content-Length", str(size))])
    return [] if environ["REQUEST_METHOD"] == "HEAD" or not size else [b"x" * size]
