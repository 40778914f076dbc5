"""LoadFromUri over real servers: the same rules as a push, and nothing from where it may not read."""

import asyncio

import pytest
import torch
from policy_fleet import model_options
from push_steps import Step
from safetensors.torch import load_file, save_file

from lm.loading import save_model
from plaudit import (
    AsyncWeightsClient,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PolicyClient,
    TensorSpec,
    WeightsClient,
)
from services.policy.service import policy_service
from services.rpc.background import serve_in_background


@pytest.fixture(scope="module")
def step(tiny_policy):
    return Step(tiny_policy)


@pytest.fixture(scope="module")
def volume(tmp_path_factory, step):
    """What a trainer left there: a model's folder of safetensors."""
    volume = tmp_path_factory.mktemp("volume")
    save_model(step.new.loaded.model, step.new.loaded.tokenizer, volume / "step-1")
    return volume


@pytest.fixture
def loading(tiny_policy, volume, connect):
    """(policy client, weights client) of a server that may read the volume."""
    with (
        serve_in_background(
            lambda: policy_service(model_options(tiny_policy), weights_roots=[str(volume)])
        ) as server,
        PolicyClient(server.address) as policy,
    ):
        yield policy, connect(WeightsClient, AsyncWeightsClient, server.address)


def test_a_folder(loading, volume, step):
    policy, weights = loading
    model = weights.load_from_uri(f"file://{volume}/step-1", step.manifest())
    assert (model.run_id, model.step, model.weights_sha256) == ("run", 1, step.sha256)
    assert policy.get_policy().model == model
    status = weights.get_push(run_id="run", new_step=1)
    assert (status.state, status.received_bytes) == ("committed", len(step.data))


def test_a_file_with_some_of_the_tensors(loading, volume, tiny_policy):
    policy, weights = loading
    some = Step(tiny_policy, names={"model.norm.weight"})
    model = weights.load_from_uri(f"file://{volume}/step-1/model.safetensors", some.manifest(), mode="drain")
    assert policy.get_policy().model == model
    assert model.weights_sha256 == some.sha256


def test_pushes_and_files_take_turns(loading, volume, step):
    """The rules are the same: steps only rise, a run that doesn't drive must take over."""
    policy, weights = loading
    uri = f"file://{volume}/step-1"
    weights.push(step.manifest(), [step.data])
    with pytest.raises(FailedPrecondition, match="step 1 is loaded; the push builds on step 0"):
        weights.load_from_uri(uri, step.manifest())
    other = step.manifest(run_id="other", base_step=1, new_step=0)
    with pytest.raises(FailedPrecondition, match="run 'run' drives this policy"):
        weights.load_from_uri(uri, other)
    assert weights.load_from_uri(uri, other, take_over=True).run_id == "other"
    open_push = weights.stage(step.manifest(run_id="other"), [step.data])
    with pytest.raises(FailedPrecondition, match="run 'other' drives this policy"):
        weights.load_from_uri(uri, step.manifest())
    assert weights.commit(open_push) == policy.get_policy().model


def test_what_it_may_not_read(loading, volume, step, tmp_path):
    policy, weights = loading
    old = policy.get_policy().model
    torch.save({"model.norm.weight": torch.ones(32)}, volume / "pytorch_model.bin")
    for uri, error, words in [
        (f"file://{tmp_path}", InvalidArgument, "leads to no place below a --weights-root"),
        (f"file://{volume}/../x", InvalidArgument, r"uri: holds '\.\.'"),
        ("s3://bucket/step-1", InvalidArgument, "isn't file:///PATH"),
        (f"file://{volume}/pytorch_model.bin", InvalidArgument, "pickle is never read"),
        (f"file://{volume}/step-2", NotFound, "no file"),
    ]:
        with pytest.raises(error, match=words):
            weights.load_from_uri(uri, step.manifest())
    assert policy.get_policy().model == old


def test_what_does_not_fit(loading, volume, step, tiny_policy):
    """Nothing of it is left open, so the next one works."""
    policy, weights = loading
    old = policy.get_policy().model
    folder = volume / "others"
    folder.mkdir(exist_ok=True)
    tensors = load_file(volume / "step-1" / "model.safetensors")
    damaged = tensors["model.norm.weight"].clone()
    damaged[3] += 1
    for changed, error, words in [
        ({"model.norm.weight": damaged}, DataLoss, f"not {step.sha256} as announced"),
        ({"model.norm.weight": damaged.bfloat16()}, FailedPrecondition, r"and bfloat16\[32\] in model"),
        ({"model.norm.weight": damaged[1:].clone()}, FailedPrecondition, r"and float32\[31\] in model"),
    ]:
        save_file({**tensors, **changed}, folder / "model.safetensors")
        with pytest.raises(error, match=words):
            weights.load_from_uri(f"file://{folder}", step.manifest())
        assert policy.get_policy().model == old
    huge = step.manifest(tensors=[TensorSpec("model.norm.weight", "float32", (1 << 63,))])
    with pytest.raises(FailedPrecondition, match="in the manifest and float32"):
        weights.load_from_uri(f"file://{volume}/step-1", huge)
    assert weights.load_from_uri(f"file://{volume}/step-1", step.manifest()).step == 1


def test_a_server_without_roots_reads_nothing(tiny_policy, volume, step):
    with (
        serve_in_background(lambda: policy_service(model_options(tiny_policy))) as server,
        WeightsClient(server.address) as weights,
        pytest.raises(FailedPrecondition, match="started with --weights-root DIR") as refused,
    ):
        weights.load_from_uri(f"file://{volume}/step-1", step.manifest())
    (precondition,) = refused.value.preconditions
    assert (precondition.kind, precondition.subject) == ("ROOT", "uri")


async def test_a_caller_that_gives_up_while_it_is_read(tiny_policy, volume, step, monkeypatch):
    """What was read so far is let go, and the next one works."""
    monkeypatch.setattr("services.policy.weights_files.CHUNK_BYTES", 64)
    with serve_in_background(
        lambda: policy_service(model_options(tiny_policy), weights_roots=[str(volume)])
    ) as server:
        async with AsyncWeightsClient(server.address) as weights:
            loading = asyncio.create_task(weights.load_from_uri(f"file://{volume}/step-1", step.manifest()))
            while True:
                try:
                    if (await weights.get_push(run_id="run", new_step=1)).received_bytes:
                        break
                except NotFound:
                    pass
            loading.cancel()
            while (await weights.get_push(run_id="run", new_step=1)).state == "open":
                pass
            assert (await weights.get_push(run_id="run", new_step=1)).state == "given_up"
            monkeypatch.undo()
            assert (await weights.load_from_uri(f"file://{volume}/step-1", step.manifest())).step == 1
