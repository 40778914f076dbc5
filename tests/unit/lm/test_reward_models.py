import json
import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from lm.errors import InputError, ModelLoadError
from lm.heads import init_scalar_head, reward_model_from
from lm.loading import load_causal_lm, load_reward_model, save_model
from lm.placement import choose_placement
from lm.rewards import (
    choose_reader,
    last_token_scores,
    one_by_one,
    padded_scores,
    score_positions,
    sequence_scores,
)
from lm.tokenizer import PAIR_FORMATS

FLOAT32 = choose_placement("cpu", "float32", 1)


@pytest.fixture
def policy(tiny_policy):
    return load_causal_lm(str(tiny_policy), FLOAT32)


def test_ours_equals_transformers_own_forward_padded_and_alone(tiny_reward):
    reward = load_reward_model(str(tiny_reward), FLOAT32)
    sequences = [[5, 6, 2], [7, 8, 9, 10, 2]]
    ours = sequence_scores(reward.model, sequences)
    theirs = AutoModelForSequenceClassification.from_pretrained(tiny_reward).eval()
    pad = theirs.config.pad_token_id
    ids = torch.tensor([[*sequences[0], pad, pad], sequences[1]])
    torch.testing.assert_close(ours, theirs(ids).logits[:, 0], atol=1e-5, rtol=0)
    alone = torch.stack([theirs(torch.tensor([s])).logits[0, 0] for s in sequences])
    torch.testing.assert_close(ours, alone, atol=1e-5, rtol=0)


def test_a_foreign_model_with_pad_equal_to_eos_is_read_as_its_own_forward_reads_it(foreign_reward):
    reward = load_reward_model(str(foreign_reward), FLOAT32)
    eos = reward.tokenizer.eos_token_id
    for sequence in ([5, 6, 7, eos], [5, 6, 7], [5, eos, 7, eos, eos]):
        expected = reward.model(torch.tensor([sequence])).logits[0, 0]
        torch.testing.assert_close(sequence_scores(reward.model, [sequence])[0], expected, atol=1e-6, rtol=0)


def test_positions_by_hand(foreign_reward, monkeypatch):
    model = load_reward_model(str(foreign_reward), FLOAT32).model
    pad = model.config.pad_token_id
    sequences = [[5, 6, pad], [pad, pad], [5, pad, 7]]
    assert score_positions(model, sequences).tolist() == [1, 1, 2]
    monkeypatch.setattr(model.config, "pad_token_id", None)
    assert score_positions(model, sequences).tolist() == [2, 1, 2]


def test_the_normalisation_and_format_come_from_the_configuration(tiny_reward, foreign_reward):
    ours = load_reward_model(str(tiny_reward), FLOAT32)
    assert (ours.reward_mean, ours.reward_std, ours.append_eos) == (0.25, 2.0, True)
    assert ours.pair_format == "concatenate"
    foreign = load_reward_model(str(foreign_reward), FLOAT32)
    assert (foreign.reward_mean, foreign.reward_std, foreign.pair_format) == (0.0, 1.0, "text")


def changed(folder, to, **config):
    """A copy with other keys in its configuration."""
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    found = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(found | config))
    return str(to)


def test_an_unknown_pair_format_is_refused(tiny_reward, tmp_path):
    with pytest.raises(
        ModelLoadError, match="plaudit_pair_format is 'xml'; use one of chat, concatenate, text"
    ):
        load_reward_model(changed(tiny_reward, tmp_path, plaudit_pair_format="xml"), FLOAT32)


@pytest.mark.parametrize("pair_format", PAIR_FORMATS)
def test_a_known_one_is_taken(pair_format, tiny_reward, tmp_path):
    folder = changed(tiny_reward, tmp_path, plaudit_pair_format=pair_format)
    assert load_reward_model(folder, FLOAT32).pair_format == pair_format


def test_a_decoder_with_a_template_reads_chats_unless_told(tiny_reward, tmp_path):
    assert (
        load_reward_model(changed(tiny_reward, tmp_path, plaudit_pair_format=None), FLOAT32).pair_format
        == "chat"
    )


def test_code_that_comes_with_a_model_is_not_run(tiny_reward, tmp_path):
    folder = changed(
        tiny_reward, tmp_path, model_type="own", auto_map={"AutoConfig": "own.Config"}, architectures=["Own"]
    )
    (tmp_path / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelLoadError, match="needs Python that comes with it"):
        load_reward_model(folder, FLOAT32)


def test_a_newly_initialised_head_is_refused(tiny_policy):
    with pytest.raises(ModelLoadError, match=r"'score.weight' was newly initialised"):
        load_reward_model(str(tiny_policy), FLOAT32)


@pytest.fixture
def attributes(policy, tmp_path):
    model = reward_model_from(policy.model, None, 0, torch.Generator().manual_seed(0))
    model.config.num_labels = 3
    model.config.id2label = {0: "helpful", 1: "honest", 2: "harmless"}
    model.score = torch.nn.Linear(32, 3, bias=False)
    folder = tmp_path / "attributes"
    save_model(model, policy.tokenizer, folder)
    return folder


