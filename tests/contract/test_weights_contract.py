"""WeightsService over a real server: good pushes, wrong ones, and pushes in the middle of a response."""

import asyncio

import grpc
import pytest
from policy_server import NewWeights, policy_server, precondition, prompt, refused, tokens, violations

from lm.generation import DecodeBatch, Response, Sampling, Stop
from lm.loading import save_model
from lm.placement import choose_placement
from plaudit.v1 import policy_pb2, types_pb2, weights_pb2
from services.policy.push import Push

GOOD = prompt(7, 8, 9, seed=4)
LONG = [prompt(5, seed=seed) for seed in range(8)]


@pytest.fixture
async def caller(tiny_policy):
    async with policy_server(tiny_policy) as caller:
        yield caller


@pytest.fixture
def new(tiny_policy):
    return NewWeights(tiny_policy)


async def test_after_a_push_answers_equal_a_fresh_servers(caller, new, tmp_path):
    before = await caller.generate(GOOD, deterministic=True, max_new_tokens=20)
    model = await caller.push(new)
    assert (model.run_id, model.step, model.weights_sha256) == ("run", 1, new.sha256)
    after = await caller.generate(GOOD, deterministic=True, max_new_tokens=20)
    assert after.model == model
    save_model(new.loaded.model, new.loaded.tokenizer, tmp_path)
    async with policy_server(tmp_path) as fresh:
        expected = await fresh.generate(GOOD, deterministic=True, max_new_tokens=20)
    assert expected.model.weights_sha256 == new.sha256
    (pushed,), (loaded,) = after.sequences, expected.sequences
    assert pushed.token_ids == loaded.token_ids
    assert pushed.logprobs == loaded.logprobs
    assert tokens(before) != tokens(after)


async def test_a_bfloat16_push(tiny_policy):
    async with policy_server(tiny_policy, "bfloat16") as caller:
        new = NewWeights(tiny_policy, placement=choose_placement("cpu", "bfloat16", 1))
        assert new.manifest().tensors[0].dtype == types_pb2.DATA_TYPE_BF16
        assert (await caller.push(new)).weights_sha256 == new.sha256


async def test_some_tensors(caller, tiny_policy):
    some = NewWeights(tiny_policy, names={"model.norm.weight", "model.layers.1.mlp.up_proj.weight"})
    opened = await caller.begin(some.manifest())
    assert opened.total_bytes == len(some.data) == 4 * (32 + 64 * 32)
    assert (await caller.send(opened.push_id, some.data, size=1000)).received_bytes == len(some.data)
    assert (await caller.commit(opened.push_id)).weights_sha256 == some.sha256
    assert (await caller.describe()).model.step == 1


async def test_a_broken_stream_goes_on(caller, new):
    push_id = (await caller.begin(new.manifest())).push_id
    await caller.send(push_id, new.data[:5000])
    error = await refused(caller.send(push_id, new.data))
    assert precondition(error) == ("OFFSET", push_id)
    assert "holds 5000 bytes" in error.details()
    assert (await caller.send(push_id, new.data, start=5000)).received_bytes == len(new.data)
    assert (await caller.commit(push_id)).step == 1


# --- wrong pushes: a clear error, and the old weights serve on ---


@pytest.fixture
async def unharmed(caller, new):
    """Checks at the end that the old weights serve, and that a good push still works."""
    before = await caller.generate(GOOD)
    yield caller
    after = await caller.generate(GOOD)
    assert tokens(after) == tokens(before)
    assert after.model == before.model
    assert (await caller.push(new)).step == 1


def changed(new, index, **fields):
    manifest = new.manifest()
    for name, value in fields.items():
        if name == "shape":
            manifest.tensors[index].shape[:] = value
        else:
            setattr(manifest.tensors[index], name, value)
    return manifest


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"name": "model.other"},
            "'model.other' isn't one of the model's; leave it out, or serve the model that is trained",
        ),
        (
            {"shape": [300, 31]},
            "{name!r} is float32[300, 31]; the model's is float32[300, 32]; serve the model that is trained",
        ),
        (
            {"dtype": types_pb2.DATA_TYPE_BF16},
            "{name!r} is bfloat16[300, 32]; the model's is float32[300, 32]; convert it",
        ),
    ],
)
async def test_a_manifest_that_does_not_fit(unharmed, new, fields, words):
    error = await refused(unharmed.begin(changed(new, 0, **fields)))
    (path,) = (f"manifest.tensors[0].{field}" for field in fields)
    assert precondition(error) == ("MANIFEST", path)
    assert error.details() == f"{path}: " + words.format(name=new.manifest().tensors[0].name)


