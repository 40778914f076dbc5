"""What goes into the clients and what comes out: plain values and numpy arrays, no protobuf.

data_reward.py has what only the reward service knows.

Token ids are tuples of int, so that they can be hashed, printed and sent again; per-token numbers are
float32 arrays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal, NamedTuple, Required, TypeAlias, TypedDict

if TYPE_CHECKING:  # a third of this package's import; who gets an array imports it
    import numpy as np
    from numpy.typing import NDArray

DType: TypeAlias = Literal["float64", "float32", "float16", "bfloat16", "unspecified"]
FinishReason: TypeAlias = Literal["eos", "stop_token", "stop_string", "length", "unspecified"]
SwapMode: TypeAlias = Literal["in_place", "drain"]
Stage: TypeAlias = Literal["sft", "reward_model", "ppo", "unspecified"]
PushState: TypeAlias = Literal["open", "committing", "committed", "failed", "given_up", "unspecified"]
RunState: TypeAlias = Literal["starting", "running", "finished", "stopped", "failed", "unspecified"]

TokenIds: TypeAlias = Sequence[int]
"""Ids in the vocabulary of the model that is asked, without padding."""


@dataclass(frozen=True)
class Chat:
    """A conversation, oldest turn first; the service renders it with its own chat template.

    A turn is (role, content) or {"role": …, "content": …}.
    """

    messages: Sequence[tuple[str, str] | Mapping[str, str]]


Prompt: TypeAlias = str | Chat | TokenIds
"""What a policy continues."""
Scorable: TypeAlias = tuple[str, str] | Chat | TokenIds
"""What a reward model scores: (prompt, response), a conversation whose last turn counts, or ids of both."""


class GenerateOptions(TypedDict, total=False):
    """How responses are sampled; all but max_new_tokens may be left out."""

    max_new_tokens: Required[int]
    """Most tokens of a response, at least 1."""
    temperature: float
    """Divides the logits; 1 if left out, and 0 takes the likeliest token."""
    top_k: int
    """Draw among the k likeliest tokens; 0, the default, draws among all."""
    top_p: float
    """Draw among the likeliest tokens that make up this probability; 1 if left out."""
    samples_per_prompt: int
    """1 if left out."""
    stop_token_ids: Sequence[int]
    """Ids that end a response, beside the model's own; the id stays in the response."""
    stop_strings: Sequence[str]
    """Texts that end a response; the text stays in it."""
    seeds: Sequence[int] | None
    """One number from 0 to 2^64 − 1 per prompt; drawn if left out. The response tells it."""
    deterministic: bool
    """Make the call a batch of its own: the same call to the same weights then gives the same bits."""
    step_at_least: int | None
    """The weights that answer must be of this step or a later one."""
    step_exactly: int | None
    """The weights that answer must be of this step, from the first token to the last."""


@dataclass(frozen=True)
class ModelVersion:
    """The exact model behind an answer."""

    model_id: str
    run_id: str
    """Training run whose weights are loaded; empty for weights from disk."""
    step: int
    """Pushes since the run began; 0 for weights from disk."""
    weights_sha256: str
    tokenizer_sha256: str


@dataclass(frozen=True)
class CallLimits:
    """How much one call may carry."""

    max_items: int
    max_tokens: int
    max_message_bytes: int
    """Of a response."""
    max_request_bytes: int
    """Of a request, and of each message of a stream."""


@dataclass(frozen=True)
class QueueDepth:
    """What a service has taken on and not yet answered."""

    items: int
    tokens: int
    bytes: int
    """Of the requests that they came in."""


@dataclass(frozen=True)
class VersionSpan:
    """Tokens start … end − 1 of a response came from the weights of `step`."""

    step: int
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class GeneratedSequence:
    """One sampled response of T tokens."""

    prompt_index: int
    sample_index: int
    token_ids: tuple[int, ...]
    """T ids, the end-of-sequence token included if there is one."""
    text: str
    finish_reason: FinishReason
    logprobs: "NDArray[np.float32]"
    """[T], natural, of the distribution each token was drawn from; 0 throughout at temperature 0."""
    logprobs_temperature_1: "NDArray[np.float32]"
    """[T], natural, at temperature 1 over the whole vocabulary."""
    version_spans: tuple[VersionSpan, ...]
    seed: int

    @property
    def ended(self) -> bool:
        """Whether the model ended the response itself, rather than being cut off."""
        return self.finish_reason in ("eos", "stop_token")


@dataclass(frozen=True)
class Generation:
    """The responses to a batch of prompts, ordered by prompt, then sample."""

    sequences: tuple[GeneratedSequence, ...]
    prompt_token_ids: tuple[tuple[int, ...], ...]
    """Each prompt as the model saw it."""
    model: ModelVersion
    """The weights that were loaded when the last response ended."""


@dataclass(frozen=True)
class PolicyInfo:
    """The policy that is loaded."""

    model: ModelVersion
    engine: str
    dtype: DType
    """What the weights are served in, and what pushes must be in."""
    vocabulary_size: int
    context_length: int
    """Most tokens of prompt and response together."""
    eos_token_ids: tuple[int, ...]
    has_chat_template: bool
    chat_template_sha256: str
    swap_modes: tuple[SwapMode, ...]
    limits: CallLimits
    queue: QueueDepth
    """Responses that wait or grow now; tokens of them and their prompts, at most."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a push: its name in the state dict, element type and sizes."""

    name: str
    dtype: DType
    shape: tuple[int, ...]


@dataclass(frozen=True)
class PushManifest:
    """What a push holds; tensors that are not listed stay as they are."""

    run_id: str
    base_step: int
    """Step that must be loaded now."""
    new_step: int
    tensors: Sequence[TensorSpec]
    """In the order in which their bytes come."""
    weights_sha256: str
    """Digest of the whole model after the swap."""


@dataclass(frozen=True)
class PushStatus:
    """How far a push is, or how it ended."""

    push_id: str
    state: PushState
    received_bytes: int
    """What the server holds, from the start of the push."""
    total_bytes: int
    expires_in: float
    """Seconds after which the push is given up unless it is touched; 0 unless it is open."""


class Logprobs(NamedTuple):
    """Log-probabilities of some sequences, and the model they are of."""

    values: "list[NDArray[np.float32]]"
    """Per sequence, [len(token_ids) − start]."""
    model: ModelVersion


@dataclass(frozen=True)
class ReferenceInfo:
    """The reference model that is loaded."""

    model: ModelVersion
    dtype: DType
    vocabulary_size: int
    context_length: int
    limits: CallLimits
    queue: QueueDepth


@dataclass(frozen=True)
class Run:
    """A training run."""

    run_id: str
    stage: Stage
    state: RunState
    step: int
    total_steps: int
    started_at: datetime
    last_step_at: datetime | None
    """UTC, as started_at; None before the first step ended."""
    metrics: Mapping[str, float]
    checkpoint: str
    """Newest whole checkpoint, a path on the trainer's machine; empty before the first."""
    error: str
    """What ended the run; empty otherwise."""


@dataclass(frozen=True)
class RunEvent:
    """Something about a run has changed."""

    number: int
    """From 1 on within the run; where numbers are missing, events were older than what the trainer keeps."""
    run: Run
    """After the event."""
