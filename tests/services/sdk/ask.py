"""Asks once and ends. Arguments: the URL, and a traceparent."""

import sys
import urllib.request

request = urllib.request.Request(sys.argv[1], headers={"traceparent": sys.argv[2]})
with urllib.request.urlopen(request, timeout=120) as response:
    sys.exit(0 if response.status == 200 else 1)
