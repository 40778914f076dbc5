"""What the policy exports to Prometheus, beside what every server does."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram

STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
WAIT_SECONDS = (0.001, 0.01, 0.1, 0.5, 1, 5, 10, 30, 60, 120, 300)
ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 128, 256)
PUSH_SECONDS = (0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class PolicyMetrics:
    """The metrics of one policy."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.tokens = Counter("plaudit_policy_generated_tokens", "Tokens generated.", registry=registry)
        self.prompt_tokens = Counter(
            "plaudit_policy_prompt_tokens",
            "Tokens of the prompts read; the samples of a prompt share them.",
            registry=registry,
        )
        self.padded_prompt_tokens = Counter(
            "plaudit_policy_padded_prompt_tokens",
            "The same tokens and the padding of their batches.",
            registry=registry,
        )
        self.sequences = Counter(
            "plaudit_policy_sequences",
            "Responses that ended, by reason: eos, stop_token, stop_string, length, or dropped "
            "(cancelled, or failed with their request).",
            ("finish_reason",),
            registry=registry,
        )
        self.batch_rows = Histogram(
            "plaudit_policy_batch_rows",
            "Responses that grew together in a decode step.",
            buckets=ROWS,
            registry=registry,
        )
        self.step_seconds = Histogram(
            "plaudit_policy_decode_step_seconds",
            "Seconds of one decode step, prompts included where it begins with them.",
            buckets=STEP_SECONDS,
            registry=registry,
        )
        self.queue_wait = Histogram(
            "plaudit_policy_queue_wait_seconds",
            "Seconds from a request's arrival to its first decode step.",
            buckets=WAIT_SECONDS,
            registry=registry,
        )
        self.pushes = Counter(
            "plaudit_policy_pushes",
            "Weight pushes that ended, by outcome: committed, refused (at commit), damaged, aborted, "
            "expired, superseded, or failed.",
            ("outcome",),
            registry=registry,
        )
        self.push_bytes = Counter(
            "plaudit_policy_push_bytes", "Bytes of weights received.", registry=registry
        )
        self.push_seconds = Histogram(
            "plaudit_policy_push_seconds",
            "Seconds from the opening of a push to its commit.",
            buckets=PUSH_SECONDS,
            registry=registry,
        )

    def count_prompts(self, rows: Iterable[tuple[int, ...]]) -> None:
        """Counts what a batch reads before its first token; `rows` are the prompts' ids."""
        lengths = [len(ids) for ids in set(rows)]
        self.prompt_tokens.inc(sum(lengths))
        self.padded_prompt_tokens.inc(max(lengths) * len(lengths))
