"""A gRPC server and its client in one process, for a capture of every kind of call and of outcome.

Prints the port, waits for a line on stdin, makes the calls over one connection, prints "done", and
ends with its stdin.
"""

import concurrent.futures
import sys
import threading
import time

import grpc

released = threading.Event()


def one(request, context):
    code = request.decode()
    if code == "wait":
        released.wait(20)
    elif code:
        context.abort(grpc.StatusCode[code], "asked")
    return b"one"


def many(request, context):
    for _ in range(int(request)):
        yield b"m" * 2000
    if int(request) > 50:
        context.abort(grpc.StatusCode.DATA_LOSS, "asked")


def both(requests, context):
    for request in requests:
        yield request


HANDLERS = {
    "One": grpc.unary_unary_rpc_method_handler(one),
    "Many": grpc.unary_stream_rpc_method_handler(many),
    "Both": grpc.stream_stream_rpc_method_handler(both),
}


def code_of(call):
    try:
        call()
        return "OK"
    except grpc.RpcError as error:
        return error.code().name


def calls(port, run):
    path = f"/test.{run}/"
    metadata = (("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        one, many = channel.unary_unary(path + "One"), channel.unary_stream(path + "Many")
        both = channel.stream_stream(path + "Both")
        for code in ["", "NOT_FOUND", "UNAVAILABLE", "INVALID_ARGUMENT", "INTERNAL"]:
            for _ in range(20):
                one(code.encode(), metadata=metadata) if not code else code_of(
                    lambda: one(code.encode(), metadata=metadata)
                )
        for count in [0, 3, 50, 80]:
            code_of(lambda: list(many(str(count).encode())))
        assert len(list(both(iter([b"x" * 10, b"y" * 40000, b"z"])))) == 3
        assert code_of(lambda: channel.unary_unary(path + "None")(b"")) == "UNIMPLEMENTED"
        assert code_of(lambda: one(b"wait", timeout=0.3)) == "DEADLINE_EXCEEDED"
        cancelled = one.future(b"wait")
        time.sleep(0.1)
        cancelled.cancel()
        # Behind the resets, so that they are on the wire when this is answered.
        one(b"")
    released.set()


def main():
    run = sys.argv[1]
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=16))
    handler = grpc.method_handlers_generic_handler(f"test.{run}", HANDLERS)
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    if sys.stdin.readline():
        calls(port, run)
        print("done", flush=True)
    sys.stdin.read()
    server.stop(None)


main()
