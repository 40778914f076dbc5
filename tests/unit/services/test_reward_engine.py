"""The reward engine by itself: what it loads, refuses and scores."""

import pytest
from tiny_reward_models import LABELS, bare_tokenizer, save_reward_model
from tokenizers import normalizers

from lm.errors import InputError, ModelLoadError
from services.reward.engine import RewardEngine
from services.reward.items import Chat, Encoded, Ids, Pair


@pytest.fixture(scope="module")
def engine(tiny_reward):
    return RewardEngine(str(tiny_reward), "cpu", "float32", 1)


def test_facts(engine, tiny_reward):
    facts = engine.facts
    assert (facts.model_id, facts.dtype) == (str(tiny_reward), "float32")
    assert (facts.reward_mean, facts.reward_std) == (0.25, 2.0)
    assert "float32 on cpu, 1 threads" in facts.placement
    assert engine.token_budget == 1024


def test_digests_tell_weights_and_tokenizers_apart(engine, tiny_reward, foreign_reward):
    again = RewardEngine(str(tiny_reward), "cpu", "float32", 1).facts
    other = RewardEngine(str(foreign_reward), dtype="float32", threads=1).facts
    assert again == engine.facts
    assert other.weights_sha256 != again.weights_sha256
    assert other.tokenizer_sha256 != again.tokenizer_sha256


def test_a_score_does_not_depend_on_its_batch(engine):
    batch = [Encoded.of(ids) for ids in ((5, 6, 7, 2), (8,), (9,) * 128, (5, 0, 0))]
    together = engine.score(batch)
    alone = [engine.score([one])[0] for one in batch]
    assert [len(outputs) for outputs in together] == [1] * 4
    assert [value for (value,) in together] == pytest.approx([value for (value,) in alone], abs=1e-5)


def test_a_pair_ends_with_eos_and_ids_stay_as_they_are(engine):
    pair = engine.encode(Pair("the film", " is good"), "items[0]")
    assert pair.ids[-1] == 2
    assert engine.encode(Ids([2, 2, 0]), "items[0]") == Encoded.of((2, 2, 0))
    chat = engine.encode(Chat((("user", "the film"), ("assistant", "is good"))), "items[0]")
    assert chat.ids.count(2) == 2


@pytest.mark.parametrize(
    ("item", "field"),
    [
        (Pair("a", ""), "items[4].pair.response"),
        (Pair("<|end|>", "b"), "items[4].pair.prompt"),
        (Chat(()), "items[4].chat.messages"),
        (Chat((("user", "<|end|>"), ("assistant", "x"))), "items[4].chat.messages[0].content"),
        (Chat((("user", "x"), ("assistant", ""))), "items[4].chat.messages[1].content"),
        (Ids([]), "items[4].token_ids.ids"),
        (Ids([1, 2, 300]), "items[4].token_ids.ids[2]"),
        (Ids([1] * 129), "items[4]"),
        (Pair("film " * 200, "good"), "items[4]"),
    ],
)
def test_refusals_name_the_field(engine, item, field):
    with pytest.raises(InputError) as caught:
        engine.encode(item, "items[4]")
    assert caught.value.field == field


def test_a_policy_is_no_reward_model(tiny_policy):
    with pytest.raises(ModelLoadError, match="newly initialised"):
        RewardEngine(str(tiny_policy), threads=1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cut_of_ids_and_chats_takes_any_token_but_a_last_eos(engine, side):
    ids = list(range(3, 203))
    cut = engine.encode(Ids(ids), "items[0]", side)
    assert list(cut.ids) == (ids[-128:] if side == "left" else ids[:128])
    assert (cut.truncated_tokens, cut.truncation, cut.type_ids) == (72, side, None)
    ended = engine.encode(Ids([*ids, 2]), "items[0]", side)
    assert list(ended.ids) == [*(ids[-127:] if side == "left" else ids[:127]), 2]
    whole = engine.encode(Chat((("user", "film " * 9), ("assistant", "good"))), "items[0]")
    chat = engine.encode(Chat((("user", "film " * 99), ("assistant", "good"))), "items[0]", side)
    assert len(chat.ids) == 128
    assert (chat.ids[-12:] == whole.ids[-12:], chat.ids[:5] == whole.ids[:5]) == (
        side == "left",
        side == "right",
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_eos_that_ends_a_pair_is_always_kept(engine, side):
    cut = engine.encode(Pair("film " * 99, "good " * 99), "items[0]", side)
    assert (len(cut.ids), cut.ids[-1]) == (128, 2)
    whole = engine.encode(Pair("film " * 9, "good"), "items[0]", side)
    assert (whole.truncated_tokens, whole.truncation) == (0, None)
    assert whole == engine.encode(Pair("film " * 9, "good"), "items[0]")


def test_what_may_be_done_about_an_item_that_is_too_long_is_said(engine):
    with pytest.raises(
        InputError, match=r"items\[4\]: has 129 tokens, the model reads at most 128; shorten it, or"
    ):
        engine.encode(Ids([1] * 129), "items[4]")
    with pytest.raises(InputError, match=r"ids\[200\]: is 300"):  # a cut would have hidden it
        engine.encode(Ids([1] * 200 + [300]), "items[4]", "right")


def test_a_text_of_which_the_tokenizer_leaves_nothing_is_refused(tmp_path):
    tokenizer = bare_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    save_reward_model("GPT2", tmp_path, tokenizer=tokenizer)
    engine = RewardEngine(str(tmp_path), dtype="float32", threads=1)
    with pytest.raises(InputError, match=r"items\[0\]: has no tokens"):
        engine.encode(Pair("", "  "), "items[0]")


def test_a_model_with_several_outputs_says_all_of_them(tmp_path):
    save_reward_model("Llama", tmp_path, labels=3)
    engine = RewardEngine(str(tmp_path), dtype="float32", threads=1)
    assert engine.facts.attributes == tuple(LABELS.values())
    (outputs,) = engine.score([engine.encode(Pair("the film", " is good"), "items[0]")])
    assert len(outputs) == 3


@pytest.mark.parametrize(("option", "value"), [("dtype", "int3"), ("device", "abacus"), ("threads", -1)])
def test_a_wrong_placement_is_a_wrong_option(tiny_reward, option, value):
    with pytest.raises(InputError) as caught:
        RewardEngine(str(tiny_reward), **{option: value})
    assert caught.value.field == option


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(ModelLoadError, match="no such folder") as caught:
        RewardEngine(str(tmp_path / "nowhere"), threads=1)
    assert "\n" not in str(caught.value)
