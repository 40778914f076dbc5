"""A reward service in the background, and what it says of some texts, for the tests of the adapters."""

from contextlib import contextmanager

from plaudit import RewardClient
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions
from services.rpc.server import ServerOptions


@contextmanager
def serving(folder, **options):
    """The service's address; `options` as ServerOptions."""
    model = ModelOptions(str(folder), "cpu", "float32", 1)
    with serve_in_background(lambda: reward_service(model), ServerOptions(**options)) as server:
        yield server.address


def rewards(address, items):
    """What the adapters must come to: the service's own answers, asked for directly."""
    with RewardClient(address) as client:
        return client.score(items).rewards.tolist()
