"""Judges: whatever gives responses a number, higher is better.

A judge is a plug-in of the user's, a reward service, or a reward model on disk; the comparison doesn't
know which. What can't be judged (an empty text, for a reward model asked in text) is None, never a number.
"""

import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from lm.errors import InputError, ModelLoadError
from lm.loading import LoadedReward, load_reward_model
from lm.placement import Placement
from lm.rewards import is_decoder, sequence_scores
from lm.tokenizer import encode_chat, encode_pair, tokenizer_sha256
from plaudit.clients import Chat, RewardClient
from plaudit.clients.channel import DEFAULT_TIMEOUT
from plaudit.clients.data import Scorable
from plaudit.clients.data_reward import Reward
from plaudit.clients.errors import PlauditError
from trainer.errors import ServiceUnreachable
from trainer.evaluate.config import JudgeSection
from trainer.evaluate.plugins import JudgeError, load_plugin
from trainer.evaluate.samples import Sample
from trainer.ppo.batches import batches
from trainer.ppo.patience import Endpoint, Patience

Judge = Callable[[Sequence[Sample]], list[float | None]]

SCORED_TOGETHER = 16
"""Sequences in one forward pass of a reward model loaded here."""


def load_judges(
    sections: Mapping[str, JudgeSection],
    placement: Placement,
    key: str,
    patience: Patience | None = None,
    call_timeout: float = DEFAULT_TIMEOUT,
) -> dict[str, Judge]:
    """The judges by name. `key` is the configuration's section, for messages.

    A judge that is a service has `call_timeout` for each call; when it is asked, `patience` waits for it.

    Raises JudgeError, ModelLoadError, ServiceUnreachable.
    """

    def load(name: str, section: JudgeSection) -> Judge:
        if section.reward is None:
            return _load(section, placement, f"{key}.{name}")
        endpoint = Endpoint(f"judge {name}", section.reward, f"{key}.{name}.reward")
        return service_judge(RewardClient(section.reward, timeout=call_timeout), endpoint, patience)

    return {name: load(name, section) for name, section in sections.items()}


def judge_all(name: str, judge: Judge, samples: Sequence[Sample]) -> list[float | None]:
    """Asks the judge once for everything. Raises JudgeError unless each answer is a finite number or None."""
    scores = judge(samples)
    if len(scores) != len(samples):
        raise JudgeError(f"judge {name!r} gave {len(scores)} numbers for {len(samples)} responses")
    for index, score in enumerate(scores):
        if score is not None and not math.isfinite(score):
            raise JudgeError(f"judge {name!r} gave {score} for response {index}; numbers must be finite")
    return scores


def _load(section: JudgeSection, placement: Placement, key: str) -> Judge:
    if section.plugin is not None:
        return plugin_judge(section.plugin, section.options)
    loaded = load_reward_model(section.path or "", placement)
    if not is_decoder(loaded.model):
        raise ModelLoadError(
            f"{loaded.model_id}: is an encoder; serve it with `python -m services.reward` and name its "
            f"address in {key}.reward"
        )
    return model_judge(loaded)


def plugin_judge(reference: str, options: Mapping[str, object]) -> Judge:
    """A user's function or class; see plugins.load_plugin. It is asked with texts: prompts, responses."""
    ask = load_plugin(reference, options)

    def judge(samples: Sequence[Sample]) -> list[float | None]:
        prompts, responses = [sample.prompt for sample in samples], [sample.text for sample in samples]
        try:
            return [None if score is None else float(score) for score in ask(prompts, responses)]
        except Exception as error:  # whatever a user's code may do; its words may quote prompts and responses
            what = f"{type(error).__name__} at {_where(error)}"
            raise JudgeError(f"judge {reference!r} failed: {what} (--debug shows its words)") from error

    return judge


def _where(error: Exception) -> str:
    """File and line of the innermost frame."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    return f"{frame.f_code.co_filename}:{line}"


def service_judge(client: RewardClient, endpoint: Endpoint, patience: Patience | None = None) -> Judge:
    """A reward service, asked in ids where it has the samples' tokenizer, in text otherwise.

    Raises ServiceUnreachable, at once if it isn't there, and later when it is asked; with `patience` it is
    then waited for, and away as any other service, RoleUnavailable or Stopped.
    """
    with _naming(endpoint.key):
        info = client.get_model()

    def judge(samples: Sequence[Sample]) -> list[float | None]:
        in_ids = _share_tokenizer(samples, info.model.tokenizer_sha256)
        digest = info.model.tokenizer_sha256 if in_ids else ""
        scores: list[float | None] = []
        for rows in batches([len(sample.ids) for sample in samples], info.limits):
            items = [_item(samples[row], in_ids) for row in rows]
            ask = partial(client.score, items, tokenizer_sha256=digest, deterministic=True)
            with _naming(endpoint.key):
                results = (patience.call(endpoint, ask) if patience else ask()).results
            scores += [result.reward if isinstance(result, Reward) else None for result in results]
        return scores

    return judge


@contextmanager
def _naming(key: str) -> Iterator[None]:
    try:
        yield
    except PlauditError as error:
        raise ServiceUnreachable(f"{error} ({key})") from error


def _item(sample: Sample, in_ids: bool) -> Scorable:
    if in_ids:
        return sample.ids
    return Chat(sample.turns) if sample.turns else (sample.prompt, sample.text)


def model_judge(loaded: LoadedReward) -> Judge:
    """A reward model loaded here; its normalised rewards."""
    digest = tokenizer_sha256(loaded.tokenizer)

    def judge(samples: Sequence[Sample]) -> list[float | None]:
        in_ids = _share_tokenizer(samples, digest)
        sequences = [_encode(loaded, sample, in_ids) for sample in samples]
        rows = sorted((row for row, ids in enumerate(sequences) if ids), key=lambda row: len(sequences[row]))
        scores: list[float | None] = [None] * len(samples)
        for start in range(0, len(rows), SCORED_TOGETHER):
            together = rows[start : start + SCORED_TOGETHER]
            with torch.inference_mode():
                raw = sequence_scores(loaded.model, [sequences[row] for row in together]).tolist()
            for row, value in zip(together, raw, strict=True):
                scores[row] = (value - loaded.reward_mean) / loaded.reward_std
        return scores

    return judge


def _encode(loaded: LoadedReward, sample: Sample, in_ids: bool) -> Sequence[int]:
    """Ids for the model; none if it can't judge the sample."""
    if in_ids:
        ids: Sequence[int] = sample.ids
    elif not sample.text:
        return ()
    else:
        ids = _encode_text(loaded, sample)
    return ids if len(ids) <= loaded.context_length else ()


def _encode_text(loaded: LoadedReward, sample: Sample) -> Sequence[int]:
    try:
        if sample.turns:
            return encode_chat(loaded.tokenizer, sample.turns, add_generation_prompt=False)
        return encode_pair(
            loaded.tokenizer, sample.prompt, sample.text,
            pair_format=loaded.pair_format, append_eos=loaded.append_eos,
        )  # fmt: skip
    except InputError:
        return ()


def _share_tokenizer(samples: Sequence[Sample], digest: str) -> bool:
    return {sample.tokenizer_sha256 for sample in samples} == {digest}
