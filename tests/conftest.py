"""Tiny models that every test may load, made once a session."""

import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from tiny_models import byte_level_tokenizer, tiny_llama, tiny_tokenizer
from transformers import GPT2Config, GPT2ForSequenceClassification

from lm.heads import reward_model_from
from lm.loading import save_model

# How long an example takes says how busy the machine is, and nothing of the code.
hypothesis.settings.register_profile("plaudit", deadline=None)
hypothesis.settings.load_profile("plaudit")

# What is imported, torch's million objects above all, stays: it isn't looked through for garbage.
gc.set_threshold(50_000, 20, 100)

# Who starts the tests in a shell's background has Ctrl-C ignored, here and in every process from here.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    gc.freeze()


@pytest.fixture(autouse=True)
def signals_are_left_alone() -> Iterator[None]:
    """A handler that stays behind would swallow the Ctrl-C or SIGTERM of a later test."""
    watched = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in watched]
    yield
    after = [signal.getsignal(number) for number in watched]
    for number, handler in zip(watched, before, strict=True):
        signal.signal(number, handler)
    assert after == before


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


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
