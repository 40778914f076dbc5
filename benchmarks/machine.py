"""What a figure was measured on, for the line above the table."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

PACKAGES = (
    "torch", "transformers", "tokenizers", "grpcio", "protobuf", "sentence-transformers", "fastapi",
    "uvicorn", "httpx",
)  # fmt: skip
"""Those whose version may move a figure."""


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def memory_gib() -> float:
    """Of the whole machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def versions() -> str:
    """Python and the packages of PACKAGES."""
    found = [f"{name} {version(name)}" for name in PACKAGES]
    return ", ".join([f"Python {platform.python_version()}", *found])


def load_average() -> float:
    """Processes that wanted to run, over the last minute: what else the machine did."""
    return os.getloadavg()[0]


def now() -> str:
    """The date and time in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
