import logging
import stat
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from lm.errors import InputError, ModelLoadError
from lm.loading import UNLIMITED_CONTEXT, context_length, load_causal_lm, load_reward_model, save_model
from lm.placement import choose_placement
from lm.trainable import select_parameters

FLOAT32 = choose_placement("cpu", "float32", 1)


@pytest.mark.parametrize("library", ["huggingface_hub", "transformers"])
def test_what_the_libraries_say_goes_the_way_of_our_own_lines(library, caplog):
    logging.getLogger(f"{library}.anything").error("said once")
    assert [record.message for record in caplog.records] == ["said once"]
    assert not logging.getLogger(library).handlers, "it writes to stderr itself, too"


@pytest.fixture
def policy(tiny_policy):
    return load_causal_lm(str(tiny_policy), FLOAT32)


def test_what_a_loaded_model_says_of_itself(policy):
    assert (policy.vocabulary_size, policy.context_length, policy.eos_token_ids) == (300, 128, (2,))
    assert not policy.model.training
    assert not any(parameter.requires_grad for parameter in policy.model.parameters())


def test_the_type_is_the_placements(tiny_policy):
    model = load_causal_lm(str(tiny_policy), choose_placement("cpu", "bfloat16", 1)).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_several_eos_ids_are_kept(policy, tmp_path):
    policy.model.generation_config.eos_token_id = [5, 9]
    save_model(policy.model, policy.tokenizer, tmp_path)
    assert load_causal_lm(str(tmp_path), FLOAT32).eos_token_ids == (2, 5, 9)


def test_saved_files_are_readable_by_others(policy, tmp_path):
    save_model(policy.model, policy.tokenizer, tmp_path)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert modes == {0o644}
    assert (tmp_path / "model.safetensors").is_file()


def test_a_missing_folder(tmp_path):
    with pytest.raises(ModelLoadError, match="no such folder"):
        load_causal_lm(str(tmp_path / "none"), FLOAT32)


def test_a_folder_without_a_configuration(tmp_path):
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        load_reward_model(str(tmp_path), FLOAT32)


def test_pickled_weights_are_not_read(policy, tmp_path):
    policy.model.config.save_pretrained(tmp_path)
    torch.save(policy.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="pickled weights are not read"):
        load_causal_lm(str(tmp_path), FLOAT32)


def test_a_damaged_file_is_one_line(policy, tmp_path):
    save_model(policy.model, policy.tokenizer, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelLoadError) as error:
        load_causal_lm(str(tmp_path), FLOAT32)
    assert "\n" not in str(error.value)
    assert "model.safetensors is damaged: " in str(error.value)
    assert str(error.value).endswith("; was it copied whole?")


def test_what_is_neither_a_folder_nor_at_the_hub_says_both():
    with pytest.raises(ModelLoadError, match=r"^runs/none/policy: no such folder, and from the hub: Repo id"):
        load_causal_lm("runs/none/policy", FLOAT32)


def test_a_reward_model_is_no_policy(tiny_reward):
    """Its embeddings are tied, so that nothing is missing and it could be served."""
    with pytest.raises(ModelLoadError, match=r"holds 'score\.weight': this is a reward model"):
        load_causal_lm(str(tiny_reward), FLOAT32)


def test_a_missing_tensor_is_named(policy, tmp_path):
    state = policy.model.state_dict()
    del state["model.norm.weight"]
    policy.model.save_pretrained(tmp_path, state_dict=state)
    policy.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"'model\.norm\.weight'"):
        load_causal_lm(str(tmp_path), FLOAT32)


def test_no_tokenizer(policy, tmp_path):
    policy.model.save_pretrained(tmp_path)
    words = r"no tokenizer: no tokenizer\.json, nor files that make one; were the tokenizer's files copied\?$"
    with pytest.raises(ModelLoadError, match=words):
        load_causal_lm(str(tmp_path), FLOAT32)


def test_a_tokenizer_larger_than_the_model(policy, tmp_path, tiny_policy):
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    tokenizer.add_tokens([f"extra{n}" for n in range(10)])
    save_model(policy.model, tokenizer, tmp_path)
    with pytest.raises(ModelLoadError, match="310 tokens, the model 300 rows"):
        load_causal_lm(str(tmp_path), FLOAT32)


def test_context_without_a_statement():
    silent = SimpleNamespace(get_text_config=SimpleNamespace)
    assert context_length(SimpleNamespace(config=silent)) == UNLIMITED_CONTEXT


def test_all_parameters(policy):
    names = select_parameters(policy.model, "all")
    assert names == [name for name, _ in policy.model.named_parameters()]
    assert all(parameter.requires_grad for parameter in policy.model.parameters())


def test_top_layers_take_the_final_norm_and_leave_the_embedding(policy):
    names = select_parameters(policy.model, "top:1")
    assert {name.split(".")[2] for name in names if ".layers." in name} == {"1"}
    assert "model.norm.weight" in names
    assert "model.embed_tokens.weight" not in names
    training = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert training == set(names)


def test_an_untied_head_does_not_belong_to_the_top_layers(tiny_policy):
    policy = load_causal_lm(str(tiny_policy), FLOAT32)
    policy.model.lm_head.weight = torch.nn.Parameter(policy.model.lm_head.weight.clone())
    assert "lm_head.weight" not in select_parameters(policy.model, "top:2")
    assert "lm_head.weight" in select_parameters(policy.model, ["lm_head"])


def test_patterns(policy):
    names = select_parameters(policy.model, [r"layers\.0\..*q_proj", "norm"])
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert "model.layers.1.self_attn.q_proj.weight" not in names
    assert "model.norm.weight" in names


def test_a_scalar_head_always_trains(tiny_reward):
    model = load_reward_model(str(tiny_reward), FLOAT32).model
    assert "score.weight" in select_parameters(model, "top:1")


@pytest.mark.parametrize("rule", ["top:0", "top:3", "bottom:2", ["no_such_layer"]])
def test_rules_that_can_not_be_followed(policy, rule):
    with pytest.raises(InputError) as error:
        select_parameters(policy.model, rule, field="model.trainable")
    assert error.value.field == "model.trainable"
