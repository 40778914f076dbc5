from pathlib import Path

import pytest
import torch

from lm import placement
from lm.errors import InputError
from lm.placement import Placement, autocast, choose_placement, parse_dtype


def with_cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu {flags}\n")
    real = Path
    monkeypatch.setattr(
        placement, "Path", lambda p: tmp_path / "cpuinfo" if p == "/proc/cpuinfo" else real(p)
    )


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_bfloat16_where_the_processor_multiplies_it(monkeypatch, tmp_path, flag):
    with_cpuinfo(monkeypatch, tmp_path, f"avx2 {flag}")
    chosen = choose_placement("cpu")
    assert chosen.dtype is torch.bfloat16
    assert flag in str(chosen)


def test_float32_where_it_does_not(monkeypatch, tmp_path):
    with_cpuinfo(monkeypatch, tmp_path, "avx2 avx512f")
    chosen = choose_placement("cpu", threads=3)
    assert (chosen.dtype, chosen.threads) == (torch.float32, 3)
    assert str(chosen) == "float32 on cpu, 3 threads (no fast bfloat16 here)"


def test_what_is_asked_for_is_taken():
    assert choose_placement("cpu", "float64").reason == "as asked"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("cpu", "int8"), "dtype"),
        (("warp",), "device"),
        (("cpu", "auto", -1), "threads"),
    ],
)
def test_bad_values_name_the_field(arguments, field):
    with pytest.raises(InputError) as error:
        choose_placement(*arguments)
    assert error.value.field == field


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_said_so():
    with pytest.raises(InputError, match="can't be used"):
        choose_placement("cuda")


def test_the_cgroup_quota_bounds_the_threads(monkeypatch):
    monkeypatch.setattr(placement, "_cgroup_quota", lambda: 1.0)
    assert placement.available_cpus() == 1
    monkeypatch.setattr(placement, "_cgroup_quota", lambda: 0.5)
    assert placement.available_cpus() == 1


@pytest.mark.parametrize(("content", "cpus"), [("150000 100000", 1.5), ("max 100000", 0.0)])
def test_cgroup_v2(monkeypatch, tmp_path, content, cpus):
    (tmp_path / "cpu.max").write_text(content)
    monkeypatch.setattr(placement, "Path", lambda _: tmp_path / "cpu.max")
    assert placement._cgroup_quota() == cpus


def test_cgroup_v1(monkeypatch, tmp_path):
    (tmp_path / "cpu.cfs_quota_us").write_text("200000")
    (tmp_path / "cpu.cfs_period_us").write_text("100000")
    monkeypatch.setattr(placement, "Path", lambda p: tmp_path / "none" if p.endswith("cpu.max") else tmp_path)
    assert placement._cgroup_quota() == 2.0


def test_training_is_mixed_precision_in_half_types_only():
    def product(dtype: torch.dtype) -> torch.dtype:
        with autocast(Placement(torch.device("cpu"), dtype, 1, "")):
            return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    assert product(torch.bfloat16) is torch.bfloat16
    assert product(torch.float32) is torch.float32


def test_dtype_names_go_both_ways():
    assert all(placement.DTYPE_NAMES[parse_dtype(name)] == name for name in placement.DTYPES)
