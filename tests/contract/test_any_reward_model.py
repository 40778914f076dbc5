"""docs/reward-models.md, row by row: a tiny random model of each architecture scores as transformers says.

Each is saved to a folder and read as a user's would be. What transformers says is what a model card
shows: the tokenizer's own call, the model's own forward, one text at a time.
"""

from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch
from reward_server import chat, ids, options, pair, serving, violations
from tiny_reward_models import (
    ARCHITECTURES,
    LABELS,
    RELEASED,
    bert_tokenizer,
    bos_tokenizer,
    released_tokenizer,
    save_reward_model,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lm.errors import InputError
from lm.rewards import is_decoder, last_token_scores, one_by_one, padded_scores
from plaudit.v1 import reward_pb2
from services.reward.engine import RewardEngine
from services.reward.items import Chat, Encoded, Ids, Pair
from services.reward.service import reward_service
from services.rpc.command import ModelOptions

DECODERS = (
    "Llama", "Mistral", "Qwen2", "Qwen3", "Qwen3Moe", "Qwen3_5Text", "Gemma", "Gemma2", "Gemma3Text",
    "Gemma3", "GPTNeoX", "GPT2", "Phi3", "Olmo2", "OPT", "Bloom", "Falcon", "GptOss",
)  # fmt: skip
PAIRS = [
    Pair("a", " b"),
    Pair("the film is good", " what a wonderful performance"),
    Pair("a dull and lifeless", " story"),
    Pair("", "not worth seeing, the film is a dull one and so is this"),
    Pair("the film", "ish"),  # as one text other tokens meet at the seam
]
TOLERANCE = {"atol": 1e-5, "rtol": 0}
WITH_SYSTEM = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
WITHOUT_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}\n{% endfor %}"
)


def engine_of(folder):
    return RewardEngine(str(folder), device="cpu", dtype="float32", threads=1)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """An architecture as it comes, by its name and number of labels: the engine and the card, loaded once."""

    @cache
    def load(name, labels=1):
        folder = tmp_path_factory.mktemp(name)
        save_reward_model(name, folder, labels)
        return engine_of(folder), Card(folder)

    return load


def scores(engine, batch):
    return torch.tensor(engine.score(batch))


class Card:
    """The model as its card would use it."""

    def __init__(self, folder):
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def read(self, **inputs):
        return self.model(**inputs).logits[0]

    def pair(self, item, **how):
        if is_decoder(self.model):
            return self.read(**self.tokenizer(item.prompt + item.response, return_tensors="pt", **how))
        return self.read(**self.tokenizer(item.prompt, item.response, return_tensors="pt", **how))

    def chat(self, *turns):
        messages = [{"role": role, "content": content} for role, content in turns]
        return self.read(
            **self.tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        )


# --- every architecture ---


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_score_is_transformers_own_and_no_batch_changes_it(name, labels, known):
    engine, card = known(name, labels)
    batch = [engine.encode(item, "item") for item in PAIRS]
    expected = torch.stack([card.pair(item) for item in PAIRS])
    assert expected.shape == (len(PAIRS), labels)
    together = scores(engine, batch)
    torch.testing.assert_close(together, expected, **TOLERANCE)
    alone = torch.cat([scores(engine, [one]) for one in batch])
    torch.testing.assert_close(together, alone, **TOLERANCE)
    assert expected.std(dim=0).min() > 1e-3  # or the comparisons would mean nothing
    assert engine.facts.attributes == (("reward",) if labels == 1 else tuple(LABELS.values()))


@pytest.mark.parametrize("name", RELEASED)
def test_so_does_one_with_a_tokenizer_of_its_own_class(name, tmp_path):
    save_reward_model(name, tmp_path, tokenizer=released_tokenizer(name))
    engine, card = engine_of(tmp_path), Card(tmp_path)
    assert type(card.tokenizer) is type(released_tokenizer(name))
    batch = [engine.encode(item, "item") for item in PAIRS]
    expected = torch.stack([card.pair(item) for item in PAIRS])
    torch.testing.assert_close(scores(engine, batch), expected, **TOLERANCE)
    assert (batch[0].type_ids is not None) == (name == "Bert")
    if name in ("Llama", "Gemma2"):
        assert batch[0].ids[0] == card.tokenizer.bos_token_id


