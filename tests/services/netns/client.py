"""Sends COUNT requests with new trace ids to HOST PORT over one connection: client.py HOST PORT COUNT RUN."""

import http.client
import secrets
import sys

host, port, count, run = sys.argv[1:5]
connection = http.client.HTTPConnection(host, int(port), timeout=30)
for number in range(int(count)):
    traceparent = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-02"
    connection.request("GET", f"/r/{run}-{number}", headers={"traceparent": traceparent})
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"ok"), response.status
