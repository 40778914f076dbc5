"""What a run reads before it starts: prompts and pretraining text as ids, and the sizes that follow."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lm.errors import InputError
from lm.loading import LoadedLM
from lm.tokenizer import encode_text, tokenizer_sha256
from trainer.data import read_prompts, read_texts
from trainer.errors import ConfigError, DataError
from trainer.examples import Dropped, PromptIds, encode_prompts
from trainer.ppo.config import PPOConfig
from trainer.ppo.preflight import Needs
from trainer.ppo.ptx import PretrainingMix
from trainer.ppo.rollout import Prompt
from trainer.sampler import derived_seed, permutation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Everything read."""

    prompts: tuple[Prompt, ...]
    dropped: Dropped
    heldout: tuple[PromptIds, ...]
    pretraining: PretrainingMix | None

    @classmethod
    def read(cls, config: PPOConfig, policy: LoadedLM) -> "Inputs":
        """Raises DataError."""
        prompts, dropped = _prompts(config.data.prompts, config, policy)
        section = config.evaluation
        heldout: Sequence[PromptIds] = ()
        if section.prompts is not None:
            heldout = _prompts(section.prompts, config, policy)[0][: section.limit]
        mix = None
        if config.ppo.ptx_coef and config.data.pretraining is not None:
            documents = _documents(config.data.pretraining, policy)
            mix = PretrainingMix(
                documents, config.ppo.ptx_length, derived_seed(config.run.seed, "pretraining")
            )
        return cls(tuple(map(to_prompt, prompts)), dropped, tuple(heldout), mix)

    def needs(self, config: PPOConfig, policy: LoadedLM) -> Needs:
        """What the services must fit."""
        everything = [*self.prompts, *map(to_prompt, self.heldout)]
        return Needs(
            tokenizer_sha256=tokenizer_sha256(policy.tokenizer),
            vocabulary_size=policy.vocabulary_size,
            eos_token_ids=policy.eos_token_ids,
            longest_prompt=max(len(prompt.token_ids) for prompt in everything),
            response_length=config.sampling.response_length,
            request_size=config.sampling.request_size,
            conversations=any(prompt.messages for prompt in everything),
        )

    def batch(self, episode: int, size: int, seed: int) -> list[Prompt]:
        """The `size` prompts from the `episode`-th on, counted over the whole run.

        Each pass over the file has an order of its own, so where a run stands is one number.
        """
        count = len(self.prompts)
        passes = range(episode // count, (episode + size - 1) // count + 1)
        order = [index for each in passes for index in permutation(count, seed, each)]
        start = episode - passes.start * count
        return [self.prompts[index] for index in order[start : start + size]]


def to_prompt(prompt: PromptIds) -> Prompt:
    """As the roles want it."""
    return Prompt(prompt.index, prompt.token_ids, prompt.context.text, prompt.context.messages)


def _prompts(path: Path, config: PPOConfig, policy: LoadedLM) -> tuple[list[PromptIds], Dropped]:
    sampling = config.sampling
    room = min(sampling.max_prompt_length, policy.context_length - sampling.response_length)
    if room < 1:
        raise ConfigError(
            [
                f"sampling.response_length: {sampling.response_length} leaves no room for a prompt in the "
                f"model's context of {policy.context_length}; give a smaller number"
            ]
        )
    prompts, dropped = encode_prompts(read_prompts(path), policy.tokenizer, room)
    if not prompts:
        raise DataError(
            f"{path}: no prompt has at most {room} tokens, which sampling.max_prompt_length and the model's "
            f"context of {policy.context_length} less sampling.response_length allow"
        )
    logger.info("%s: %d prompts, dropped: %s", path, len(prompts), dropped)
    return prompts, dropped


def _documents(path: Path, policy: LoadedLM) -> list[list[int]]:
    """Texts as ids, each ended by EOS."""
    end = policy.eos_token_ids[-1:]
    documents = []
    for number, text in enumerate(read_texts(path), start=1):
        try:
            documents.append([*encode_text(policy.tokenizer, text), *end])
        except InputError as error:
            raise DataError(f"{path}: text {number}: {error.description}") from None
    return documents
