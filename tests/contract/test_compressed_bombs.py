"""A compressed message counts by what it becomes: more than a server reads isn't even unpacked."""

import subprocess
import sys

import grpc
import pytest
from guarded_servers import served, trainer_service

from services.rpc.options import MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES

GET_RUN = "/plaudit.v1.TrainerService/GetRun"
ANY_SIZE = [("grpc.max_send_message_length", -1)]

SERVER = """
import asyncio, resource
import grpc
from services.rpc.server import CHANNEL_OPTIONS

class Peak(grpc.GenericRpcHandler):
    def service(self, details):
        async def tell(request, context):
            return b"%d" % (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
        return grpc.unary_unary_rpc_method_handler(tell)

async def serve():
    server = grpc.aio.server(options=CHANNEL_OPTIONS)
    server.add_generic_rpc_handlers((Peak(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()

asyncio.run(serve())
"""
"""Tells the most memory that it has had, in MiB; with the options of all our servers."""


def squeezed(address):
    """A channel whose messages of zeros are a thousandth on the way."""
    return grpc.insecure_channel(address, ANY_SIZE, compression=grpc.Compression.Gzip)


def refused(channel, size):
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(GET_RUN)(bytes(size), timeout=30)
    return caught.value


def test_a_compressed_request_is_refused_by_the_size_that_it_has():
    with served(trainer_service) as running, squeezed(running.address) as channel:
        error = refused(channel, MAX_REQUEST_BYTES + 1)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "request: holds 16777217 bytes, a call at most 16777216; split it" in error.details()
        error = refused(channel, MAX_MESSAGE_BYTES + 1)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in error.details()
        channel.unary_unary(GET_RUN)(b"", timeout=30)


def test_no_more_memory_is_taken_than_a_message_may_have():
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        with squeezed(f"127.0.0.1:{process.stdout.readline().strip()}") as channel:
            before = int(channel.unary_unary("/any")(b"", timeout=30))
            assert refused(channel, 3 * MAX_MESSAGE_BYTES).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            after = int(channel.unary_unary("/any")(b"", timeout=30))
    finally:
        process.kill()
        process.communicate()
    assert after - before <= 1.5 * MAX_MESSAGE_BYTES / (1 << 20)
