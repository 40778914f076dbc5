"""A PPO run as tools of others see it: one trace a step, over all four processes; samples in a tracker."""

import contextlib
import json
from collections import Counter

import pytest
from opentelemetry.trace import SpanKind
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tracers import spans_in_memory

from services.policy.service import policy_service
from services.reference.service import reference_service
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions
from trainer.__main__ import main

KINDS = {"policy": policy_service, "reference": reference_service, "reward": reward_service}
PHASES = {"generate", "score", "reference", "learn", "push"}
CALLS = {  # what each phase asks, at least
    "generate": {"/plaudit.v1.PolicyService/Generate"},
    "score": {"/plaudit.v1.RewardService/Score"},
    "reference": {"/plaudit.v1.ReferenceService/ComputeLogprobs"},
    "push": {
        "/plaudit.v1.WeightsService/BeginPush",
        "/plaudit.v1.WeightsService/PushChunks",
        "/plaudit.v1.WeightsService/CommitPush",
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_policy, tiny_reward):
    """Spans and folder of two steps on two policy servers, one reward and one reference server."""
    folder = tmp_path_factory.mktemp("traced")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": text}) for text in ("the film", "a dull", "what a")))
    models = {"policy": tiny_policy, "second": tiny_policy, "reference": tiny_policy, "reward": tiny_reward}

    def serve(name):
        make = KINDS[name if name in KINDS else "policy"]
        return serve_in_background(lambda: make(ModelOptions(str(models[name]), "cpu", "float32", 1)))

    with spans_in_memory() as exporter, contextlib.ExitStack() as servers:
        at = {name: servers.enter_context(serve(name)).address for name in models}
        config = folder / "ppo.toml"
        config.write_text(f"""
            [run]
            name = "traced"
            directory = "{folder}/runs"
            threads = 1
            trackers = ["tensorboard"]
            [model]
            path = "{tiny_policy}"
            dtype = "float32"
            [critic]
            path = "{tiny_reward}"
            dtype = "float32"
            [services]
            policy = ["{at["policy"]}", "{at["second"]}"]
            reference = "{at["reference"]}"
            reward = "{at["reward"]}"
            [data]
            prompts = "{prompts}"
            [sampling]
            response_length = 4
            request_size = 2
            [ppo]
            total_episodes = 8
            batch_size = 4
            num_mini_batches = 1
            missing_eos = "none"
            [evaluation]
            prompts = "{prompts}"
            every = 2
            """)
        assert main(["ppo", str(config)]) == 0
    return exporter.get_finished_spans(), folder / "runs" / "traced"


@pytest.fixture
def spans(run):
    return run[0]


def children(spans, parent):
    return [span for span in spans if span.parent and span.parent.span_id == parent.context.span_id]


def steps(spans):
    return [span for span in spans if span.name == "ppo step"]


def test_each_step_is_the_root_of_a_trace_of_its_own(spans):
    roots = steps(spans)
    assert [(root.parent, root.attributes["plaudit.step"]) for root in roots] == [(None, 1), (None, 2)]
    assert len({root.context.trace_id for root in roots}) == 2


def test_its_phases_are_its_children(spans):
    first, second = steps(spans)
    assert Counter(span.name for span in children(spans, first)) == Counter(PHASES)
    assert Counter(span.name for span in children(spans, second)) == Counter([*PHASES, "evaluate"])


@pytest.mark.parametrize("phase", CALLS)
def test_a_phases_calls_are_its_children_and_the_services_work_is_theirs(spans, phase):
    for root in steps(spans):
        (span,) = (child for child in children(spans, root) if child.name == phase)
        calls = children(spans, span)
        assert {call.name for call in calls} >= CALLS[phase]
        for call in calls:
            (served,) = children(spans, call)
            assert (call.kind, served.kind) == (SpanKind.CLIENT, SpanKind.SERVER)
            assert served.name == call.name
            assert served.context.trace_id == root.context.trace_id
            assert call.start_time <= served.start_time and served.end_time - call.end_time < 1e9


def test_chunks_of_a_rollout_go_to_both_replicas_in_threads_of_one_trace(spans):
    (root, _) = steps(spans)
    (generate,) = (child for child in children(spans, root) if child.name == "generate")
    asked = [call for call in children(spans, generate) if call.name.endswith("/Generate")]
    servers = {served.attributes["rpc.service"] for call in asked for served in children(spans, call)}
    assert len(asked) == 2 and servers == {"plaudit.v1.PolicyService"}


def test_every_call_of_a_step_is_in_its_trace(spans):
    """Nothing of a step is a trace of its own: what is left are the calls before the first one."""
    roots = Counter(span.name for span in spans if span.parent is None)
    assert roots.keys() - {"ppo step", "ppo start"} <= {
        f"/plaudit.v1.{name}" for name in ("PolicyService/GetPolicy", "RewardService/GetModel",
                                           "ReferenceService/GetReference")
    }  # fmt: skip
    assert not [span for span in spans if "Health" in span.name]


def test_the_evaluation_of_a_step_asks_like_a_rollout(spans):
    (_, root) = steps(spans)
    (evaluate,) = (child for child in children(spans, root) if child.name == "evaluate")
    assert {span.name for span in children(spans, evaluate)} == {"generate", "score", "reference"}


def test_samples_of_every_evaluation_are_in_the_tracker(run):
    folder = run[1]
    events = EventAccumulator(str(folder / "tensorboard")).Reload().Tensors("samples/text_summary")
    shown = {event.step: event.tensor_proto.string_val[0].decode() for event in events}
    assert shown.keys() == {0, 2}
    for step, text in shown.items():
        evaluation = json.loads((folder / f"evaluations/{step:08d}.json").read_text())
        assert len(evaluation["samples"]) == 3
        for sample in evaluation["samples"]:  # a tiny model's response may be any bytes
            assert sample["prompt"] in text and f"reward: {sample['scores']['reward']}" in text
