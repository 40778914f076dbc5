"""How many examples each fuzz test draws: a few that are always the same, or as many new ones as asked."""

import os

from hypothesis import HealthCheck, settings

FEW = 8
EXAMPLES = int(os.environ.get("PLAUDIT_FUZZ_EXAMPLES", FEW))

fuzzed = settings(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES == FEW,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
"""Put above `given`."""
