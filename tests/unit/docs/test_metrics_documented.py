"""docs/metrics.md against what is exported: real servers after real calls, and the trainer's registries."""

import asyncio
import urllib.request

import pytest
from doc_pages import DOCS, codes, expand, rows, sections
from prometheus_client.parser import text_string_to_metric_families

from plaudit.clients import (
    AsyncPolicyClient,
    AsyncReferenceClient,
    AsyncRewardClient,
    AsyncWeightsClient,
    PushManifest,
    TensorSpec,
)
from services.policy.service import policy_service
from services.reference.service import reference_service
from services.reward.service import reward_service
from services.rpc.command import ModelOptions
from services.rpc.server import ServerOptions, start_server
from trainer.metrics import TABLES, RunMetrics, prometheus_name

PAGE = sections((DOCS / "metrics.md").read_text(encoding="utf-8"))
GATEWAY = sections((DOCS / "http.md").read_text(encoding="utf-8"))["Operations"]
PROCESS = "process_"
OF_EVERY_STAGE = {"plaudit_build_info"}
OF_STAGES_THAT_PUSH = {"plaudit_model_info", "plaudit_model_step"}
SUFFIXES = {"counter": "_total"}


def documented(*headings):
    """Name → (type, labels) of services' tables."""
    found = {}
    for heading in headings:
        for name, kind, labels, *_ in rows(PAGE[heading]):
            found[codes(name)[0]] = (kind, frozenset(codes(labels)))
    return found


def documented_of_stage(heading):
    """(name in metrics.jsonl, name in Prometheus) → type of a trainer's table."""
    found = {}
    for ours, prometheus, kind, *_ in rows(PAGE[heading]):
        pairs = zip(expand(codes(ours)[0]), expand(codes(prometheus)[0]), strict=True)
        found |= dict.fromkeys(pairs, kind)
    return found


def exported(exposition):
    """Name → (type, labels) of a scrape; the bucket of a histogram is no label of ours."""
    found = {}
    for family in text_string_to_metric_families(exposition):
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[family.name + SUFFIXES.get(family.type, "")] = (family.type, frozenset(labels))
    return found


async def scrape(service, calls):
    """What a server exports after `calls(address)`."""
    async with start_server(service, ServerOptions(metrics_address="127.0.0.1:0")) as server:
        await server.wait_ready()
        await calls(server.address)
        answer = await asyncio.to_thread(urllib.request.urlopen, f"http://{server.metrics_address}/metrics")
        with answer:
            return exported(answer.read().decode())


async def use_policy(address):
    async with AsyncPolicyClient(address) as policy, AsyncWeightsClient(address) as weights:
        await policy.generate(["the film"], max_new_tokens=2, seeds=[1])
        norm = TensorSpec("model.norm.weight", "float32", (32,))
        await weights.abort(await weights.stage(PushManifest("run", 0, 1, [norm], "0" * 64), [bytes(128)]))


async def use_reward(address):
    async with AsyncRewardClient(address) as reward:
        await reward.score([("the film", " is good")])


async def use_reference(address):
    async with AsyncReferenceClient(address) as reference:
        await reference.compute_logprobs([[5, 6, 7]], [1])


SERVICES = {
    "Policy": (policy_service, "tiny_policy", use_policy),
    "Reward": (reward_service, "tiny_reward", use_reward),
    "Reference": (reference_service, "tiny_policy", use_reference),
}


@pytest.mark.parametrize("heading", SERVICES)
async def test_a_service_exports_what_its_tables_say_and_nothing_else(heading, request):
    make, model, use = SERVICES[heading]
    options = ModelOptions(str(request.getfixturevalue(model)), dtype="float32", threads=1)
    found = await scrape(make(options), use)
    said = documented("Every service", heading)
    if not any(name.startswith(PROCESS) for name in found):  # prometheus-client has them on Linux only
        said = {name: value for name, value in said.items() if not name.startswith(PROCESS)}
    assert found == said


STAGES = {"SFT": "sft", "Reward model": "reward_model", "PPO": "ppo"}


def test_every_stage_has_a_table():
    assert set(STAGES.values()) == set(TABLES)


@pytest.mark.parametrize("heading", STAGES)
def test_a_stage_exports_what_its_table_says_and_nothing_else(heading, tmp_path):
    stage = STAGES[heading]
    with RunMetrics(stage, tmp_path) as metrics:
        families = list(metrics.registry.collect())
    found = {
        family.name + SUFFIXES.get(family.type, ""): family.type
        for family in families
        if not family.name.startswith(PROCESS)
    }
    said = documented_of_stage(heading)
    assert found == {prometheus: kind for (_, prometheus), kind in said.items()} | dict.fromkeys(
        OF_EVERY_STAGE, "gauge"
    )


def test_what_the_trainer_exports_under_the_services_names_is_said(tmp_path):
    with RunMetrics("ppo", tmp_path) as metrics:
        before = {family.name for family in metrics.registry.collect()}
        metrics.model.set("m", "w", "t", "float32", run_id="r", step=3)
        assert {family.name for family in metrics.registry.collect()} - before == OF_STAGES_THAT_PUSH
        assert metrics.registry.get_sample_value("plaudit_model_step") == 3
    of_services = {codes(row[0])[0] for row in rows(PAGE["Every service"])}
    shared = OF_EVERY_STAGE | OF_STAGES_THAT_PUSH
    assert shared <= of_services and shared <= set(codes(PAGE["Trainer"]))


@pytest.mark.parametrize("heading", STAGES)
def test_a_stages_two_names_are_of_one_metric(heading):
    stage = STAGES[heading]
    said = documented_of_stage(heading)
    expected = {
        (metric.name, prometheus_name(stage, metric.name) + SUFFIXES.get(metric.kind, "")): metric.kind
        for metric in TABLES[stage]
    }
    assert said == expected


OF_SERVICES = [row for heading in ("Every service", *SERVICES) for row in rows(PAGE[heading])] + rows(GATEWAY)
OF_STAGES = [row for heading in STAGES for row in rows(PAGE[heading])]


def test_each_metric_says_its_unit_and_meaning():
    assert all(row[-2] and row[-1] for row in OF_SERVICES + OF_STAGES)


@pytest.mark.parametrize("unit", ["seconds", "bytes"])
def test_names_end_in_their_base_unit(unit):
    named = [(row[0], row[-2]) for row in OF_SERVICES] + [(row[1], row[-2]) for row in OF_STAGES]
    for cell, said in named:
        for name in expand(codes(cell)[0]):
            assert name.removesuffix("_total").endswith(f"_{unit}") == (unit in said), name
