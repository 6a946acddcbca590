"""http.server with a thread for each connection."""
import os

import calls
from server import Server

server = Server(int(os.environ["PORT"]), calls.serve)
calls.work_in_background()
server.serve_forever()
