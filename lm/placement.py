"""Where a model runs and in which data type, chosen by what the machine can do."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from lm.errors import InputError

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Placement:
    """A device, a data type and a thread count, with the reason in words."""

    device: torch.device
    dtype: torch.dtype
    threads: int
    reason: str

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if self.device.type == "cpu" else ""
        return f"{DTYPE_NAMES[self.dtype]} on {self.device}{threads} ({self.reason})"


def parse_dtype(name: str) -> torch.dtype:
    """The torch type of a name such as "bfloat16". Raises InputError."""
    if name not in DTYPES:
        raise InputError("dtype", f"unknown type {name!r}; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def choose_placement(device: str = "auto", dtype: str = "auto", threads: int = 0) -> Placement:
    """Turns "auto" into what this machine does best.

    A GPU when there is one; bfloat16 on a GPU that has it and on processors with bf16 dot products
    (2-3 times faster there, slow elsewhere), float32 otherwise. `threads` 0 takes the cgroup's quota.
    Raises InputError for a device or type that can't be had.
    """
    chosen = _device(device)
    fast = _bf16_reason(chosen)
    if dtype != "auto":
        kind, reason = parse_dtype(dtype), "as asked"
    elif fast:
        kind, reason = torch.bfloat16, fast
    else:
        kind, reason = torch.float32, "no fast bfloat16 here"
    if threads < 0:
        raise InputError("threads", f"{threads} is negative; use 0 for the machine's quota")
    return Placement(chosen, kind, threads or available_cpus(), reason)


def apply_threads(placement: Placement) -> None:
    """Sets torch's thread count for this process."""
    torch.set_num_threads(placement.threads)


def available_cpus() -> int:
    """Processors this process may use: the affinity mask, cut by the cgroup v2 or v1 quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(affinity, int(quota))) if quota else affinity


def autocast(placement: Placement) -> AbstractContextManager[object]:
    """Mixed precision for training: float32 master weights, products in the placement's half type."""
    if placement.dtype in (torch.bfloat16, torch.float16):
        return torch.autocast(placement.device.type, dtype=placement.dtype)
    return nullcontext()


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError("device", f"{name!r} can't be used: {reason}; use auto, cpu or cuda") from None
    return device


def _bf16_reason(device: torch.device) -> str:
    if device.type == "cuda":
        return "GPU with bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else ""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    return next((f"processor has {flag}" for flag in ("amx_bf16", "avx512_bf16") if flag in flags), "")


def _cgroup_quota() -> float:
    """Processors' worth of CPU time the container may use; 0 where no quota is set."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return 0.0 if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    folder = Path("/sys/fs/cgroup/cpu")
    try:
        quota_us = int((folder / "cpu.cfs_quota_us").read_text(encoding="utf-8"))
        return max(quota_us, 0) / int((folder / "cpu.cfs_period_us").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0.0
