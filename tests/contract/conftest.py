"""Either kind of client, for tests that hold for both."""

import contextlib

import pytest
from either_client import Blocking


@pytest.fixture(params=["sync", "async"])
def connect(request):
    """connect(sync class, async class, address, …) → one of the two, as a sync client."""
    with contextlib.ExitStack() as stack:

        def make(blocking, awaited, address, **options):
            client = (
                blocking(address, **options)
                if request.param == "sync"
                else Blocking(awaited(address, **options))
            )
            return stack.enter_context(client)

        yield make
