"""Every contestant gives the same scores for the same texts, and does what its line in the table says."""

import sys
from importlib.util import find_spec

import grpc
import httpx
import pytest
import torch
from transformers import AutoTokenizer

from benchmarks import latency, served
from benchmarks.inprocess import CrossEncoder, PaddedLoop, Pipeline, SortedLoop, load_peer, reader
from benchmarks.latency import measure_overhead, measure_under_load
from benchmarks.openrlhf_server import RewardModelProxy, build_app
from benchmarks.padding import streamed_padding_share
from benchmarks.run import run_rounds
from benchmarks.served import Streamed, Unary, raw
from benchmarks.workload import make_texts, read_sentences
from plaudit.clients import ItemFailure, RewardClient
from services.reward.engine import RewardEngine
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions

pytestmark = pytest.mark.skipif(
    find_spec("sentence_transformers") is None, reason="comes with the group bench"
)
COUNT = 20


@pytest.fixture(scope="module")
def engine(tiny_reward):
    return RewardEngine(str(tiny_reward), "cpu", "float32", 1)


@pytest.fixture(scope="module")
def peer(tiny_reward):
    return load_peer(str(tiny_reward), "float32")


@pytest.fixture(scope="module")
def texts(engine, peer, sentences_folder):
    return make_texts(read_sentences(sentences_folder), COUNT, 0, reader(engine, peer[1]))


@pytest.fixture(scope="module")
def expected(engine, texts):
    """Each text alone, by transformers' forward."""
    model, scores = engine._loaded.model, []
    for text in texts:
        with torch.inference_mode():
            scores.append(float(model(input_ids=torch.tensor([text.ids])).logits[0, 0]))
    return pytest.approx(scores, abs=1e-5)


@pytest.fixture(scope="module")
def address(tiny_reward):
    options = ModelOptions(str(tiny_reward), dtype="float32", threads=1)
    with serve_in_background(lambda: reward_service(options)) as server:
        yield server.address


class TestTexts:
    def test_every_form_comes_to_the_ids(self, tiny_reward, texts):
        tokenizer = AutoTokenizer.from_pretrained(tiny_reward)
        for text in texts:
            assert tuple(tokenizer(text.plain)["input_ids"]) == text.ids
            assert tuple(tokenizer(text.whole, add_special_tokens=False)["input_ids"]) == text.ids
            assert text.ids[-1] == tokenizer.eos_token_id
            assert text.whole == f"{text.prompt}{text.response}{tokenizer.eos_token}"

    def test_what_the_plain_call_adds_isnt_in_the_plain_text(self, engine, tiny_reward):
        class AddsBos:
            bos_token = "<|start|>"

            def __init__(self):
                self.inner = AutoTokenizer.from_pretrained(tiny_reward)

            def decode(self, ids, **options):
                return self.bos_token + self.inner.decode(ids[1:], **options)

            def __call__(self, text, add_special_tokens=True):
                ids = self.inner(text, add_special_tokens=False)["input_ids"]
                return {"input_ids": self.inner(self.bos_token)["input_ids"] * add_special_tokens + ids}

        class ReadsBos:
            def encode(self, item, field):
                encoded = engine.encode(item, field)
                start = AddsBos().inner("<|start|>")["input_ids"]
                return type(encoded)((*start, *encoded.ids))

        text = reader(ReadsBos(), AddsBos())("the film", " is good")
        assert text.whole == "<|start|>the film is good<|end|>"
        assert text.plain == "the film is good<|end|>"

    @pytest.mark.parametrize("response", ["", " of <|end|> a text", " long" * 200])
    def test_what_the_service_refuses_is_left_out(self, engine, peer, response):
        assert reader(engine, peer[1])("the film", response) is None


