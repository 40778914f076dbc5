"""channelz, for a gRPC that is newer than its messages.

grpcio-channelz refuses protobuf 6 from 1.82 on (pyproject.toml says who needs that), and 1.81 doesn't know
all that gRPC 1.85 tells of sockets and channels: it answered INTERNAL. What it doesn't know is left out.
"""

from functools import partial
from types import SimpleNamespace

from google.protobuf import json_format
from grpc import aio
from grpc_channelz.v1 import _servicer, channelz

_servicer.json_format = SimpleNamespace(
    Parse=partial(json_format.Parse, ignore_unknown_fields=True), ParseError=json_format.ParseError
)


def add_channelz(server: aio.Server) -> None:
    """Lets it tell of all servers and channels of this process."""
    channelz.add_channelz_servicer(server)
