"""The beginning of a chain: ask.py NEXT COUNT RUN MARK asks the HTTPS server NEXT for /hop/RUN-NUMBER."""
import http.client
import ssl
import sys
import urllib.parse

base, count, run = sys.argv[1:4]
host = urllib.parse.urlsplit(base).netloc
context = ssl._create_unverified_context()
for number in range(int(count)):
    # Every other one over a connection of its own.
    if number % 2 == 0:
        connection = http.client.HTTPSConnection(host, timeout=60, context=context)
    connection.request("GET", f"/hop/{run}-{number}")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"ok"), response.status
