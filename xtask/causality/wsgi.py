"""The same under gunicorn."""
import calls


def application(environ, start_response):
    calls.serve(environ["PATH_INFO"] + "?" + environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]

