"""What needs a GPU: skipped, at no cost, where there is none."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
