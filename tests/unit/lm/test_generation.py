"""The decode loop against forwards without a cache, one sequence at a time."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, MistralConfig

from lm.generation import DecodeBatch, Finish, Response, Sampling, Stop, _close_gaps
from lm.loading import LoadedLM, load_causal_lm
from lm.logprobs import response_logprobs
from lm.placement import choose_placement
from lm.sampling import sample, uniform
from lm.tokenizer import decode

PROMPTS = [(7, 8, 9), (20,), (30, 31, 32, 33, 34, 35, 36), (7, 8, 9), (40, 41)]
SAMPLED, GREEDY = Sampling(), Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def policy(tiny_policy) -> LoadedLM:
    return load_causal_lm(str(tiny_policy), choose_placement("cpu", "float32", 1))


@pytest.fixture(scope="module")
def policy64(tiny_policy) -> LoadedLM:
    return load_causal_lm(str(tiny_policy), choose_placement("cpu", "float64", 1))


def response(prompt_ids, seed=0, sample_index=0, **stop) -> Response:
    return Response(tuple(prompt_ids), seed, sample_index, Stop(**{"max_new_tokens": 12, **stop}))


def run(policy: LoadedLM, responses: list[Response], sampling: Sampling = SAMPLED) -> list[Response]:
    batch = DecodeBatch(policy, sampling, responses)
    while batch.responses:
        batch.step()
    return responses


def run_alone(policy: LoadedLM, asked: Response, sampling: Sampling) -> list[int]:
    """The textbook loop: no cache, no batch."""
    ids = list(asked.prompt_ids)
    for position in range(asked.stop.max_new_tokens):
        u = torch.tensor([uniform(asked.seed, asked.sample_index, position)], dtype=torch.float64)
        with torch.inference_mode():
            logits_BV = policy.model(torch.tensor([ids])).logits[:, -1]
        token = sample(logits_BV, u, sampling.temperature, sampling.top_k, sampling.top_p)[0].item()
        ids.append(token)
        if token in policy.eos_token_ids:
            break
    return ids[len(asked.prompt_ids) :]


def ragged(max_new_tokens=(12, 3, 7, 9, 1)) -> list[Response]:
    """Prompts of several lengths whose responses end at different steps, longest prompt first but one."""
    return [
        response(ids, seed=100 + row, max_new_tokens=most)
        for row, (ids, most) in enumerate(zip(PROMPTS, max_new_tokens, strict=True))
    ]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, Sampling(0.7), Sampling(1.3, 20, 0.9)])
def test_left_padding_and_dropped_rows_change_no_token(policy64, sampling):
    for grown in run(policy64, ragged(), sampling):
        assert grown.token_ids == run_alone(policy64, grown, sampling)


def test_greedy_tokens_in_float32_too(policy):
    for grown in run(policy, ragged(), GREEDY):
        assert grown.token_ids == run_alone(policy, grown, GREEDY)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_generator_and_learner_agree(policy, temperature):
    grown = run(policy, ragged((40, 25, 60, 33, 18)), Sampling(temperature))
    for at, name in ((temperature, "logprobs"), (1.0, "logprobs_temperature_1")):
        with torch.no_grad():
            sequences, starts = [row.ids for row in grown], [len(row.prompt_ids) for row in grown]
            learner_N = response_logprobs(policy.model, sequences, starts, at)
        generator_N = torch.tensor([value for row in grown for value in getattr(row, name)])
        assert len(generator_N) > 100
        torch.testing.assert_close(generator_N, learner_N, rtol=0, atol=1e-5)


def test_truncated_sampling_reports_both_distributions(policy):
    grown = run(policy, ragged(), Sampling(1.0, top_k=5))
    for row in grown:
        pairs = zip(row.logprobs, row.logprobs_temperature_1, strict=True)
        assert all(sampled >= whole for sampled, whole in pairs)


def test_greedy_logprobs_are_0(policy):
    assert run(policy, [response((5, 6))], GREEDY)[0].logprobs == [0.0] * 12


def test_samples_of_a_prompt_share_its_prefill(policy64, monkeypatch):
    seen = []
    forward = DecodeBatch._forward

    def watched(self, cache, ids_BL, *rest):
        seen.append(tuple(ids_BL.shape))
        return forward(self, cache, ids_BL, *rest)

    monkeypatch.setattr(DecodeBatch, "_forward", watched)
    asked = [response(ids, 7, index) for ids in ((7, 8, 9), (20,)) for index in range(3)]
    grown = run(policy64, asked)
    assert seen[0] == (2, 3)
    assert seen[1] == (6, 1)
    assert len({tuple(row.token_ids) for row in grown}) == 6
    assert [row.token_ids for row in grown] == [run_alone(policy64, row, SAMPLED) for row in grown]


def test_the_seed_alone_decides(policy64):
    together = run(
        policy64, [response((7, 8), seed=1), response((50, 51, 52), seed=2), response((7, 8), seed=3)]
    )
    again = run(policy64, [response((7, 8), seed=3)])
    assert together[2].token_ids == again[0].token_ids
    assert together[0].token_ids != again[0].token_ids


def test_padding_is_cut_when_its_row_has_gone(policy64):
    long, short, shorter = response(range(3, 40), max_new_tokens=2), response((5,)), response((6, 7, 8))
    batch = DecodeBatch(policy64, SAMPLED, [long, short, shorter])
    batch.step()
    assert batch._cache.get_seq_length() == 37
    batch.step()  # the long one ends
    assert batch._cache.get_seq_length() == 38 - 34
    assert batch._padding == [0, 2]  # the last row has filled the gap of the first
    batch.drop([short])
    assert batch._cache.get_seq_length() == 4
    assert batch._mask_BL.tolist() == [[1, 1, 1, 1]]
    while batch.responses:
        batch.step()
    assert shorter.token_ids == run_alone(policy64, shorter, SAMPLED)


def test_dropping_leaves_the_others_as_they_would_be(policy64):
    rows = [response((9, 10), seed=seed) for seed in range(4)]
    batch = DecodeBatch(policy64, SAMPLED, rows)
    batch.drop([rows[3]])  # before anything ran
    batch.step()
    batch.drop([rows[1]])
    batch.drop([])
    while batch.responses:
        batch.step()
    assert [len(row.token_ids) for row in rows] == [12, 1, 12, 0]
    for row in (rows[0], rows[2]):
        assert row.token_ids == run_alone(policy64, row, SAMPLED)


def test_a_voided_cache_is_computed_again(policy64):
    whole, voided = response((7, 8, 9), seed=5), response((7, 8, 9), seed=5)
    run(policy64, [whole])
    batch = DecodeBatch(policy64, SAMPLED, [voided, response((1, 2, 3, 4), seed=6, max_new_tokens=5)])
    while batch.responses:
        batch.void_cache()
        batch.step()
    assert voided.token_ids == whole.token_ids
    assert voided.logprobs == pytest.approx(whole.logprobs, abs=1e-12)


SMALL = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
ARCHITECTURES = {
    "learned positions": GPT2Config(vocab_size=300, n_positions=128, n_embd=32, n_layer=2, n_head=4),
    "every head its own": LlamaConfig(**SMALL, num_attention_heads=4),
    "sliding window": MistralConfig(**SMALL, **HEADS, sliding_window=6),
    "windows and caps": Gemma2Config(**SMALL, **HEADS, sliding_window=6, query_pre_attn_scalar=8),
    "eager": LlamaConfig(**SMALL, **HEADS, attn_implementation="eager"),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures(policy, name):
    """Left padding, dropped rows and samples, whatever the cache and the mask are like."""
    torch.manual_seed(0)
    config = ARCHITECTURES[name]
    config.initializer_range = 0.2
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    loaded = LoadedLM(**{**vars(policy), "model": model})
    rows = ragged((12, 3, 9, 12, 1)) + [
        response((7, 8, 9), seed=50, sample_index=index) for index in range(2)
    ]
    for grown in run(loaded, rows):
        assert grown.token_ids == run_alone(loaded, grown, SAMPLED)


class TestEnds:
    def test_length(self, policy):
        (grown,) = run(policy, [response((7, 8), max_new_tokens=1)])
        assert grown.finish is Finish.LENGTH
        assert len(grown.token_ids) == 1

    def test_eos_stays_in_the_response(self, policy):
        tokens = run(policy, [response((7, 8), seed=3)])[0].token_ids
        loaded = LoadedLM(**{**vars(policy), "eos_token_ids": (tokens[4],)})
        (grown,) = run(loaded, [response((7, 8), seed=3)])
        assert grown.finish is Finish.EOS
        assert grown.token_ids == tokens[: tokens.index(tokens[4]) + 1]

    def test_stop_token_stays_in_the_response(self, policy):
        tokens = run(policy, [response((7, 8), seed=3)])[0].token_ids
        (grown,) = run(policy, [response((7, 8), seed=3, token_ids=frozenset({tokens[2], 299}))])
        assert grown.finish is Finish.STOP_TOKEN
        assert grown.token_ids == tokens[: tokens.index(tokens[2]) + 1]

    def test_eos_goes_before_stop_token(self, policy):
        tokens = run(policy, [response((7, 8), seed=3)])[0].token_ids
        loaded = LoadedLM(**{**vars(policy), "eos_token_ids": (tokens[0],)})
        (grown,) = run(loaded, [response((7, 8), seed=3, token_ids=frozenset({tokens[0]}))])
        assert grown.finish is Finish.EOS

    def test_stop_string_that_spans_tokens(self, policy):
        asked = {"prompt_ids": (7, 8), "seed": 3, "max_new_tokens": 30}
        tokens = run(policy, [response(**asked)])[0].token_ids
        text = decode(policy.tokenizer, tokens[:20])
        needle = text[-6:]
        (grown,) = run(policy, [response(**asked, strings=("never there", needle))])
        assert grown.finish is Finish.STOP_STRING
        assert needle in decode(policy.tokenizer, grown.token_ids)
        assert needle not in decode(policy.tokenizer, grown.token_ids[:-1])

    def test_step_returns_those_that_ended(self, policy):
        short, long = response((7,), max_new_tokens=1), response((8,), max_new_tokens=2)
        batch = DecodeBatch(policy, SAMPLED, [short, long])
        assert batch.step() == [short]
        assert batch.responses == (long,)
        assert batch.step() == [long]
        assert batch.responses == ()


@pytest.mark.parametrize(
    ("keep", "order"),
    [
        ([True, True, True], [0, 1, 2]),
        ([True, False, True, True], [0, 3, 2]),
        ([False, False, True, True], [3, 2]),
        ([False, True, False], [1]),
        ([False], []),
    ],
)
def test_gaps_are_closed_from_the_end(keep, order):
    assert _close_gaps(keep) == order
