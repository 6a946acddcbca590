"""http.server with a thread for each connection, whose calls at the same time are made by a pool that
all requests share."""
import os
from concurrent.futures import ThreadPoolExecutor

import calls
from server import Server

pool = ThreadPoolExecutor(16)


def at_the_same_time(paths):
    list(pool.map(calls.call, paths))


calls.at_the_same_time = at_the_same_time
server = Server(int(os.environ["PORT"]), calls.serve)
calls.work_in_background()
server.serve_forever()
