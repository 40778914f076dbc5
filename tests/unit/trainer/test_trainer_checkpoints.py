import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from trainer import checkpoints
from trainer.errors import CheckpointError

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return torch.randn(shape, generator=generator).mul(9).to(dtype)


scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text()
keys = st.text() | st.integers(-5, 5) | st.just("$") | st.booleans()
states = st.recursive(
    scalars | tensors(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Bit for bit, and the same types."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(bits(one), bits(other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return one.hex() == other.hex() if math.isfinite(one) else repr(one) == repr(other)
    return bool(one == other)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@settings(max_examples=60, deadline=None)
@given(state=states)
def test_any_state_comes_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, state: Any):
    folder = tmp_path_factory.mktemp("checkpoints")
    path = checkpoints.save(folder, 1, {"part": state})
    assert same(checkpoints.load(path)["part"], state)


def train(model: torch.nn.Module, adam: torch.optim.Optimizer, generator: torch.Generator) -> float:
    inputs = torch.randn(4, 3, generator=generator)
    loss = model(inputs).square().mean()
    adam.zero_grad()
    loss.backward()
    adam.step()
    return float(loss.detach())


def fresh() -> tuple[torch.nn.Module, torch.optim.Adam, torch.Generator]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    return model, torch.optim.Adam(model.parameters(), lr=0.1), torch.Generator().manual_seed(1)


def test_two_steps_and_two_resumed_are_four(tmp_path: Path):
    model, adam, generator = fresh()
    straight = [train(model, adam, generator) for _ in range(4)]
    model, adam, generator = fresh()
    parts = [train(model, adam, generator) for _ in range(2)]
    state = {"model": model.state_dict(), "adam": adam.state_dict(), "generator": generator.get_state()}
    path = checkpoints.save(tmp_path, 2, state)
    model, adam, generator = fresh()
    loaded = checkpoints.load(path, ["model", "adam", "generator"])
    model.load_state_dict(loaded["model"])
    adam.load_state_dict(loaded["adam"])
    generator.set_state(loaded["generator"])
    parts += [train(model, adam, generator) for _ in range(2)]
    assert parts == straight


def test_tensors_that_share_memory_are_kept_apart(tmp_path: Path):
    whole = torch.arange(6.0)
    path = checkpoints.save(
        tmp_path, 1, {"p": {"a": whole, "b": whole, "c": whole[1:3], "d": whole.view(2, 3).T}}
    )
    loaded = checkpoints.load(path)["p"]
    assert torch.equal(loaded["c"], torch.tensor([1.0, 2.0]))
    assert torch.equal(loaded["d"], whole.view(2, 3).T)
    loaded["a"][0] = 9
    assert loaded["b"][0] == 0


def test_what_is_saved_does_not_follow_later_changes(tmp_path: Path):
    weights = torch.zeros(2)
    path = checkpoints.save(tmp_path, 1, {"p": weights})
    weights += 1
    assert torch.equal(checkpoints.load(path)["p"], torch.zeros(2))


@pytest.mark.parametrize("value", [object(), {1, 2}, b"x", complex(1, 2), Path("x")])
def test_what_cannot_be_kept_is_refused_by_its_path(tmp_path: Path, value: Any):
    with pytest.raises(TypeError, match=r"part\.a\.0: a .* can't be kept"):
        checkpoints.save(tmp_path, 1, {"part": {"a": [value]}})


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "a.b"])
def test_part_names_are_file_names(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="can't name a part"):
        checkpoints.save(tmp_path, 1, {name: 1})