class TestScores:
    def test_sorted_loop(self, engine, peer, texts, expected):
        assert SortedLoop(engine, peer[1]).score(texts) == expected

    @pytest.mark.parametrize("batch_size", [1, 7, COUNT + 1])
    def test_padded_loop(self, peer, texts, expected, batch_size):
        assert PaddedLoop(*peer, batch_size).score(texts) == expected

    def test_pipeline(self, peer, texts, expected):
        assert Pipeline(*peer).score(texts) == expected

    def test_cross_encoder(self, tiny_reward, texts, expected):
        assert CrossEncoder(str(tiny_reward), "float32").score(texts) == expected

    def test_stream(self, address, texts, expected):
        assert Streamed(address).score(texts) == expected

    def test_calls(self, address, texts, expected, monkeypatch):
        monkeypatch.setattr(served, "CALL_ITEMS", 3)
        assert Unary(address).score(texts) == expected

    def test_a_text_without_a_score_ends_it(self):
        with pytest.raises(RuntimeError, match="no score: is empty"):
            raw(ItemFailure("INVALID_ARGUMENT", "is empty"))


class TestOpenRlhf:
    @pytest.mark.parametrize("batch_size", [None, 1, 7])
    def test_scores(self, tiny_reward, texts, expected, batch_size):
        proxy = RewardModelProxy(str(tiny_reward), "float32", batch_size)
        assert proxy.get_reward([text.whole for text in texts]) == expected

    async def test_an_answer_has_the_fields_that_its_trainer_reads(self, tiny_reward, texts):
        transport = httpx.ASGITransport(build_app(RewardModelProxy(str(tiny_reward), "float32", 4)))
        async with httpx.AsyncClient(transport=transport, base_url="http://rm") as client:
            payload = {"query": [texts[0].whole], "prompts": [texts[0].prompt], "labels": [""]}
            answer = (await client.post("/get_reward", json=payload)).json()
        assert set(answer) == {"rewards", "scores", "extra_logs"}
        assert answer["scores"] == answer["rewards"] == answer["extra_logs"]["dummy_scores"]
        assert len(answer["rewards"]) == 1

    def test_a_process_that_doesnt_start_says_why(self, tmp_path, monkeypatch):
        python = tmp_path / "python"
        python.write_text("#!/bin/sh\necho no module named $2 >&2\nexit 1\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        with (
            pytest.raises(RuntimeError, match=r"didn't start:\nno module named benchmarks.openrlhf_server"),
            served.openrlhf_server("model", "float32", 1, 7, tmp_path),
        ):
            pass


class Counting:
    """A contestant that says when it was asked."""

    def __init__(self, name, asked, offset=0.0):
        self.name, self.note, self._asked, self._offset = name, f"note of {name}", asked, offset

    def score(self, texts):
        self._asked.append((self.name, len(texts)))
        return [number + self._offset for number in range(len(texts))]


def test_rounds_warm_up_take_turns_and_compare_with_the_first(texts):
    asked, said = [], []
    contestants = [Counting("a", asked), Counting("b", asked, offset=0.5)]
    first, second = run_rounds(contestants, texts, 3, said.append)
    assert [name for name, _ in asked] == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert [count for _, count in asked[2:]] == [COUNT] * 6
    assert (len(first.seconds), first.difference) == (3, 0.0)
    assert (len(second.seconds), second.difference) == (3, 0.5)
    assert second.note == "note of b"
    assert len(said) == 6
    assert said[0].startswith("round 1 of 3: a, ")


def test_overhead_has_each_text_by_both_ways(engine, address, texts):
    with RewardClient(address) as client:
        found = measure_overhead(engine, client, texts[:5])
    assert len(found.bare) == len(found.called) == 5
    assert all(seconds > 0 for seconds in found.bare + found.called)


def test_single_items_are_answered_beside_a_bulk_caller_that_then_stops(address, texts):
    found = measure_under_load(address, texts, texts[:3])
    assert len(found.calls) == 3
    assert len(found.batches) >= latency.FULL_BATCHES and all(batch > 0 for batch in found.batches)
    assert found.ratio > 0
    with RewardClient(address) as client:
        client.score([("the film", " is good")])
        assert client.get_model().queue.items == 0  # what the bulk caller had in flight was withdrawn


def test_a_bulk_caller_that_fails_ends_the_measurement(texts, monkeypatch):
    monkeypatch.setattr(latency, "BULK_TIMEOUT_S", 0.5)
    with pytest.raises(grpc.RpcError, match=r"127\.0\.0\.1:1"):
        measure_under_load("127.0.0.1:1", texts, texts[:1])


def test_padding_is_a_share_of_what_a_stream_has_computed(engine, texts):
    share = streamed_padding_share(engine, texts)
    assert 0 <= share < 0.5
