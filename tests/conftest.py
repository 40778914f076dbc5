"""Tiny models that every test may load, made once a session."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from lm.heads import reward_model_from
from lm.loading import save_model

CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
CORPUS = ["the film is good", "a dull and lifeless story", "what a wonderful performance", "not worth seeing"]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def byte_level_tokenizer(vocab_size: int, specials: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = byte_level_tokenizer(300, ["<|pad|>", "<|start|>", "<|end|>"])
    tokenizer.pad_token, tokenizer.eos_token = "<|pad|>", "<|end|>"
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_llama(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-layer Llama with tied embeddings, 300 tokens, context 128, float32."""
    folder = tmp_path_factory.mktemp("tiny-policy")
    tokenizer = tiny_tokenizer()
    save_model(tiny_llama(tokenizer), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model of the same backbone and tokenizer; mean 0.25, std 2."""
    folder = tmp_path_factory.mktemp("tiny-reward")
    tokenizer = tiny_tokenizer()
    generator = torch.Generator().manual_seed(1)
    model = reward_model_from(tiny_llama(tokenizer), None, tokenizer.pad_token_id, generator)
    model.config.reward_mean, model.config.reward_std = 0.25, 2.0
    model.config.plaudit_pair_format, model.config.append_eos = "concatenate", True
    save_model(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def foreign_reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model of another architecture (GPT-2) and tokenizer, whose pad is its eos."""
    folder = tmp_path_factory.mktemp("foreign-reward")
    tokenizer = byte_level_tokenizer(270, ["<|endoftext|>"])
    tokenizer.pad_token = tokenizer.eos_token = "<|endoftext|>"
    torch.manual_seed(2)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=96,
        n_embd=24,
        n_layer=1,
        n_head=2,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
    )
    save_model(GPT2ForSequenceClassification(config).eval(), tokenizer, folder)
    return folder