def test_the_manifest_names_everything(tmp_path: Path):
    digests = {"config": "c", "data.train": "d", "tokenizer": "t"}
    changes = [{"step": 3, "key": "ppo.kl_coef", "saved": 0.02, "now": 0.5}]
    parts = {"weights": {"w": torch.ones(1)}, "sampler": {"epoch": 1}}
    path = checkpoints.save(tmp_path, 7, parts, digests, changes=changes)
    manifest = json.loads((path / "manifest.json").read_text())
    assert path.name == "step-00000007"
    assert checkpoints.step_of(path) == manifest["step"] == 7
    assert manifest["parts"] == {
        "weights": ["weights.json", "weights.safetensors"],
        "sampler": ["sampler.json"],
    }
    assert (manifest["digests"], manifest["changes"]) == (digests, changes)
    assert set(manifest["files"]) == {"weights.json", "weights.safetensors", "sampler.json"}
    assert all(len(digest) == 64 for digest in manifest["files"].values())
    assert {file.name for file in path.iterdir()} == {*manifest["files"], "manifest.json"}


def test_the_last_ones_are_kept(tmp_path: Path):
    for step in (1, 2, 3, 10):
        checkpoints.save(tmp_path, step, {"p": step}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]
    latest = checkpoints.latest_whole(tmp_path)
    assert latest is not None
    assert checkpoints.load(latest)["p"] == 10


def test_steps_of_an_abandoned_course_go(tmp_path: Path):
    for step in (2, 4, 6):
        checkpoints.save(tmp_path, step, {"p": step}, keep=3)
    checkpoints.save(tmp_path, 3, {"p": 3}, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_saving_the_same_step_again(tmp_path: Path):
    first = checkpoints.save(tmp_path, 1, {"p": torch.ones(2)})
    before = (first / "manifest.json").stat().st_ino
    again = checkpoints.save(tmp_path, 1, {"p": torch.ones(2)})
    assert again == first
    assert (first / "manifest.json").stat().st_ino == before
    checkpoints.save(tmp_path, 1, {"p": torch.zeros(2)})
    assert torch.equal(checkpoints.load(first)["p"], torch.zeros(2))
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99}'])
def test_a_damaged_manifest_is_told(tmp_path: Path, text: str):
    path = checkpoints.save(tmp_path, 1, {"p": 1})
    (path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        checkpoints.load(path)


def test_a_part_that_is_absent_is_told(tmp_path: Path):
    path = checkpoints.save(tmp_path, 1, {"policy": 1})
    with pytest.raises(CheckpointError, match="lacks the part ema, sampler"):
        checkpoints.load(path, ["policy", "sampler", "ema"])
    assert checkpoints.load_part(path, "policy") == 1
    with pytest.raises(CheckpointError, match="lacks the part ema"):
        checkpoints.load_part(path, "ema")


def test_damaged_checkpoints_are_skipped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, step, {"p": step}, keep=3)
    (tmp_path / "step-00000003" / "p.json").write_text("4")
    (tmp_path / "step-00000002" / "p.json").unlink()
    assert checkpoints.latest_whole(tmp_path) == tmp_path / "step-00000001"
    assert "step-00000003: p.json is damaged" in caplog.text
    assert "step-00000002: p.json is missing" in caplog.text


def test_nothing_is_found_in_nothing(tmp_path: Path):
    assert checkpoints.latest_whole(tmp_path / "nowhere") is None
    (tmp_path / "step-x").mkdir()
    (tmp_path / "other").mkdir()
    assert checkpoints.latest_whole(tmp_path) is None


def test_half_a_checkpoint_is_no_checkpoint(tmp_path: Path):
    whole = checkpoints.save(tmp_path, 1, {"p": 1})
    shutil.copytree(whole, tmp_path / ".tmp-step-00000002")
    assert checkpoints.latest_whole(tmp_path) == whole
    checkpoints.save(tmp_path, 3, {"p": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


def test_the_size_of_a_state_is_that_of_its_tensors():
    tensors = [torch.zeros(3), (torch.zeros(2, dtype=torch.bfloat16), None)]
    assert checkpoints.size({"a": tensors, "b": {"c": torch.zeros(5, dtype=torch.bool), "d": "text"}}) == 21
    assert checkpoints.size(7) == 0