def test_more_than_one_output_is_refused_unless_asked_for(attributes):
    with pytest.raises(ModelLoadError, match="num_labels is 3; a reward model used here has 1"):
        load_reward_model(str(attributes), FLOAT32)
    assert load_reward_model(str(attributes), FLOAT32, outputs=3).model.config.num_labels == 3
    with pytest.raises(ModelLoadError, match="num_labels is 3; a reward model used here has 2"):
        load_reward_model(str(attributes), FLOAT32, outputs=2)


def test_outputs_are_named_as_the_configuration_names_them(attributes, tiny_reward, tmp_path):
    loaded = load_reward_model(str(attributes), FLOAT32, outputs=None)
    assert loaded.attributes == ("helpful", "honest", "harmless")
    assert load_reward_model(str(tiny_reward), FLOAT32, outputs=None).attributes == ("reward",)
    unnamed = changed(attributes, tmp_path, id2label={"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"})
    assert load_reward_model(unnamed, FLOAT32, None).attributes == ("LABEL_0", "LABEL_1", "LABEL_2")
    twice = changed(attributes, tmp_path, id2label={"0": "good", "1": "good", "2": "bad"})
    with pytest.raises(ModelLoadError, match="two outputs one name: good, good, bad"):
        load_reward_model(twice, FLOAT32, None)


def test_the_first_of_several_outputs_is_the_sequences_score(attributes):
    model = load_reward_model(str(attributes), FLOAT32, outputs=None).model
    sequences = [[5, 6, 7], [8, 9]]
    scores_BA = last_token_scores(model, sequences, [None, None])
    assert scores_BA.shape == (2, 3)
    torch.testing.assert_close(sequence_scores(model, sequences), scores_BA[:, 0])


def test_encoders_score_with_their_own_head(policy, tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=1, pad_token_id=0, max_position_embeddings=64,
    )  # fmt: skip
    save_model(BertForSequenceClassification(config).eval(), policy.tokenizer, tmp_path)
    reward = load_reward_model(str(tmp_path), FLOAT32)
    assert reward.pair_format == "text_pair"
    scores = sequence_scores(reward.model, [[5, 6, 7], [8, 9, 10, 11, 12]])
    expected = reward.model(torch.tensor([[5, 6, 7]])).logits[0, 0]
    torch.testing.assert_close(scores[0], expected, atol=1e-5, rtol=0)


def test_the_head_is_drawn_as_in_the_recipe():
    head = torch.nn.Linear(5000, 4)
    init_scalar_head(head, torch.Generator().manual_seed(0))
    assert head.weight.std().item() == pytest.approx(5001**-0.5, rel=0.02)
    assert (head.bias == 0).all()
    again = torch.nn.Linear(5000, 4)
    init_scalar_head(again, torch.Generator().manual_seed(0))
    assert torch.equal(head.weight, again.weight)


def test_a_cut_model_is_the_policys_first_layers_and_final_norm(policy):
    reward = reward_model_from(policy.model, 1, 0, torch.Generator().manual_seed(0))
    assert reward.config.num_hidden_layers == 1
    body, cut = policy.model.base_model.state_dict(), reward.base_model.state_dict()
    assert all(torch.equal(body[name], tensor) for name, tensor in cut.items())
    assert policy.model.config.num_hidden_layers == 2
    cut_parameter = reward.get_parameter("model.norm.weight")
    cut_parameter.data.zero_()
    assert policy.model.get_parameter("model.norm.weight").sum() != 0


def test_a_whole_model_keeps_its_depth(policy):
    reward = reward_model_from(policy.model, None, 0, torch.Generator().manual_seed(0))
    hidden = reward.base_model(torch.tensor([[5, 6, 7]]))[0]
    torch.testing.assert_close(hidden, policy.model.base_model(torch.tensor([[5, 6, 7]]))[0])


@pytest.mark.parametrize("layers", [0, 3])
def test_an_impossible_depth_is_refused(policy, layers):
    with pytest.raises(InputError, match=r"layers: .* not in 1..2"):
        reward_model_from(policy.model, layers, 0, torch.Generator())


def test_three_ways_of_reading_agree_on_a_decoder_with_a_pad(tiny_reward):
    model = load_reward_model(str(tiny_reward), FLOAT32).model
    sequences, types = [[5, 6, 7, 2], [8, 2], [9] * 20], [None] * 3
    fast = last_token_scores(model, sequences, types)
    for read in (padded_scores, one_by_one):
        torch.testing.assert_close(read(model, sequences, types), fast, atol=1e-5, rtol=0)
    assert choose_reader(model) is last_token_scores


def test_a_model_that_says_no_number_or_always_the_same_is_read_all_the_same(tiny_reward):
    model = load_reward_model(str(tiny_reward), FLOAT32).model
    model.get_parameter("score.weight").zero_()
    assert choose_reader(model) is last_token_scores
    model.get_parameter("score.weight").fill_(math.nan)
    assert choose_reader(model) is one_by_one
    assert one_by_one(model, [[5, 6]], [None]).isnan().all()
