"""grpcio with threads: see ../README.md."""

import concurrent.futures
import os
import queue
import sys
import threading
import time

import grpc
from common import SERVICE, Asked, Clock, batches, end_with_stdin, report

# Of the server; given, if TLS is to be spoken.
CERTIFICATE, KEY = os.environ.get("PEERS_CERTIFICATE"), os.environ.get("PEERS_KEY")
CODES = {code.value[0]: code for code in grpc.StatusCode}


def contents(path):
    with open(path, "rb") as file:
        return file.read()


def wait(context, seconds):
    """Sleeps, but not longer than the call lives."""
    if seconds > 0:
        ended = threading.Event()
        if context.add_callback(ended.set):
            ended.wait(seconds)


def finish(context, asked):
    wait(context, asked.delay)
    if asked.code:
        context.abort(CODES[asked.code], "asked")


def unary(request, context):
    asked = Asked(request)
    finish(context, asked)
    return asked.body


def client_stream(requests, context):
    asked = None
    for request in requests:
        asked = asked or Asked(request)
    finish(context, asked)
    return asked.body


def server_stream(request, context):
    asked = Asked(request)
    for _ in range(asked.count):
        yield asked.body
    finish(context, asked)


def bidi(requests, context):
    asked = None
    for request in requests:
        asked = asked or Asked(request)
        yield asked.body
    finish(context, asked)


def serve():
    pool = concurrent.futures.ThreadPoolExecutor(max_workers=64)
    server = grpc.server(pool)
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    if KEY:
        pairs = [(contents(KEY), contents(CERTIFICATE))]
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pairs))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    end_with_stdin(lambda: os._exit(0))
    print(port, flush=True)
    server.wait_for_termination()


def requests_of(call):
    for number in range(call.messages):
        if number and call.gap_ms:
            time.sleep(call.gap_ms / 1000)
        yield call.request()


def one_answer(channel, call):
    if call.method == "ClientStream":
        multi = channel.stream_unary(call.path)
        future = multi.future(requests_of(call), timeout=call.timeout, metadata=call.metadata)
    else:
        multi = channel.unary_unary(call.path)
        future = multi.future(call.request(), timeout=call.timeout, metadata=call.metadata)
    if call.cancel_ms:
        time.sleep(call.cancel_ms / 1000)
        future.cancel()
    return future.code()


def many_answers(channel, call):
    if call.method == "Bidi":
        multi = channel.stream_stream(call.path)
        answers = multi(requests_of(call), timeout=call.timeout, metadata=call.metadata)
    else:
        multi = channel.unary_stream(call.path)
        answers = multi(call.request(), timeout=call.timeout, metadata=call.metadata)
    if call.cancel_ms:
        time.sleep(call.cancel_ms / 1000)
        answers.cancel()
    try:
        for _ in answers:
            pass
    except grpc.RpcError:
        pass
    return answers.code()


def make(channel, call):
    clock = Clock()
    many = call.method in ("ServerStream", "Bidi")
    code = (many_answers if many else one_answer)(channel, call)
    return clock.done(call, code)


def connect(address):
    if not CERTIFICATE:
        return grpc.insecure_channel(address)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(contents(CERTIFICATE)))


def client(address):
    with connect(address) as channel:
        for calls, concurrency in batches():
            left, lines = queue.SimpleQueue(), []
            for call in calls:
                left.put(call)

            def work():
                try:
                    while True:
                        lines.append(make(channel, left.get_nowait()))
                except queue.Empty:
                    pass

            threads = [threading.Thread(target=work) for _ in range(concurrency)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            report(lines)


if __name__ == "__main__":
    serve() if sys.argv[1] == "server" else client(sys.argv[2])
