"""What both Python peers share: names, the texts of requests and of the driver's lines."""

import dataclasses
import sys
import threading
import time

SERVICE = "tracer.peers.v1.Peers"
FIELDS = 12


@dataclasses.dataclass
class Call:
    index: int
    method: str
    traceparent: str
    code: int
    delay_ms: int
    count: int
    size: int
    messages: int
    gap_ms: int
    timeout_ms: int
    cancel_ms: int

    @classmethod
    def of(cls, words):
        return cls(int(words[1]), words[2], words[3], *map(int, words[4:FIELDS]))

    @property
    def path(self):
        return f"/{SERVICE}/{self.method}"

    @property
    def metadata(self):
        return None if self.traceparent == "-" else (("traceparent", self.traceparent),)

    @property
    def timeout(self):
        return self.timeout_ms / 1000 if self.timeout_ms else None

    def request(self):
        text = b"%d %d %d %d" % (self.code, self.delay_ms, self.count, self.size)
        return text + b" " + b"x" * max(0, self.size - len(text) - 1)


class Asked:
    """What the first message of a call asks for."""

    def __init__(self, message):
        code, delay_ms, self.count, size = map(int, message.split(b" ", 4)[:4])
        self.code, self.delay, self.body = code, delay_ms / 1000, b"y" * size


class Clock:
    """Wall clock at the start, monotonic duration."""

    def __init__(self):
        self.wall, self.start = time.time_ns(), time.monotonic_ns()

    def done(self, call, code):
        return f"done {call.index} {code.value[0]} {self.wall} {time.monotonic_ns() - self.start}"


def batches():
    """(calls, concurrency) for each `run` line of stdin."""
    calls = []
    for line in sys.stdin:
        words = line.split()
        if words[:1] == ["call"] and len(words) == FIELDS:
            calls.append(Call.of(words))
        elif words[:1] == ["run"]:
            yield calls, int(words[1])
            calls = []


def report(lines):
    sys.stdout.write("\n".join(lines) + "\nran\n")
    sys.stdout.flush()


def end_with_stdin(end):
    def wait():
        sys.stdin.read()
        end()

    threading.Thread(target=wait, daemon=True).start()
