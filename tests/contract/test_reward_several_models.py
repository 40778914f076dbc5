"""Several models in one server: by name, as ensembles, with several attributes; each with its own queue."""

import asyncio
import statistics
import threading
from dataclasses import replace

import grpc
import pytest
import torch
from grpc import aio
from hypothesis import given, strategies as st
from reward_server import GOOD, chat, ids, pair, serving, violations
from tiny_models import tiny_llama, tiny_tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification

from lm.heads import reward_model_from
from lm.loading import save_model
from plaudit.v1 import reward_pb2
from services.batching import WAITING_CALLS, CallLimits
from services.reward.engine import RewardEngine
from services.reward.ensemble import combiner
from services.reward.service import reward_service
from services.rpc.command import ModelOptions

ITEMS = [pair("the film", " is good"), pair("a dull", " story"), pair("what a", " performance")]


@pytest.fixture(scope="module")
def other_reward(tmp_path_factory):
    """Another head on the tiny body; no mean, std 1."""
    folder = tmp_path_factory.mktemp("other-reward")
    tokenizer = tiny_tokenizer()
    generator = torch.Generator().manual_seed(7)
    model = reward_model_from(tiny_llama(tokenizer, seed=3), None, tokenizer.pad_token_id, generator)
    model.config.plaudit_pair_format, model.config.append_eos = "concatenate", True
    save_model(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def attribute_reward(tmp_path_factory):
    """Three named attributes; mean 0.5, std 4."""
    folder = tmp_path_factory.mktemp("attribute-reward")
    tokenizer = tiny_tokenizer()
    config = AutoConfig.for_model(**tiny_llama(tokenizer).config.to_dict())
    config.id2label = {0: "helpfulness", 1: "correctness", 2: "verbosity"}
    config.label2id = {name: index for index, name in config.id2label.items()}
    config.reward_mean, config.reward_std = 0.5, 4.0
    config.plaudit_pair_format, config.append_eos = "concatenate", True
    torch.manual_seed(5)
    save_model(AutoModelForSequenceClassification.from_config(config).eval(), tokenizer, folder)
    return folder


@pytest.fixture
def models_file(tmp_path, tiny_reward, other_reward, attribute_reward, foreign_reward):
    file = tmp_path / "models.toml"
    file.write_text(
        f"""
        [[models]]
        name = "one"
        path = "{tiny_reward}"
        compare_temperature = 3.0

        [[models]]
        name = "two"
        path = "{other_reward}"

        [[models]]
        name = "attributes"
        path = "{attribute_reward}"
        weights = {{ helpfulness = 1.0, verbosity = -0.5 }}

        [[models]]
        name = "foreign"
        path = "{foreign_reward}"

        [[models]]
        name = "mean"
        ensemble = ["one", "two"]

        [[models]]
        name = "min"
        ensemble = ["one", "two", "attributes"]
        combine = "min"

        [[models]]
        name = "careful"
        ensemble = ["one", "two", "attributes"]
        combine = "mean_minus_std"
        deviation_factor = 0.7

        [[models]]
        name = "mixed"
        ensemble = ["one", "foreign"]
        """,
        encoding="utf-8",
    )
    return file


@pytest.fixture
async def client(models_file):
    options = ModelOptions(str(models_file), dtype="float32", threads=1)
    async for made in serving(reward_service(options)):
        yield made


async def rewards(client, model, items=ITEMS, **fields):
    options = reward_pb2.ScoreOptions(model=model, **fields)
    return [result.reward for result in (await client.score(*items, options=options)).results]


async def info(client, name):
    return await client.stub.GetModel(reward_pb2.GetModelRequest(name=name))


# --- by name ---


async def test_models_are_listed_in_order_and_the_first_is_the_default(client):
    listed = (await client.stub.ListModels(reward_pb2.ListModelsRequest())).models
    assert [one.name for one in listed] == [
        "one", "two", "attributes", "foreign", "mean", "min", "careful", "mixed"
    ]  # fmt: skip
    assert len({one.model.weights_sha256 for one in listed}) == len(listed)
    assert (await client.model()).name == "one"
    assert await rewards(client, "") == await rewards(client, "one")
    assert (await client.score(GOOD)).model == listed[0].model


async def test_each_name_answers_with_its_own_model(client, other_reward):
    found = await info(client, "two")
    assert (found.name, found.model.model_id) == ("two", str(other_reward))
    assert (found.compare_temperature, (await info(client, "one")).compare_temperature) == (1.0, 3.0)
    one, two = await rewards(client, "one"), await rewards(client, "two")
    assert [r.raw_reward for r in one] != [r.raw_reward for r in two]
    response = await client.score(GOOD, options=reward_pb2.ScoreOptions(model="two"))
    assert response.model == found.model


@pytest.mark.parametrize(
    "ask",
    [
        lambda stub: stub.Score(
            reward_pb2.ScoreRequest(items=[GOOD], options=reward_pb2.ScoreOptions(model="none"))
        ),
        lambda stub: stub.Rank(
            reward_pb2.RankRequest(text="a", candidates=["b"], options=reward_pb2.ScoreOptions(model="none"))
        ),
        lambda stub: stub.Compare(
            reward_pb2.CompareRequest(
                text="a", first="b", second="c", options=reward_pb2.ScoreOptions(model="none")
            )
        ),
        lambda stub: stub.GetModel(reward_pb2.GetModelRequest(name="none")),
    ],
    ids=["Score", "Rank", "Compare", "GetModel"],
)
async def test_an_unknown_name_is_not_found(client, ask):
    with pytest.raises(aio.AioRpcError, match=r"no model 'none' here; there is .+, ") as caught:
        await ask(client.stub)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_model_compares_at_its_own_temperature(client):
    request = reward_pb2.CompareRequest(text="the film", first=" is good", second=" is dull")
    assert (await client.stub.Compare(request)).temperature == 3.0


async def test_what_each_network_loads_and_holds_is_exported(models_file):
    service = reward_service(ModelOptions(str(models_file), dtype="float32", threads=1))
    async for _ in serving(service):
        sample = service.metrics.registry.get_sample_value
        for name in ("one", "two", "attributes", "foreign"):
            assert sample("plaudit_reward_waiting_items", {"model": name}) == 0
        infos = [
            family for family in service.metrics.registry.collect() if family.name == "plaudit_model_info"
        ]
        assert len(infos[0].samples) == 4


# --- ensembles and attributes ---


async def test_an_ensembles_answers_are_combined_by_hand(client):
    members = {name: await rewards(client, name) for name in ("one", "two", "attributes")}
    for row in range(3):
        one, two, attributes = (members[name][row].reward for name in ("one", "two", "attributes"))
        every = [one, two, attributes]
        deviation = (sum((value - sum(every) / 3) ** 2 for value in every) / 3) ** 0.5
        for name, value in (
            ("mean", (one + two) / 2),
            ("min", min(every)),
            ("careful", sum(every) / 3 - 0.7 * deviation),
        ):
            found = (await rewards(client, name))[row]
            assert found.reward == pytest.approx(value, abs=1e-5)
            assert found.raw_reward == found.reward


async def test_an_attribute_models_answer_is_the_weighted_sum_of_its_outputs(client, attribute_reward):
    model = AutoModelForSequenceClassification.from_pretrained(attribute_reward, dtype=torch.float32).eval()
    tokenizer = tiny_tokenizer()
    for item, found in zip(ITEMS, await rewards(client, "attributes", include_components=True), strict=True):
        text = [item.pair.prompt, item.pair.response]
        token_ids = [id_ for part in text for id_ in tokenizer(part, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            outputs = model(torch.tensor([[*token_ids, tokenizer.eos_token_id]])).logits[0].tolist()
        raw = outputs[0] - 0.5 * outputs[2]
        assert found.raw_reward == pytest.approx(raw, abs=1e-5)
        assert found.reward == pytest.approx((raw - 0.5) / 4, abs=1e-5)
        assert [part.name for part in found.components] == ["helpfulness", "correctness", "verbosity"]
        assert [part.raw_reward for part in found.components] == pytest.approx(outputs, abs=1e-5)


async def test_members_are_in_the_answer_only_on_request(client):
    assert not (await rewards(client, "careful"))[0].components
    found = await rewards(client, "careful", include_components=True)
    for name, place in (("one", 0), ("two", 1), ("attributes", 2)):
        for alone, together in zip(await rewards(client, name), found, strict=True):
            part = together.components[place]
            assert part.name == name
            assert part.reward == pytest.approx(alone.reward, abs=1e-5)
            assert part.raw_reward == pytest.approx(alone.raw_reward, abs=1e-5)


async def test_get_model_tells_how_the_reward_is_made(client):
    careful = await info(client, "careful")
    assert careful.combination == reward_pb2.COMBINATION_MEAN_MINUS_STD
    assert careful.deviation_factor == 0.7
    assert [(part.name, part.weight) for part in careful.components] == [
        ("one", 1.0), ("two", 1.0), ("attributes", 1.0)
    ]  # fmt: skip
    assert careful.components[1].model == (await info(client, "two")).model
    assert (careful.reward_mean, careful.reward_std, careful.context_length) == (0.0, 1.0, 128)
    attributes = await info(client, "attributes")
    assert attributes.combination == reward_pb2.COMBINATION_WEIGHTED_SUM
    assert [(part.name, part.weight) for part in attributes.components] == [
        ("helpfulness", 1.0), ("correctness", 0.0), ("verbosity", -0.5)
    ]  # fmt: skip
    assert not any(part.HasField("model") for part in attributes.components)
    plain = await info(client, "one")
    assert (plain.combination, len(plain.components)) == (reward_pb2.COMBINATION_UNSPECIFIED, 0)


async def test_an_item_that_one_member_refuses_has_that_error(client):
    long = pair("a", "é" * 60)  # 120 tokens fit into the tiny Llama's 128, not into GPT-2's 96
    assert (await rewards(client, "one", [long]))[0].token_count > 96
    options = reward_pb2.ScoreOptions(model="mixed")
    results = (await client.score(GOOD, long, pair("a", ""), options=options)).results
    assert [result.WhichOneof("result") for result in results] == ["reward", "error", "error"]
    assert "reads at most 96" in results[1].error.message
    assert (await info(client, "mixed")).context_length == 96


async def test_an_ensemble_says_what_the_member_that_cut_most_cut(client):
    long = pair("a", "é" * 60)
    (found,) = await rewards(client, "mixed", [long], truncation=reward_pb2.TRUNCATION_RIGHT)
    (foreign,) = await rewards(client, "foreign", [long], truncation=reward_pb2.TRUNCATION_RIGHT)
    assert found.truncated_tokens == foreign.truncated_tokens > 0
    assert found.truncation == reward_pb2.TRUNCATION_RIGHT


async def test_ids_are_for_members_of_one_vocabulary(client):
    digest = (await info(client, "one")).model.tokenizer_sha256
    assert (await info(client, "mean")).model.tokenizer_sha256 == digest
    options = reward_pb2.ScoreOptions(model="mean")
    scored = await client.score(ids(5, 6), tokenizer_sha256=digest, options=options)
    assert scored.results[0].reward.token_count == 2
    assert (await info(client, "mixed")).model.tokenizer_sha256 == ""
    error = await client.refused(
        ids(5, 6), tokenizer_sha256=digest, options=reward_pb2.ScoreOptions(model="mixed")
    )
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "different vocabularies" in error.details()


async def test_a_chat_needs_a_template_in_every_member(client):
    assert (await info(client, "mean")).has_chat_template
    assert not (await info(client, "mixed")).has_chat_template
    options = reward_pb2.ScoreOptions(model="mixed")
    (result,) = (await client.score(chat(("user", "hi")), options=options)).results
    assert "no chat template" in result.error.message


async def test_an_ensemble_ranks_compares_and_streams(client):
    options = reward_pb2.ScoreOptions(model="careful", include_components=True)
    response = await client.stub.Rank(
        reward_pb2.RankRequest(text="the film", candidates=[" is good", " is dull"], options=options)
    )
    assert len(response.ranked[0].reward.components) == 3
    request = reward_pb2.ScoreStreamRequest(
        items=[reward_pb2.StreamItem(item_id="a", item=ITEMS[0])], options=options
    )
    (answer,) = [one async for one in client.stub.ScoreStream(iter([request]))]
    expected = (await rewards(client, "careful"))[0]
    assert answer.results[0].result.reward.reward == pytest.approx(expected.reward, abs=1e-5)
    assert answer.model == (await info(client, "careful")).model


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=6), st.floats(0, 3))
def test_combinations(values, factor):
    assert combiner("mean", factor)(values) == pytest.approx(sum(values) / len(values), abs=1e-9)
    assert combiner("min", factor)(values) == min(values)
    careful = statistics.fmean(values) - factor * statistics.pstdev(values)
    assert combiner("mean_minus_std", factor)(values) == pytest.approx(careful)
    assert combiner("mean_minus_std", 0.0)(values) == pytest.approx(statistics.fmean(values))


async def test_a_model_with_attributes_needs_weights(attribute_reward):
    service = reward_service(ModelOptions(str(attribute_reward), dtype="float32", threads=1))
    with pytest.raises(Exception, match="helpfulness, correctness, verbosity"):
        async for _ in serving(service):
            pass


# --- queues ---


class Held:
    """An engine that waits until it is let go; each model has its own."""

    def __init__(self, engine, name):
        self._engine = engine
        self.facts = replace(engine.facts, model_id=name)
        self.token_budget = engine.token_budget
        self.encode = engine.encode
        self.go = threading.Event()

    def score(self, batch):
        self.go.wait()
        return self._engine.score(batch)


async def test_models_do_not_share_a_queue(tmp_path, tiny_reward):
    file = tmp_path / "models.toml"
    table = "[[models]]\nname = {name}\npath = 'p'\n"
    text = table.format(name="'slow'") + table.format(name="'quick'")
    text += "[[models]]\nname = 'both'\nensemble = ['slow', 'quick']\n"
    file.write_text(text, encoding="utf-8")
    engine = RewardEngine(str(tiny_reward), dtype="float32", threads=1)
    held = {}

    def load(spec):
        return held.setdefault(spec.name, Held(engine, spec.name))

    service = reward_service(ModelOptions(str(file)), CallLimits(max_items=2), load)
    slow = reward_pb2.ScoreOptions(model="slow")
    quick = reward_pb2.ScoreOptions(model="quick")
    both = reward_pb2.ScoreOptions(model="both")
    async for client in serving(service):
        held["quick"].go.set()
        calls = [
            asyncio.create_task(client.score(pair("a", f"b{n}"), pair("c", f"d{n}"), options=slow))
            for n in range(WAITING_CALLS)
        ]
        try:
            async with asyncio.timeout(20):
                while (await info(client, "slow")).queue.items < 2 * WAITING_CALLS:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            assert (await client.score(GOOD, GOOD, options=quick)).results[0].reward.token_count
            for options in (slow, both):
                error = await client.refused(GOOD, options=options)
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (await info(client, "quick")).queue.items == 0
            assert (await info(client, "both")).queue.items == 2 * WAITING_CALLS
        finally:
            held["slow"].go.set()
        await asyncio.gather(*calls)
        assert (await client.score(GOOD, options=both)).results[0].WhichOneof("result") == "reward"


async def test_violations_of_an_ensemble_name_the_item(client):
    error = await client.refused(
        GOOD, pair("a", ""), all_or_nothing=True, options=reward_pb2.ScoreOptions(model="careful")
    )
    assert violations(error)[0][0] == "items[1].pair.response"