async def test_another_base_step(unharmed, new):
    error = await refused(unharmed.begin(new.manifest(base_step=4, new_step=5)))
    assert precondition(error) == ("STEP", "manifest.base_step")
    words = "step 0 is loaded; the push builds on step 4; build on the loaded one"
    assert error.details() == f"manifest.base_step: {words}"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"run_id": ""}, "manifest.run_id"),
        ({"weights_sha256": "abc"}, "manifest.weights_sha256"),
        ({"encoding": weights_pb2.PUSH_ENCODING_UNSPECIFIED}, "manifest.encoding"),
    ],
)
async def test_a_manifest_that_makes_no_sense(unharmed, new, fields, field):
    assert list(violations(await refused(unharmed.begin(new.manifest(**fields))))) == [field]


async def test_truncated(unharmed, new):
    push_id = (await unharmed.begin(new.manifest())).push_id
    await unharmed.send(push_id, new.data[:-4])
    for _ in range(2):  # the same again
        error = await refused(unharmed.commit(push_id))
        assert precondition(error)[0] == "INCOMPLETE"
        held = f"only {len(new.data) - 4} of {len(new.data)} bytes"
        assert error.details() == f"data: {held} have arrived; push again"


async def test_too_long(unharmed, new):
    push_id = (await unharmed.begin(new.manifest())).push_id
    found = violations(await refused(unharmed.send(push_id, new.data + b"more")))
    assert f"have {len(new.data)} bytes in all" in found["data"]
    await unharmed.abort(push_id)


async def test_damaged(unharmed, new):
    push_id = (await unharmed.begin(new.manifest())).push_id
    await unharmed.send(push_id, b"\x01" + new.data[1:])
    error = await refused(unharmed.commit(push_id))
    assert error.code() is grpc.StatusCode.DATA_LOSS
    assert new.sha256 in error.details()


async def test_reordered(unharmed, new):
    manifest = new.manifest()
    manifest.tensors.sort(key=lambda tensor: tensor.name)
    assert [tensor.name for tensor in manifest.tensors] != [tensor.name for tensor in new.manifest().tensors]
    push_id = (await unharmed.begin(manifest)).push_id
    await unharmed.send(push_id, new.data)
    assert (await refused(unharmed.commit(push_id))).code() is grpc.StatusCode.DATA_LOSS


async def test_chunks_out_of_order(unharmed, new):
    push_id = (await unharmed.begin(new.manifest())).push_id
    error = await refused(unharmed.send(push_id, new.data, start=4096))
    assert precondition(error)[0] == "OFFSET"
    await unharmed.abort(push_id)


async def test_an_empty_stream(unharmed):
    assert list(violations(await refused(unharmed.send("any", b"")))) == ["push_id"]


async def test_an_unknown_push(unharmed):
    for call in (unharmed.commit("who"), unharmed.abort("who"), unharmed.send("who", b"x")):
        error = await refused(call)
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "'who'" in error.details()


async def test_a_second_push(unharmed, new):
    opened = await unharmed.begin(new.manifest())
    await unharmed.send(opened.push_id, new.data[:100])
    error = await refused(unharmed.begin(new.manifest(run_id="other")))
    assert precondition(error) == ("DRIVER", "run")
    assert "run 'run' drives this policy, with step 1" in error.details()
    again = await unharmed.begin(new.manifest())
    assert (again.push_id, again.received_bytes) == (opened.push_id, 100)
    assert (await unharmed.abort(opened.push_id)).step == 0


async def test_how_far_a_push_is(unharmed, new):
    push_id = (await unharmed.begin(new.manifest())).push_id
    await unharmed.send(push_id, new.data[:100])
    for asked in ({"push_id": push_id}, {"run_id": "run", "new_step": 1}):
        push = await unharmed.weights.GetPush(weights_pb2.GetPushRequest(**asked), timeout=30)
        assert (push.push_id, push.state) == (push_id, weights_pb2.PUSH_STATE_OPEN)
        assert (push.received_bytes, push.total_bytes) == (100, len(new.data))
        assert 100 < push.expires_in_seconds <= 120
    await unharmed.abort(push_id)
    push = await unharmed.weights.GetPush(weights_pb2.GetPushRequest(push_id=push_id), timeout=30)
    assert (push.state, push.expires_in_seconds) == (weights_pb2.PUSH_STATE_GIVEN_UP, 0)


async def test_a_take_over_is_told_to_who_drove(unharmed, new):
    push_id = (await unharmed.begin(new.manifest(run_id="old"))).push_id
    request = weights_pb2.BeginPushRequest(manifest=new.manifest(run_id="other"), take_over=True)
    other = await unharmed.weights.BeginPush(request, timeout=30)
    for call in (unharmed.send(push_id, new.data), unharmed.commit(push_id)):
        error = await refused(call)
        assert precondition(error) == ("DRIVER", "other")
        assert "run 'other' drives this policy now and pushes step 1" in error.details()
    await unharmed.abort(other.push_id)


