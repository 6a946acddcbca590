"""HTTPS by requests in threads. Arguments: port, tag, requests, threads. Waits for a line on stdin."""
import sys
import threading

import requests

port, tag, count, threads = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
KINDS = ["small", "missing", "big"]
done = []


def run(first):
    session = requests.Session()
    session.trust_env = False
    session.verify = False
    for i in range(first, count, threads):
        url = f"https://localhost:{port}/{tag}/{KINDS[i % 3]}/{i}"
        method, body = ("POST", b"y" * 3000) if i % 4 == 0 else ("GET", None)
        response = session.request(method, url, data=body)
        assert response.status_code == (404 if i % 3 == 1 else 200), response
        done.append(i)


requests.packages.urllib3.disable_warnings()
print("ready", flush=True)
sys.stdin.readline()
workers = [threading.Thread(target=run, args=(n,)) for n in range(threads)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
print(len(done), flush=True)
sys.exit(0 if len(done) == count else 1)