@pytest.mark.parametrize("name", DECODERS)
def test_ids_of_any_length_score_as_transformers_scores_them(name, known):
    engine, card = known(name)
    sequences = [
        list(range(start, start + length)) for start, length in ((9, 1), (20, 7), (30, 64), (99, 33))
    ]
    batch = [engine.encode(Ids(each), "item") for each in sequences]
    expected = torch.stack([card.read(input_ids=torch.tensor([each])) for each in sequences])
    torch.testing.assert_close(scores(engine, batch), expected, **TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right", None])
@pytest.mark.parametrize("name", DECODERS)
def test_no_decoder_minds_its_tokenizers_pad(name, side, tmp_path):
    """Neither the side it pads on nor that there is none; transformers' own forward takes no batch then."""
    tokenizer = ARCHITECTURES[name].tokenizer()
    tokenizer.padding_side = side or "right"
    save_reward_model(name, tmp_path, tokenizer=tokenizer, pad=side is not None)
    engine, card = engine_of(tmp_path), Card(tmp_path)
    assert (card.model.config.get_text_config().pad_token_id is None) == (side is None)
    batch = [engine.encode(item, "item") for item in PAIRS]
    expected = torch.stack([card.pair(item) for item in PAIRS])
    torch.testing.assert_close(scores(engine, batch), expected, **TOLERANCE)
    if side is None:
        with pytest.raises(ValueError, match="no padding token"):
            card.model(input_ids=torch.tensor([[5, 6], [7, 8]]))


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_a_pad_that_is_the_eos_is_read_as_transformers_reads_it(name, tmp_path):
    tokenizer = ARCHITECTURES[name].tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    save_reward_model(name, tmp_path, tokenizer=tokenizer)
    engine, card = engine_of(tmp_path), Card(tmp_path)
    eos = tokenizer.eos_token_id
    sequences = [[5, 6, eos], [5, 6, 7, 8, eos, eos], [5, eos, 7], [eos, eos]]
    expected = torch.stack([card.read(input_ids=torch.tensor([each])) for each in sequences])
    batch = [engine.encode(Ids(each), "item") for each in sequences]
    torch.testing.assert_close(scores(engine, batch[:3]), expected[:3], **TOLERANCE)
    assert torch.isfinite(scores(engine, batch[3:])).all()  # nothing but pads: transformers takes the first


@pytest.mark.parametrize(
    ("name", "read", "config"),
    [
        ("Llama", last_token_scores, {}),
        ("Gemma3", last_token_scores, {}),
        ("Gemma3Text", padded_scores, {"use_bidirectional_attention": True}),  # a `score`, but no decoder
        ("CohereCompassText", padded_scores, {}),  # a `score` layer, but the mean of all tokens
        ("CTRL", padded_scores, {}),  # a decoder whose head has another name
        ("Bert", padded_scores, {}),
        ("XLNet", one_by_one, {}),  # pools the last column, whatever it holds
        ("FNet", one_by_one, {}),  # no attention, no mask
        ("Bart", one_by_one, {}),  # wants an EOS in every sequence
    ],
)
def test_how_a_model_is_read_is_found_by_trying(name, read, config, tmp_path):
    save_reward_model(name, tmp_path, **config)
    engine, card = engine_of(tmp_path), Card(tmp_path)
    assert engine._read is read
    assert ("one by one" in engine.facts.placement) == (read is one_by_one)
    batch = [engine.encode(item, "item") for item in PAIRS]
    expected = torch.stack([card.pair(item) for item in PAIRS])
    torch.testing.assert_close(scores(engine, batch), expected, **TOLERANCE)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("name", ["Llama", "Gemma2", "GPT2", "Bert", "ModernBert", "Roberta"])
def test_rounding_is_not_taken_for_padding(name, dtype, tmp_path):
    save_reward_model(name, tmp_path)
    engine = RewardEngine(str(tmp_path), device="cpu", dtype=dtype, threads=1)
    assert engine._read is (last_token_scores if name in DECODERS else padded_scores)
    assert engine.facts.dtype == dtype


# --- the page ---


def table_rows():
    """Of each architecture what docs/reward-models.md says: a pair's format, how it is read, token ids."""
    page = Path(__file__).parents[2] / "docs" / "reward-models.md"
    lines = [line.strip("|").split("|") for line in page.read_text(encoding="utf-8").splitlines()]
    cells = [[cell.strip(" `") for cell in line] for line in lines if len(line) == 5]
    return {name: rest for name, _, *rest in cells if name in ARCHITECTURES}


READ = {last_token_scores: "last token", padded_scores: "forward", one_by_one: "one by one"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_page_says_how_each_is_read(name, known):
    engine, _ = known(name)
    pair_format, read, token_ids = table_rows()[name]
    assert (pair_format, read) == (engine._loaded.pair_format, READ[engine._read])
    with nullcontext() if token_ids == "yes" else pytest.raises(InputError):
        engine.encode(Ids([5, 6, 7]), "item")


# --- chats ---


@pytest.mark.parametrize("template", [WITH_SYSTEM, WITHOUT_SYSTEM], ids=["system", "no-system"])
@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Qwen2", "Bert"])
def test_chats_and_pairs_are_rendered_with_the_models_own_template(name, template, tmp_path):
    tokenizer = ARCHITECTURES[name].tokenizer()
    tokenizer.chat_template = template
    save_reward_model(name, tmp_path, tokenizer=tokenizer)
    engine, card = engine_of(tmp_path), Card(tmp_path)
    turns = (("user", "the film"), ("assistant", "is good"), ("user", "not"), ("assistant", " a story"))
    encoded = engine.encode(Chat(turns), "item")
    torch.testing.assert_close(scores(engine, [encoded])[0], card.chat(*turns), **TOLERANCE)
    short = engine.encode(Pair("the film", "is good"), "item")
    expected = card.chat(*turns[:2]) if name != "Bert" else card.pair(Pair("the film", "is good"))
    torch.testing.assert_close(scores(engine, [short, encoded])[0], expected, **TOLERANCE)
    if name == "Llama" and template is WITHOUT_SYSTEM:
        assert encoded.ids.count(tokenizer.bos_token_id) == 1  # the template's; none is added to it


def test_a_system_turn_is_rendered_or_refused_as_the_template_says(tmp_path):
    turns = (("system", "be brief"), ("user", "the film"), ("assistant", "good"))
    for template in (WITH_SYSTEM, WITHOUT_SYSTEM):
        tokenizer = bos_tokenizer()
        tokenizer.chat_template = template
        save_reward_model("Llama", tmp_path, tokenizer=tokenizer)
        engine, card = engine_of(tmp_path), Card(tmp_path)
        if template is WITH_SYSTEM:
            encoded = engine.encode(Chat(turns), "item")
            torch.testing.assert_close(scores(engine, [encoded])[0], card.chat(*turns), **TOLERANCE)
        else:
            with pytest.raises(InputError, match=r"item.chat.messages: .*System role not supported"):
                engine.encode(Chat(turns), "item")


@pytest.mark.parametrize("name", ["GPT2", "Bert"])
def test_a_chat_is_refused_without_a_template(name, known):
    engine, _ = known(name)
    with pytest.raises(InputError, match=r"item.chat.messages: .*no chat template; send text"):
        engine.encode(Chat((("user", "a"), ("assistant", "b"))), "item")


# --- encoders ---


def test_pairs_have_the_tokenizers_types_where_the_model_has_them(known):
    engine, card = known("Bert")
    encoded = engine.encode(PAIRS[1], "item")
    types = card.tokenizer(PAIRS[1].prompt, PAIRS[1].response)["token_type_ids"]
    assert list(encoded.type_ids) == types
    untyped = scores(engine, [Encoded.of(encoded.ids)])
    assert (untyped - scores(engine, [encoded])).abs().max() > 1e-3
    mixed = scores(engine, [Encoded.of(encoded.ids), encoded])
    torch.testing.assert_close(mixed, torch.cat([untyped, scores(engine, [encoded])]), **TOLERANCE)


@pytest.mark.parametrize("name", ["Bert", "Deberta", "Electra", "XLNet", "Bart"])
def test_ids_are_refused_where_the_model_needs_what_its_tokenizer_adds(name, known):
    engine, _ = known(name)
    with pytest.raises(
        InputError, match=r"item.token_ids: lack what the model's tokenizer adds .*send a pair"
    ):
        engine.encode(Ids([1, 5, 6, 2]), "item")


@pytest.mark.parametrize("name", ["DebertaV2", "DistilBert", "ModernBert", "Roberta", "MPNet"])
def test_ids_are_read_where_it_needs_no_types(name, known):
    engine, card = known(name)
    encoded = engine.encode(Ids([1, 50, 60, 70, 2]), "item")
    expected = card.read(input_ids=torch.tensor([[1, 50, 60, 70, 2]]))
    torch.testing.assert_close(scores(engine, [encoded])[0], expected, **TOLERANCE)


@pytest.mark.parametrize("name", ["Roberta", "XLMRoberta", "MPNet"])
def test_a_roberta_reads_less_than_its_table_of_positions_holds(name, known):
    engine, _ = known(name)
    assert engine.facts.context_length == 62
    longest = engine.encode(Ids([0, *range(40, 100), 2]), "item")
    assert torch.isfinite(scores(engine, [longest])).all()
    with pytest.raises(InputError, match="reads at most 62"):
        engine.encode(Ids([0, *range(40, 101), 2]), "item")


# --- too long ---


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("prompt", [2, 25, 40, 90])
@pytest.mark.parametrize("response", [3, 37, 90])
@pytest.mark.parametrize("name", ["Bert", "Roberta", "GPT2", "Llama"])
def test_a_cut_is_the_tokenizers_own(name, prompt, response, side, known):
    """Special tokens stay, and of a pair the longer text is cut first."""
    engine, card = known(name)
    item = Pair("x" * prompt, "q" * response)
    card.tokenizer.truncation_side = side
    how = {"truncation": True, "max_length": engine.facts.context_length}
    encoded = engine.encode(item, "item", side)
    texts = (item.prompt, item.response) if name in ("Bert", "Roberta") else (item.prompt + item.response,)
    whole, cut = card.tokenizer(*texts), card.tokenizer(*texts, **how)
    assert list(encoded.ids) == cut["input_ids"]
    assert encoded.truncated_tokens == len(whole["input_ids"]) - len(cut["input_ids"])
    assert encoded.truncation == (side if encoded.truncated_tokens else None)
    torch.testing.assert_close(scores(engine, [encoded])[0], card.pair(item, **how), **TOLERANCE)


# --- over the wire ---


def models_file(folder, name):
    """A server's models, of which the one in `folder` has weights for three attributes."""
    file = folder / "models.toml"
    file.write_text(
        f'[[models]]\nname = "{name}"\npath = "{folder}"\ndtype = "float32"\n'
        "weights = { helpfulness = 1.0, correctness = 0.5, verbosity = -0.25 }\n",
        encoding="utf-8",
    )
    return ModelOptions(str(file), dtype="float32", threads=1)


@pytest.mark.parametrize(
    "name", ["GPTNeoX", "Gemma2", "Qwen3_5Text", "Bert", "DebertaV2", "ModernBert", "XLNet"]
)
async def test_the_service_answers_what_transformers_says(name, tmp_path):
    save_reward_model(name, tmp_path)
    card = Card(tmp_path)
    async for client in serving(reward_service(options(tmp_path))):
        response = await client.score(*[pair(item.prompt, item.response) for item in PAIRS])
    for item, result in zip(PAIRS, response.results, strict=True):
        assert result.reward.raw_reward == pytest.approx(card.pair(item).item(), abs=1e-5)


@pytest.mark.parametrize("name", ["Llama", "Bert"])
async def test_the_service_weighs_a_models_attributes(name, tmp_path):
    save_reward_model(name, tmp_path, labels=3)
    card = Card(tmp_path)
    asked = reward_pb2.ScoreOptions(include_components=True)
    async for client in serving(reward_service(models_file(tmp_path, "three"))):
        response = await client.score(pair(PAIRS[1].prompt, PAIRS[1].response), options=asked)
    (result,) = response.results
    expected = card.pair(PAIRS[1])
    parts = {part.name: part.raw_reward for part in result.reward.components}
    assert list(parts) == list(LABELS.values())
    assert list(parts.values()) == pytest.approx(expected.tolist(), abs=1e-5)
    summed = (expected * torch.tensor([1.0, 0.5, -0.25])).sum().item()
    assert result.reward.raw_reward == pytest.approx(summed, abs=1e-5)


async def test_an_encoders_bad_items_are_named_and_its_good_ones_scored(tmp_path):
    save_reward_model("Bert", tmp_path)
    good, long = pair("the film", "is good"), pair("x" * 90, "q" * 90)
    async for client in serving(reward_service(options(tmp_path))):
        digest = (await client.model()).model.tokenizer_sha256
        bad = [chat(("user", "a"), ("assistant", "b")), ids(1, 5, 2), pair("a", ""), pair("[SEP]", "b"), long]
        response = await client.score(good, *bad, tokenizer_sha256=digest)
        left = reward_pb2.ScoreOptions(truncation=reward_pb2.TRUNCATION_LEFT)
        (cut,) = (await client.score(long, options=left)).results
        error = await client.refused(good, bad[1], tokenizer_sha256=digest, all_or_nothing=True)
    kinds = [result.WhichOneof("result") for result in response.results]
    assert kinds == ["reward"] + ["error"] * 5
    fields = [result.error.field_violations[0].field for result in response.results[1:]]
    assert fields == [
        "items[1].chat.messages", "items[2].token_ids", "items[3].pair.response", "items[4].pair.prompt",
        "items[5]",
    ]  # fmt: skip
    assert (cut.reward.token_count, cut.reward.truncated_tokens) == (64, 119)
    assert cut.reward.truncation == reward_pb2.TRUNCATION_LEFT
    assert violations(error)[0][0] == "items[1].token_ids"


def test_a_tokenizer_that_is_saved_to_cut_and_pad_does_neither_here(tmp_path):
    """Cross-encoders' tokenizer.json often says both."""
    tokenizer = bert_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(max_length=8)
    tokenizer.backend_tokenizer.enable_padding(length=16)
    save_reward_model("Bert", tmp_path, tokenizer=tokenizer)
    engine, card = engine_of(tmp_path), Card(tmp_path)
    encoded = engine.encode(PAIRS[1], "item")
    assert len(encoded.ids) > 16
    torch.testing.assert_close(scores(engine, [encoded])[0], card.pair(PAIRS[1]), **TOLERANCE)
