"""Flask and requests, instrumented from outside by `opentelemetry-instrument`. Arguments: the next service's URL, and the
URL of one that is asked in a way that nobody instruments. Prints its port; ends with its stdin."""

import http.client
import os
import sys
import threading
import urllib.parse

import flask
import requests
import werkzeug.serving

NEXT, ASIDE = sys.argv[1], urllib.parse.urlsplit(sys.argv[2])
app = flask.Flask("app")


@app.get("/<path:path>")
def answer(path):
    if path.startswith("aside/"):
        connection = http.client.HTTPConnection(ASIDE.hostname, ASIDE.port, timeout=60)
        connection.request("GET", "/leaf/" + path)
        connection.getresponse().read()
        connection.close()
        return "ok"
    return "ok", requests.get(f"{NEXT}/{path}", timeout=60).status_code


server = werkzeug.serving.make_server("127.0.0.1", 0, app, threaded=True)
print(server.server_port, flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
os._exit(0)
