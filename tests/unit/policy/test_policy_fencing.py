"""Who may push: one run drives, its steps only rise, and whoever is no longer it learns who is."""

import pytest
from policy_bench import Trainer

from services.errors import Conflict, PreconditionFailed, UnknownName
from services.policy.interface import PushState, SwapMode

IN_PLACE = SwapMode.IN_PLACE
NORM = "model.norm.weight"


async def push(bench, pushes, run_id="a", base=0, new=1, take_over=False):
    """A whole push of one tensor."""
    trainer = Trainer(bench, run_id, base, new, seed=new, names={NORM})
    opened = pushes.begin(trainer.manifest, take_over)
    pushes.append(opened.id, 0, trainer.data)
    return await pushes.commit(opened.id, IN_PLACE)


class TestOtherRuns:
    async def test_are_told_who_drives(self, bench, pushes):
        await push(bench, pushes, "a")
        words = r"run 'a' drives this policy, with step 1; .*take_over"
        with pytest.raises(PreconditionFailed, match=words) as told:
            await push(bench, pushes, "b", base=1, new=2)
        assert (told.value.kind, told.value.subject) == ("DRIVER", "a")
        assert bench.engine.version.run_id == "a"

    async def test_drive_where_they_take_over_whatever_their_step(self, bench, pushes):
        await push(bench, pushes, "a", new=9)
        await push(bench, pushes, "b", base=9, new=0, take_over=True)
        await push(bench, pushes, "b", base=0, new=1)
        assert (bench.engine.version.run_id, bench.engine.version.step) == ("b", 1)
        with pytest.raises(PreconditionFailed, match="run 'b' drives"):
            await push(bench, pushes, "a", base=1, new=10)

    async def test_weights_from_disk_are_nobodys(self, bench, pushes):
        assert (await push(bench, pushes, "b")).run_id == "b"

    async def test_an_open_push_drives(self, pushes, trainer):
        opened = pushes.begin(trainer.manifest)
        with pytest.raises(PreconditionFailed, match=r"run 'run' drives this policy, with step 1"):
            pushes.begin(trainer.but(run_id="other"))
        pushes.append(opened.id, 0, trainer.data)  # and isn't disturbed
        assert (await pushes.commit(opened.id, IN_PLACE)).step == 1

    async def test_a_push_that_was_given_up_drives_no_more(self, pushes, trainer):
        await pushes.abort(pushes.begin(trainer.manifest).id)
        pushes.begin(trainer.but(run_id="other"))

    async def test_a_take_over_voids_what_is_open(self, bench, pushes, trainer):
        old = pushes.begin(trainer.manifest)
        pushes.append(old.id, 0, trainer.data)
        new = pushes.begin(trainer.but(run_id="other", new_step=5), take_over=True)
        with pytest.raises(PreconditionFailed) as told:
            pushes.append(old.id, old.received, b"x")
        assert (told.value.kind, told.value.subject) == ("DRIVER", "other")
        assert "run 'other' drives this policy now and pushes step 5" in str(told.value)
        with pytest.raises(PreconditionFailed, match="run 'other' drives this policy now"):
            await pushes.commit(old.id, IN_PLACE)
        assert await pushes.abort(old.id) == bench.engine.version
        assert (old.state, old._buffer) == (PushState.GIVEN_UP, b"")
        assert bench.metric("plaudit_policy_pushes_total", outcome="superseded") == 1
        pushes.append(new.id, 0, trainer.data)
        assert (await pushes.commit(new.id, IN_PLACE)).run_id == "other"

    async def test_a_bad_take_over_voids_nothing(self, pushes, trainer):
        opened = pushes.begin(trainer.manifest)
        with pytest.raises(PreconditionFailed, match="the push builds on step 4"):
            pushes.begin(trainer.but(run_id="other", base_step=4), take_over=True)
        pushes.append(opened.id, 0, trainer.data)

    async def test_none_gets_in_between_a_commit_and_its_end(self, bench, pushes, trainer):
        opened = pushes.find(trainer.send(pushes))
        opened.state = PushState.COMMITTING
        with pytest.raises(Conflict, match="step 1 of run 'run' is being committed"):
            pushes.begin(trainer.but(run_id="other"), take_over=True)


class TestTheSameRun:
    async def test_begins_the_same_push_again(self, pushes, trainer):
        opened = pushes.begin(trainer.manifest)
        pushes.append(opened.id, 0, trainer.data[:100])
        assert pushes.begin(trainer.but()) is opened
        assert opened.received == 100
        pushes.append(opened.id, 100, trainer.data[100:])
        assert (await pushes.commit(opened.id, IN_PLACE)).step == 1

    @pytest.mark.parametrize("changes", [{"new_step": 2}, {"weights_sha256": "0" * 64}, {"tensors": ()}])
    async def test_voids_its_own_older_push(self, pushes, trainer, changes):
        old = pushes.begin(trainer.manifest)
        new = pushes.begin(trainer.but(**changes))
        assert new is not old
        with pytest.raises(PreconditionFailed, match=r"pushes step \d; this push is void"):
            pushes.append(old.id, 0, trainer.data)

    async def test_an_older_step_is_stale(self, pushes, trainer):
        opened = pushes.begin(trainer.but(new_step=7))
        with pytest.raises(PreconditionFailed, match=r"step 7 of run 'run' is being pushed; step 6 is stale"):
            pushes.begin(trainer.but(new_step=6))
        assert opened.state is PushState.OPEN

    async def test_a_step_that_serves_is_not_pushed_again(self, bench, pushes, trainer):
        await pushes.commit(trainer.send(pushes), IN_PLACE)
        with pytest.raises(PreconditionFailed, match="step 1 is loaded; the push builds on step 0"):
            pushes.begin(trainer.manifest)
        with pytest.raises(PreconditionFailed, match="step 1 of run 'run' is loaded; the new step is 1"):
            pushes.begin(trainer.but(base_step=1))


class TestAsking:
    async def test_by_id_and_by_step(self, pushes, trainer):
        opened = pushes.begin(trainer.manifest)
        assert pushes.find(opened.id) is pushes.newest("run", 1) is opened
        assert 119 < opened.expires_in <= 120

    async def test_the_newest_of_a_step_counts(self, pushes, trainer):
        old = pushes.begin(trainer.manifest)
        await pushes.abort(old.id)
        assert pushes.newest("run", 1) is old
        new = pushes.begin(trainer.manifest)
        assert pushes.newest("run", 1) is new
        await pushes.abort(new.id)
        assert pushes.newest("run", 1) is new

    async def test_one_that_never_was(self, pushes, trainer):
        pushes.begin(trainer.manifest)
        with pytest.raises(UnknownName, match="no push 'run, step 2' here"):
            pushes.newest("run", 2)
        with pytest.raises(UnknownName):
            pushes.find("é")
