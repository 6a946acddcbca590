"""grpcio with asyncio: see ../README.md."""

import asyncio
import os
import sys

import grpc
from common import SERVICE, Asked, Clock, batches, end_with_stdin, report

CODES = {code.value[0]: code for code in grpc.StatusCode}


async def finish(context, asked):
    if asked.delay:
        await asyncio.sleep(asked.delay)
    if asked.code:
        await context.abort(CODES[asked.code], "asked")


async def unary(request, context):
    asked = Asked(request)
    await finish(context, asked)
    return asked.body


async def client_stream(requests, context):
    asked = None
    async for request in requests:
        asked = asked or Asked(request)
    await finish(context, asked)
    return asked.body


async def server_stream(request, context):
    asked = Asked(request)
    for _ in range(asked.count):
        yield asked.body
    await finish(context, asked)


async def bidi(requests, context):
    asked = None
    async for request in requests:
        asked = asked or Asked(request)
        yield asked.body
    await finish(context, asked)


async def serve():
    server = grpc.aio.server()
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    end_with_stdin(lambda: os._exit(0))
    print(port, flush=True)
    await server.wait_for_termination()


async def requests_of(call):
    for number in range(call.messages):
        if number and call.gap_ms:
            await asyncio.sleep(call.gap_ms / 1000)
        yield call.request()


async def one_answer(channel, call):
    if call.method == "ClientStream":
        multi = channel.stream_unary(call.path)
        answer = multi(requests_of(call), timeout=call.timeout, metadata=call.metadata)
    else:
        multi = channel.unary_unary(call.path)
        answer = multi(call.request(), timeout=call.timeout, metadata=call.metadata)
    if call.cancel_ms:
        await asyncio.sleep(call.cancel_ms / 1000)
        answer.cancel()
    try:
        await answer
    except (grpc.RpcError, asyncio.CancelledError):
        pass
    return await answer.code()


async def many_answers(channel, call):
    if call.method == "Bidi":
        multi = channel.stream_stream(call.path)
        answers = multi(requests_of(call), timeout=call.timeout, metadata=call.metadata)
    else:
        multi = channel.unary_stream(call.path)
        answers = multi(call.request(), timeout=call.timeout, metadata=call.metadata)
    if call.cancel_ms:
        await asyncio.sleep(call.cancel_ms / 1000)
        answers.cancel()
    try:
        async for _ in answers:
            pass
    except (grpc.RpcError, asyncio.CancelledError):
        pass
    return await answers.code()


async def make(channel, call):
    clock = Clock()
    many = call.method in ("ServerStream", "Bidi")
    code = await (many_answers if many else one_answer)(channel, call)
    return clock.done(call, code)


async def run(channel, calls, concurrency):
    left, lines = iter(calls), []

    async def work():
        for call in left:
            lines.append(await make(channel, call))

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return lines


async def client(address):
    lines = batches()
    async with grpc.aio.insecure_channel(address) as channel:
        # Waiting for the next line must not hold up the connection.
        while (batch := await asyncio.to_thread(next, lines, None)) is not None:
            report(await run(channel, *batch))


if __name__ == "__main__":
    asyncio.run(serve() if sys.argv[1] == "server" else client(sys.argv[2]))
