"""Where the tests of golden numbers run: on the processor, and again on a GPU where there is one."""

import pytest
import torch

DEVICES = (
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")),
)
TOLERANCE = {"cpu": 1e-6, "cuda": 1e-4}
"""Relative, of float64 models to what a processor computed.

Also in those the angles of rotary embeddings are float32, whose cosines a GPU rounds otherwise.
"""
