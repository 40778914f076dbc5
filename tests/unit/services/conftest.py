"""What tests of queues and quotas share."""

import pytest
from hand_clock import Clock


@pytest.fixture
def clock():
    """A clock that is set by hand."""
    return Clock()
