"""The push state machine on a real engine: good pushes, openings and chunks."""

import dataclasses

import pytest
from policy_bench import Trainer, continued, fresh_model

from services.errors import InvalidInput, PreconditionFailed, UnknownName
from services.policy.interface import Manifest, SwapMode, TensorSpec
from services.policy.push import Push

IN_PLACE = SwapMode.IN_PLACE
NORM = "model.norm.weight"


def outcomes(bench, outcome):
    return bench.metric("plaudit_policy_pushes_total", outcome=outcome)


class TestGoodPushes:
    async def test_equals_a_fresh_server_with_those_weights(self, bench, pushes, trainer):
        (before,) = await bench.generate((7, 8, 9))
        version = await pushes.commit(trainer.send(pushes), IN_PLACE)
        assert (version.run_id, version.step) == ("run", 1)
        assert version.weights_sha256 == trainer.manifest.weights_sha256 == bench.model.weights.sha256
        fresh = fresh_model(bench.model.facts.model_id)
        fresh.weights.apply(fresh.weights.prepare(trainer.tensors, version.weights_sha256))
        (after,) = await bench.generate((7, 8, 9))
        assert list(after.token_ids) == continued(fresh.loaded, (7, 8, 9), [], 8, seed=0)
        assert after.token_ids != before.token_ids
        assert outcomes(bench, "committed") == 1
        assert bench.metric("plaudit_policy_push_bytes_total") == len(trainer.data)
        assert bench.metric("plaudit_policy_push_seconds_count") == 1

    async def test_one_after_the_other(self, bench, pushes):
        for step in range(3):
            trainer = Trainer(bench, base=step, new=step + 1, seed=step, names={NORM})
            version = await pushes.commit(trainer.send(pushes), IN_PLACE)
            assert version.step == step + 1

    async def test_a_stream_that_broke_goes_on_where_it_was(self, bench, pushes, trainer):
        push_id = pushes.begin(trainer.manifest).id
        assert pushes.append(push_id, 0, trainer.data[:700]) == 700
        with pytest.raises(PreconditionFailed, match="holds 700 bytes"):
            pushes.append(push_id, 650, trainer.data[650:])
        assert pushes.append(push_id, 700, trainer.data[700:]) == len(trainer.data)
        assert (await pushes.commit(push_id, IN_PLACE)).step == 1

    async def test_no_tensors(self, bench, pushes):
        manifest = Manifest("run", 0, 1, (), bench.model.weights.sha256)
        push = pushes.begin(manifest)
        assert push.total == 0
        assert (await pushes.commit(push.id, IN_PLACE)).step == 1


class TestBegin:
    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"run_id": ""}, "manifest.run_id"),
            ({"run_id": "r" * 201}, "manifest.run_id"),
            ({"weights_sha256": ""}, "manifest.weights_sha256"),
            ({"weights_sha256": "A" * 64}, "manifest.weights_sha256"),
        ],
    )
    async def test_a_manifest_that_makes_no_sense(self, pushes, trainer, changes, field):
        with pytest.raises(InvalidInput) as caught:
            pushes.begin(trainer.but(**changes))
        assert [violation.field for violation in caught.value.violations] == [field]

    async def test_another_base_step(self, pushes, trainer):
        with pytest.raises(PreconditionFailed, match="step 0 is loaded; the push builds on step 3") as caught:
            pushes.begin(trainer.but(base_step=3, new_step=4))
        assert (caught.value.kind, caught.value.subject) == ("STEP", "manifest.base_step")

    async def test_a_step_that_does_not_rise(self, bench, pushes, trainer):
        await pushes.commit(trainer.send(pushes), IN_PLACE)
        for new in (0, 1):
            with pytest.raises(PreconditionFailed, match="not above it") as caught:
                pushes.begin(trainer.but(base_step=1, new_step=new))
            assert caught.value.subject == "manifest.new_step"

    async def test_tensors_that_do_not_fit(self, pushes, trainer):
        first, *rest = trainer.manifest.tensors
        for wrong, message in [
            (dataclasses.replace(first, name="who"), "'who' isn't one of the model's"),
            (dataclasses.replace(first, dtype="float32"), "is float32"),
            (dataclasses.replace(first, shape=(3, *first.shape[1:])), r"is float64\[3, 32\]"),
            (dataclasses.replace(first, shape=(1 << 62, 1 << 62)), "is float64"),
        ]:
            with pytest.raises(PreconditionFailed, match=message):
                pushes.begin(trainer.but(tensors=(wrong, *rest)))

    async def test_more_than_the_model_is_refused_before_any_room_is_made(self, pushes, trainer, monkeypatch):
        monkeypatch.setattr(Push, "__post_init__", lambda self: pytest.fail("made room"))
        many = tuple(TensorSpec(f"t{index}", "float64", (1 << 40,)) for index in range(500))
        with pytest.raises(PreconditionFailed, match="lists 500 tensors"):
            pushes.begin(trainer.but(tensors=many))


class TestAppend:
    async def test_an_unknown_push(self, pushes, trainer):
        with pytest.raises(UnknownName, match="no push 'who' here; begin one"):
            pushes.append("who", 0, b"")
        pushes.begin(trainer.manifest)
        with pytest.raises(UnknownName):
            pushes.append("who", 0, b"")

    @pytest.mark.parametrize("offset", [0, 50, 101, 1 << 63])
    async def test_another_offset(self, pushes, trainer, offset):
        push_id = pushes.begin(trainer.manifest).id
        pushes.append(push_id, 0, trainer.data[:100])
        with pytest.raises(PreconditionFailed, match=f"holds 100 bytes .* not at {offset}") as caught:
            pushes.append(push_id, offset, b"x")
        assert caught.value.kind == "OFFSET"

    async def test_too_many_bytes(self, pushes, trainer):
        push = pushes.begin(trainer.manifest)
        with pytest.raises(InvalidInput, match=f"ends at byte {push.total + 1}.* have {push.total} bytes"):
            pushes.append(push.id, 0, trainer.data + b"x")
        assert pushes.append(push.id, 0, trainer.data) == push.total
