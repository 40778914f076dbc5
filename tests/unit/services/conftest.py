"""What tests of queues and quotas share, and those of what sets up the log of a process."""

import logging

import pytest
from hand_clock import Clock


@pytest.fixture
def clock():
    """A clock that is set by hand."""
    return Clock()


@pytest.fixture
def root_logger():
    """Is as it was afterwards: a handler that is left writes to this test's stderr, which is gone by then."""
    before = logging.root.handlers[:], logging.root.level
    yield logging.root
    logging.root.handlers[:], logging.root.level = before
