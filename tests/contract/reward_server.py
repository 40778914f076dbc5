"""A reward server and a client of it, with what tests of the contract ask for again and again."""

import pytest
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status

from plaudit.v1 import reward_pb2, reward_pb2_grpc, types_pb2
from services.rpc.command import ModelOptions
from services.rpc.server import start_server

GOOD = reward_pb2.ScoreItem(pair=types_pb2.TextPair(prompt="the film is", response=" good"))


def options(folder):
    return ModelOptions(str(folder), dtype="float32", threads=1)


def pair(prompt, response):
    return reward_pb2.ScoreItem(pair=types_pb2.TextPair(prompt=prompt, response=response))


def chat(*turns):
    messages = [types_pb2.ChatMessage(role=role, content=content) for role, content in turns]
    return reward_pb2.ScoreItem(chat=types_pb2.Chat(messages=messages))


def ids(*values):
    return reward_pb2.ScoreItem(token_ids=types_pb2.TokenIds(ids=values))


class Client:
    """The stub, with what tests ask for again and again."""

    def __init__(self, channel):
        self.stub = reward_pb2_grpc.RewardServiceStub(channel)

    async def score(self, *items, within=30, **fields):
        return await self.stub.Score(reward_pb2.ScoreRequest(items=items, **fields), timeout=within)

    async def model(self):
        return await self.stub.GetModel(reward_pb2.GetModelRequest())

    async def refused(self, *items, **fields):
        with pytest.raises(aio.AioRpcError) as caught:
            await self.score(*items, **fields)
        return caught.value

    async def still_serves(self):
        assert (await self.score(GOOD)).results[0].WhichOneof("result") == "reward"


async def serving(service):
    async with start_server(service) as server:
        await server.wait_ready()
        async with aio.insecure_channel(server.address) as channel:
            yield Client(channel)


def violations(error):
    found = error_details_pb2.BadRequest()
    assert rpc_status.from_call(error).details[0].Unpack(found)
    return [(field.field, field.description) for field in found.field_violations]