@pytest.mark.parametrize("shape", [[1 << 63], [10 * 2**40], [1 << 63, 1 << 63], [0], [1] * 1000])
async def test_sizes_that_cannot_be_are_refused_before_room_is_made(unharmed, new, monkeypatch, shape):
    monkeypatch.setattr(Push, "__post_init__", lambda self: pytest.fail("made room"))
    manifest = changed(new, 0, shape=shape)
    error = await refused(unharmed.begin(manifest))
    assert precondition(error) == ("MANIFEST", "manifest.tensors[0].shape")
    assert f"{shape[0]}" in error.details()
    monkeypatch.undo()


async def test_more_tensors_than_the_model_has(unharmed, new, monkeypatch):
    monkeypatch.setattr(Push, "__post_init__", lambda self: pytest.fail("made room"))
    manifest = new.manifest()
    manifest.tensors.extend(list(manifest.tensors) * 500)
    error = await refused(unharmed.begin(manifest))
    assert precondition(error) == ("MANIFEST", "manifest.tensors")
    monkeypatch.undo()


async def test_an_unknown_mode(unharmed, new):
    push_id = (await unharmed.begin(new.manifest())).push_id
    assert list(violations(await refused(unharmed.commit(push_id, 9)))) == ["mode"]
    await unharmed.abort(push_id)


async def test_steps_only_rise(caller, new):
    await caller.push(new)
    error = await refused(caller.begin(new.manifest(base_step=1, new_step=1)))
    assert precondition(error) == ("STEP", "manifest.new_step")


# --- in the middle of responses ---


async def decoding(caller):
    while caller.metric("plaudit_policy_decode_step_seconds_count") < 3:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_in_place_in_the_middle_of_responses(caller, new):
    push_id = (await caller.begin(new.manifest())).push_id
    await caller.send(push_id, new.data)
    running = caller.generating(*LONG, samples=8, max_new_tokens=127)
    await decoding(caller)
    assert (await caller.commit(push_id, policy_pb2.SWAP_MODE_IN_PLACE)).step == 1
    response = await running
    assert response.model.step == 1
    mixed = [s for s in response.sequences if len(s.version_spans) == 2]
    assert mixed
    for s in mixed:
        old_span, new_span = ((span.step, span.start, span.end) for span in s.version_spans)
        assert old_span == (0, 0, new_span[1])
        assert new_span == (1, old_span[2], len(s.token_ids))
    check_after_swap(new.loaded, mixed[0])


def check_after_swap(loaded, sequence):
    """The tokens from the swap on are those the new weights give on that prefix."""
    start = sequence.version_spans[1].start
    ids, seed = list(sequence.token_ids), sequence.seed
    row = Response((5,), seed, sequence.sample_index, Stop(len(ids)), token_ids=ids[:start])
    batch = DecodeBatch(loaded, Sampling(), [row])
    while batch.responses:
        batch.step()
    assert row.token_ids == ids
    assert row.logprobs == pytest.approx(list(sequence.logprobs)[start:], abs=1e-5)


async def test_drain_in_the_middle_of_responses(caller, new):
    push_id = (await caller.begin(new.manifest())).push_id
    await caller.send(push_id, new.data)
    running = caller.generating(*LONG, samples=8, max_new_tokens=127, exactly=0)
    await decoding(caller)
    assert (await caller.commit(push_id, policy_pb2.SWAP_MODE_DRAIN)).step == 1
    response = await running
    assert response.model.step == 0
    assert {span.step for s in response.sequences for span in s.version_spans} == {0}


async def test_exactly_one_step_or_nothing(caller, new):
    push_id = (await caller.begin(new.manifest())).push_id
    await caller.send(push_id, new.data)
    running = caller.generating(*LONG, samples=8, max_new_tokens=127, exactly=0)
    await decoding(caller)
    await caller.commit(push_id)
    error = await refused(running)
    assert precondition(error) == ("STEP", "step_exactly")
    assert "step 1 is loaded, not exactly step 0" in error.details()


async def test_metrics_of_pushes(caller, new):
    await caller.push(new)
    push_id = (await caller.begin(new.manifest(base_step=1, new_step=2))).push_id
    await caller.abort(push_id)
    assert caller.metric("plaudit_policy_pushes_total", outcome="committed") == 1
    assert caller.metric("plaudit_policy_pushes_total", outcome="aborted") == 1
    assert caller.metric("plaudit_policy_push_bytes_total") == len(new.data)
    assert caller.metric("plaudit_policy_push_seconds_count") == 1
    assert caller.metric("plaudit_model_step") == 1


async def test_the_tied_head_by_either_name(caller, tiny_policy):
    tied = NewWeights(tiny_policy, names={"model.embed_tokens.weight"})
    manifest = tied.manifest()
    manifest.tensors[0].name = "lm_head.weight"
    push_id = (await caller.begin(manifest)).push_id
    await caller.send(push_id, tied.data)
    assert (await caller.commit(push_id)).weights_sha256 == tied.sha256
