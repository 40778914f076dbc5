"""The servers that the fuzz tests of a file share."""

import pytest
from fuzzed_services import all_services


@pytest.fixture(scope="module")
def services(tiny_policy, tiny_reward):
    with all_services(tiny_policy, tiny_reward) as running:
        yield running
