"""Held-out evaluation in one process: what is best, when it is enough, and how it resumes."""

import json

import pytest

from trainer.data import Context
from trainer.disk import Disk
from trainer.examples import PromptIds
from trainer.ppo.heldout import HeldOut
from trainer.ppo.roles import Roles, Scores
from trainer.ppo.run_sections import EvaluationSection


class Scripted:
    """A judge that gives every response the next number of a list."""

    def __init__(self, *scores):
        self.scores = list(scores)

    def __call__(self, samples):
        score = self.scores.pop(0)
        return [score if isinstance(score, (int, float)) else score[row] for row in range(len(samples))]


@pytest.fixture
def make_heldout(make_world, tmp_path):
    world = make_world()

    def make(judge, roles=None, **settings):
        prompts = [PromptIds(p.index, Context("here", text=p.text), p.token_ids) for p in world.prompts[:4]]
        section = EvaluationSection(
            prompts=tmp_path / "p.jsonl",
            judges={"j": {"plugin": "a:b"}},
            best_by="j",
            **({"every": 2, "samples": 2} | settings),
        )
        return HeldOut(
            prompts,
            roles or world.roles,
            {"j": judge},
            section,
            folder=tmp_path,
            disk=Disk(0.0, tmp_path),
            seed=1,
            tokenizer_sha256="t",
        )

    make.world = world
    return make


def at_step(world, step):
    world.roles.policy.step = step


def test_it_is_due_on_its_steps_at_the_end_and_never_twice(make_heldout):
    heldout = make_heldout(Scripted(1.0, 1.0))
    assert [heldout.due(step, last=step == 5) for step in range(6)] == [True, False, True, False, True, True]
    heldout.evaluate(0)
    assert not heldout.due(0, last=False)


def test_nothing_is_due_without_prompts(make_world, tmp_path):
    world = make_world()
    section = EvaluationSection()
    heldout = HeldOut(
        [], world.roles, {}, section, folder=tmp_path, disk=Disk(0.0, tmp_path), seed=1, tokenizer_sha256="t"
    )
    assert not heldout.due(0, last=True)


def test_the_best_step_and_the_end_follow_the_judges_mean(make_heldout):
    heldout = make_heldout(Scripted(1.0, 3.0, 2.0, 2.5), stop_after=2)
    seen = []
    for step in range(4):
        at_step(make_heldout.world, step)
        heldout.evaluate(step)
        seen.append((heldout.best_step, heldout.enough))
    assert seen == [(0, False), (1, False), (1, False), (1, True)]


def test_win_rates_are_over_the_first_evaluation_and_ties_count_half(make_heldout, tmp_path):
    heldout = make_heldout(Scripted([1, 1, 1, 1], [2, 1, 0, 2]))
    assert heldout.evaluate(0)["eval/win_rate"] == 0.5
    at_step(make_heldout.world, 2)
    measures = heldout.evaluate(2)
    assert measures["eval/win_rate"] == 0.625  # two wins, a tie, a loss
    assert measures["eval/judge"] == 1.25
    written = json.loads((tmp_path / "evaluations/00000002.json").read_text())
    assert written["judges"]["j"]["win_rate"]["mean"] == 0.625
    assert [sample["scores"]["j"] for sample in written["samples"]] == [2.0, 1.0]
    assert [sample["prompt"] for sample in written["samples"]] == ["the film is", "a dull"]


def test_every_evaluation_draws_with_the_same_seeds(make_heldout, tmp_path):
    heldout = make_heldout(Scripted(1.0, 1.0))
    first = heldout.evaluate(0)
    at_step(make_heldout.world, 2)
    assert heldout.evaluate(2) == first  # the weights are the same, whatever the step is called
    files = [json.loads((tmp_path / f"evaluations/0000000{step}.json").read_text()) for step in (0, 2)]
    assert files[0]["samples"] == files[1]["samples"]


def test_kl_on_held_out_prompts_is_zero_before_the_first_step(make_heldout):
    measures = make_heldout(Scripted(1.0)).evaluate(0)
    assert abs(measures["eval/kl"]) < 1e-5
    assert measures["eval/response_length"] <= 6


def test_responses_that_cannot_be_judged_are_left_out_not_made_up(make_heldout, tmp_path):
    class HalfBlind:
        def score(self, rollout):
            return Scores({0: 4.0, 2: 2.0}, {1: "no", 3: "no"})

    world = make_heldout.world
    roles = Roles(world.roles.policy, HalfBlind(), world.roles.reference)
    heldout = make_heldout(Scripted([None] * 4), roles)
    measures = heldout.evaluate(0)
    assert measures["eval/scores"] == 3.0
    assert "eval/judge" not in measures
    assert "eval/win_rate" not in measures
    assert heldout.best_step == -1
    written = json.loads((tmp_path / "evaluations/00000000.json").read_text())
    assert written["judges"]["reward"]["win_rate"]["n"] == 2
    assert written["judges"]["j"] == {"mean": None, "win_rate": None}


def test_a_resumed_evaluation_judges_as_the_first_would_have(make_heldout):
    scores = (1.0, [2, None, 0, 2], 0.5)
    whole, first = (
        make_heldout(Scripted(*scores), stop_after=5),
        make_heldout(Scripted(*scores), stop_after=5),
    )
    for step in range(2):
        at_step(make_heldout.world, step)
        whole.evaluate(step)
        first.evaluate(step)
    state = json.loads(json.dumps(first.state_dict()))
    second = make_heldout(Scripted(scores[2]), stop_after=5)
    second.load_state_dict(state)
    at_step(make_heldout.world, 2)
    assert second.evaluate(2) == whole.evaluate(2)
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"keep_best": True}, "prompts is needed"),
        ({"stop_after": 2}, "prompts is needed"),
        ({"best_by": "nobody"}, "'nobody' is not one of the judges: reward"),
        ({"judges": {"reward": {"plugin": "a:b"}}}, "can't have one named"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        EvaluationSection(**settings)
