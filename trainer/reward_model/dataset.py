"""The files of the stage as token ids."""

import logging
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lm.loading import LoadedLM
from trainer.data import Ranking, read_demonstrations, read_rankings
from trainer.errors import ConfigError, DataError
from trainer.examples import (
    LENGTH_COLUMNS,
    Limits,
    RankedExamples,
    encode_demonstrations,
    encode_rankings,
    length_row,
)
from trainer.progress import show_table
from trainer.reward_model.config import RewardModelConfig

logger = logging.getLogger(__name__)


class RankingData:
    """Rankings to train on and to be held against, and the demonstrations that fix the zero."""

    def __init__(self, config: RewardModelConfig, loaded: LoadedLM) -> None:
        """Reads and encodes all files. Raises DataError, ConfigError."""
        section, data = config.reward_model, config.data
        self._tokenizer = loaded.tokenizer
        self._limits = Limits.within(
            loaded.context_length, section.max_prompt_length, section.max_length, "reward_model.max_length"
        )
        records = read_rankings(data.train)
        self.train = self._encode(data.train, records)
        self.pair_format = pair_format(records)
        """How a reward service shall make ids of a text pair."""
        files = {"validation": data.validation, "heldout_labelers": data.heldout_labelers}
        self.held_out = {
            name: self._encode(path, read_rankings(path)) for name, path in files.items() if path is not None
        }
        """By the prefix of their metrics."""
        _warn_of_overlap(self.train, self.held_out.get("validation", []))
        self.demonstrations = self._demonstrations(data.demonstrations) if data.demonstrations else []
        """Each as a ranking of one."""

    def _encode(self, path: Path, records: Sequence[Ranking]) -> list[RankedExamples]:
        rankings, dropped = encode_rankings(records, self._tokenizer, self._limits)
        if not rankings:
            raise DataError(f"{path}: no ranking fits; dropped: {dropped}")
        logger.info("%s: %d rankings, dropped: %s", path, len(rankings), dropped)
        return rankings

    def _demonstrations(self, path: Path) -> list[RankedExamples]:
        examples, dropped = encode_demonstrations(read_demonstrations(path), self._tokenizer, self._limits)
        if not examples:
            raise DataError(f"{path}: no demonstration fits; dropped: {dropped}")
        return [RankedExamples((example,), (1,)) for example in examples]

    def show(self) -> None:
        """Prints token statistics."""
        files = {"train": self.train, **self.held_out, "demonstrations": self.demonstrations}
        rows = [
            length_row(name, [len(example) for ranking in rankings for example in ranking.examples])
            for name, rankings in files.items()
            if rankings
        ]
        show_table("Completions with their prompts", LENGTH_COLUMNS, rows)
        sizes = [len(ranking.examples) for ranking in self.train]
        show_table("Rankings", ("K", "prompts"), [(k, sizes.count(k)) for k in sorted(set(sizes))])


def _warn_of_overlap(train: Sequence[RankedExamples], validation: Sequence[RankedExamples]) -> None:
    """A completion in both files makes the accuracy look better than it is."""
    seen = {example.token_ids for ranking in train for example in ranking.examples}
    shared = sum(example.token_ids in seen for ranking in validation for example in ranking.examples)
    if shared:
        logger.warning("%d completions of data.validation are in data.train too; split by prompt", shared)


def pair_format(records: Sequence[Ranking]) -> str:
    """ "chat" if every prompt is a conversation, "concatenate" otherwise; see lm.tokenizer.encode_pair."""
    return "chat" if all(record.context.messages for record in records) else "concatenate"


def separate_pad(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad with, set in the tokenizer: its own, or another special token if that is the EOS.

    Hugging Face's heads read the last token that isn't the pad, so pad = EOS would read the one before.
    Raises ConfigError if there is no special token but the EOS.
    """
    added = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    candidates = [tokenizer.pad_token, tokenizer.unk_token, *added]
    pad = next((token for token in candidates if token and token != tokenizer.eos_token), None)
    if pad is None:
        reason = "the tokenizer has no special token beside EOS to pad with; add one and save it again"
        raise ConfigError.at("model.path", reason)
    tokenizer.pad_token = pad
    return int(tokenizer.get_vocab()[pad])
