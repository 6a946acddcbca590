"""Demo: the shop's customers, a few requests a second to NEXT, until the parent is gone."""
import itertools
import os
import time
import urllib.error
import urllib.request

VISITS = [
    ("GET", "/products/7"),
    ("POST", "/checkout?card=visa"),
    ("GET", "/products/42"),
    ("GET", "/products/999"),
    ("POST", "/checkout?card=visa"),
    ("GET", "/report/today"),
    ("GET", "/products/7"),
    ("POST", "/checkout?card=declined"),
]

for method, path in itertools.cycle(VISITS):
    data = b'{"product":7}' if method == "POST" else None
    request = urllib.request.Request(os.environ["NEXT"] + path, data=data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            response.read()
    except urllib.error.HTTPError as error:
        error.read()
    except OSError:
        pass
    time.sleep(0.4)
