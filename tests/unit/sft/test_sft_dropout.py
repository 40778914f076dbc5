from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from trainer.errors import ConfigError
from trainer.sft.dropout import with_dropout


@pytest.fixture
def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2)).eval()


@pytest.fixture
def llama(tiny_policy: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_policy)


IDS = torch.tensor([[3, 4, 5, 6, 7, 8]])


def rates(model: PreTrainedModel) -> dict[str, float]:
    return {name: m.p for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}


def test_none_is_the_model_itself_in_evaluation_mode(gpt2: PreTrainedModel):
    gpt2.train()
    same = with_dropout(gpt2, {"residual_dropout": 0.0, "attention_dropout": 0.0})
    assert same is gpt2
    assert not same.training


def test_residual_dropout_is_the_only_one_on(gpt2: PreTrainedModel):
    model = with_dropout(gpt2, {"residual_dropout": 0.2, "attention_dropout": 0.0})
    assert model.training
    found = rates(model)
    assert found["transformer.drop"] == 0.0
    assert found["transformer.h.0.attn.attn_dropout"] == 0.0
    assert found["transformer.h.0.attn.resid_dropout"] == 0.2
    assert found["transformer.h.1.mlp.dropout"] == 0.2


def test_weights_are_shared_not_copied_and_stay_tied(gpt2: PreTrainedModel):
    model = with_dropout(gpt2, {"residual_dropout": 0.2})
    own = dict(gpt2.named_parameters())
    assert all(p.data_ptr() == own[name].data_ptr() for name, p in model.named_parameters())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_in_evaluation_it_is_the_model_it_was_made_from(gpt2: PreTrainedModel, llama: PreTrainedModel):
    for original, key in ((gpt2, "residual_dropout"), (llama, "attention_dropout")):
        model = with_dropout(original, {key: 0.3})
        model.eval()
        assert torch.equal(model(IDS).logits, original(IDS).logits)


def test_it_drops_by_the_global_generator(llama: PreTrainedModel):
    model = with_dropout(llama, {"attention_dropout": 0.5})
    outputs = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        outputs.append(model(IDS).logits)
    assert not torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_the_configuration_saves_as_it_was(gpt2: PreTrainedModel, tmp_path: Path):
    before = gpt2.config.to_dict()
    model = with_dropout(gpt2, {"residual_dropout": 0.2})
    model.save_pretrained(tmp_path)
    assert GPT2Config.from_pretrained(tmp_path).resid_pdrop == before["resid_pdrop"] == 0.1


def test_what_the_architecture_has_not_is_an_error_naming_key_and_way_out(llama: PreTrainedModel):
    with pytest.raises(ConfigError) as caught:
        with_dropout(llama, {"residual_dropout": 0.2})
    assert caught.value.problems == (
        "sft.residual_dropout: architecture 'llama' has none; use sft.attention_dropout",
    )
