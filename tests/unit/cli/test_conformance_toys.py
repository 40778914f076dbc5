"""Every check of `plaudit check` can pass, and every one can fail: servers that are wrong in one thing."""

import grpc
import pytest
from toy_reward import ToyEnsemble, ToyReward, serving
from wrong_rewards import WRONG

from plaudit import Unreachable
from plaudit.conformance import CHECKS, agreeing, conformance
from plaudit.v1 import reward_pb2, types_pb2

INTERNAL = grpc.StatusCode.INTERNAL


def verdicts(servicer, model="", **how):
    """{check: finding}"""
    with serving(servicer, **how) as address:
        return {finding.check: finding for finding in conformance(address, model, timeout=20)}


def failed(found):
    return {name for name, finding in found.items() if finding.verdict == "fail"}


def skipped(found):
    return {name for name, finding in found.items() if finding.verdict == "skip"}


def test_a_right_server_passes():
    found = verdicts(ToyReward())
    assert (failed(found), skipped(found)) == (set(), {"components", "deadline"})
    assert [*found] == [check.name for check in CHECKS]


def test_names_and_promises_are_told_apart():
    assert len({check.name for check in CHECKS}) == len({check.expected for check in CHECKS}) == len(CHECKS)


@pytest.mark.parametrize("combination", [1, 2, 3, 4], ids=reward_pb2.Combination.Name)
def test_a_right_ensemble_passes(combination):
    class Right(ToyEnsemble):
        pass

    Right.combination = combination
    found = verdicts(Right())
    assert (failed(found), skipped(found)) == (set(), {"deadline"})


def test_a_right_server_without_a_chat_template_passes():
    class Plain(ToyReward):
        has_chat_template = False

    assert failed(verdicts(Plain())) == set()


def test_a_slow_server_that_stops_at_the_deadline_passes():
    class Slow(ToyReward):
        seconds_an_item = 0.002

    found = verdicts(Slow())
    assert failed(found) == set()
    assert found["deadline"].verdict == "pass"


def test_a_named_model_is_checked():
    class Several(ToyReward):
        names = ("first", "second")

        def Score(self, request, context):
            if request.options.model == "second":
                context.abort(INTERNAL, "the second is broken")
            return super().Score(request, context)

    assert failed(verdicts(Several())) == set()
    assert "rewards" in failed(verdicts(Several(), model="second"))


def test_half_precision_is_borne_where_it_is_stated():
    class Noisy(ToyReward):
        def Score(self, request, context):
            response = super().Score(request, context)
            for index, result in enumerate(response.results):
                if result.HasField("reward"):
                    result.reward.raw_reward += 1e-3 * index
                    result.reward.reward = (result.reward.raw_reward - 0.5) / 2
            return response

    class Half(Noisy):
        dtype = types_pb2.DATA_TYPE_BF16

    assert {"alignment", "company"} <= failed(verdicts(Noisy()))
    assert failed(verdicts(Half())) == set()


def test_nobody_there_is_no_finding(unused_address):
    with pytest.raises(Unreachable):
        next(conformance(unused_address))


def test_a_server_that_has_only_list_models_fails_and_the_run_goes_on():
    class Shell(ToyReward):
        def Score(self, request, context):
            context.abort(INTERNAL, "broken")

        ScoreStream = Rank = Compare = GetModel = Score

    found = verdicts(Shell())
    assert len(found) == len(CHECKS)
    assert failed(found) == set(found) - {"health", "reflection"}
    assert found["rewards"].found == "GetModel: broken"


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found_and_nothing_else(name, monkeypatch):
    monkeypatch.setattr(agreeing, "DROPPED_WITHIN_S", 0.5)
    servicer, checks, how = WRONG[name]
    found = verdicts(servicer(), **how)
    assert failed(found) == checks
    assert all(found[check].found for check in checks)


def test_each_check_has_a_server_that_fails_it():
    assert {check for _, checks, _ in WRONG.values() for check in checks} == {check.name for check in CHECKS}
