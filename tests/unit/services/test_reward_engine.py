"""The reward engine by itself: what it loads, refuses and scores."""

import pytest
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from lm.errors import InputError, ModelLoadError
from lm.loading import save_model
from services.reward.engine import RewardEngine
from services.reward.items import Chat, Ids, Pair


@pytest.fixture(scope="module")
def engine(tiny_reward):
    return RewardEngine(str(tiny_reward), dtype="float32", threads=1)


def test_facts(engine, tiny_reward):
    facts = engine.facts
    assert (facts.model_id, facts.dtype) == (str(tiny_reward), "float32")
    assert (facts.reward_mean, facts.reward_std) == (0.25, 2.0)
    assert "float32 on cpu, 1 threads" in facts.placement
    assert engine.token_budget == 1024


def test_digests_tell_weights_and_tokenizers_apart(engine, tiny_reward, foreign_reward):
    again = RewardEngine(str(tiny_reward), dtype="float32", threads=1).facts
    other = RewardEngine(str(foreign_reward), dtype="float32", threads=1).facts
    assert again == engine.facts
    assert other.weights_sha256 != again.weights_sha256
    assert other.tokenizer_sha256 != again.tokenizer_sha256


def test_a_score_does_not_depend_on_its_batch(engine):
    sequences = [[5, 6, 7, 2], [8], [9] * 128, [5, 0, 0]]
    together = engine.score(sequences)
    alone = [engine.score([sequence])[0] for sequence in sequences]
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_pair_ends_with_eos_and_ids_stay_as_they_are(engine):
    pair = engine.encode(Pair("the film", " is good"), "items[0]")
    assert pair[-1] == 2
    assert engine.encode(Ids([2, 2, 0]), "items[0]") == [2, 2, 0]
    chat = engine.encode(Chat((("user", "the film"), ("assistant", "is good"))), "items[0]")
    assert chat.count(2) == 2


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


def test_an_encoder_is_refused_rather_than_read_wrongly(tiny_reward, tmp_path):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = BertConfig(vocab_size=300, num_labels=1, **sizes)
    save_model(BertForSequenceClassification(config), AutoTokenizer.from_pretrained(tiny_reward), tmp_path)
    with pytest.raises(ModelLoadError, match="'bert' is an encoder"):
        RewardEngine(str(tmp_path), threads=1)


@pytest.mark.parametrize(("option", "value"), [("dtype", "int3"), ("device", "abacus"), ("threads", -1)])
def test_a_wrong_placement_is_a_wrong_option(tiny_reward, option, value):
    with pytest.raises(InputError) as caught:
        RewardEngine(str(tiny_reward), **{option: value})
    assert caught.value.field == option


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(ModelLoadError, match="no such folder") as caught:
        RewardEngine(str(tmp_path / "nowhere"), threads=1)
    assert "\n" not in str(caught.value)
