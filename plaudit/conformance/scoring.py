"""Checks of Score."""

import math

import grpc

from plaudit.conformance.subject import (
    EMPTY,
    GOOD,
    MALFORMED,
    PROMPT,
    RESPONSES,
    Subject,
    fields_of,
    ids,
    pair,
    refused,
)
from plaudit.conformance.verdicts import Check, Skipped, expect
from plaudit.v1 import reward_pb2, types_pb2

_INVALID = grpc.StatusCode.INVALID_ARGUMENT


def _rewards_are_numbers(subject: Subject) -> None:
    info = subject.info
    for reward in subject.rewards(*map(pair, RESPONSES)):
        expect(math.isfinite(reward.raw_reward), f"raw_reward {reward.raw_reward}")
        right = (reward.raw_reward - info.reward_mean) / (info.reward_std or math.nan)
        expect(
            abs(reward.reward - right) <= 1e-5 * max(1.0, abs(right)),
            f"raw {reward.raw_reward:.7g} became {reward.reward:.7g}, not {right:.7g}",
        )
        count = reward.token_count
        expect(subject.could_read(count), f"token_count {count} of at most {info.context_length}")
        expect(not reward.truncated_tokens, f"truncated_tokens {reward.truncated_tokens} of a short text")


def _results_stay_with_their_items(subject: Subject) -> None:
    forwards = subject.rewards(*map(pair, RESPONSES))
    backwards = subject.rewards(*map(pair, reversed(RESPONSES)))[::-1]
    for index, (one, other) in enumerate(zip(forwards, backwards, strict=True)):
        what = f"response {index}, the list forwards and backwards"
        subject.expect_close(what, one.raw_reward, other.raw_reward)
        expect(
            one.token_count == other.token_count, f"{what}: {one.token_count} and {other.token_count} tokens"
        )


def _company_does_not_matter(subject: Subject) -> None:
    together = subject.rewards(*map(pair, RESPONSES))
    for response, reward in zip(RESPONSES, together, strict=True):
        (alone,) = subject.rewards(pair(response))
        subject.expect_close(f"{response!r} among others and alone", reward.raw_reward, alone.raw_reward)


def _bad_items_are_named(subject: Subject) -> None:
    bad = {1: EMPTY, 3: MALFORMED, 4: subject.too_long()}
    items = [bad.get(index, pair(RESPONSES[0])) for index in range(6)]
    results = subject.results(*items)
    (alone,) = subject.rewards(GOOD)
    for index, result in enumerate(results):
        if index in bad:
            _expect_error(result, f"items[{index}]")
        else:
            expect(result.HasField("reward"), f"items[{index}] is good, and got {result.error.message!r}")
            subject.expect_close(f"items[{index}] and alone", result.reward.raw_reward, alone.raw_reward)


def _expect_error(result: reward_pb2.ScoreResult, path: str) -> None:
    expect(result.HasField("error"), f"{path} is bad, and got reward {result.reward.reward:.7g}")
    error = result.error
    expect(error.code == _INVALID.value[0], f"the error of {path} has code {error.code}")
    expect(bool(error.message), f"the error of {path} says nothing")
    fields = [violation.field for violation in error.field_violations]
    expect(any(field.startswith(path) for field in fields), f"the error of {path} names {fields}")


def _strict_form_is_strict(subject: Subject) -> None:
    items = (GOOD, EMPTY, GOOD, MALFORMED)
    error = refused(_INVALID, "a call with two bad items", lambda: subject.score(*items, all_or_nothing=True))
    fields = fields_of(error)
    for path in ("items[1]", "items[3]"):
        expect(any(field.startswith(path) for field in fields), f"{path} isn't named, only {fields}")
    expect(
        len(subject.score(GOOD, GOOD, all_or_nothing=True).results) == 2,
        "of two good items not both came back",
    )


def _empty_calls_are_refused(subject: Subject) -> None:
    for what, call, field in (("Score", subject.score, "items"), ("Rank", subject.rank, "candidates")):
        fields = fields_of(refused(_INVALID, f"{what} without {field}", call))
        expect(field in fields, f"{what} names {fields}, not {field}")


def _limits_are_held(subject: Subject) -> None:
    limits = subject.info.limits
    count = limits.max_items + 1
    expect(limits.max_items > 0, "max_items is 0")
    if count * (GOOD.ByteSize() + 4) > (limits.max_request_bytes or limits.max_message_bytes):
        raise Skipped(f"{count:,} items don't fit in a message")
    error = refused(_INVALID, f"a call with {count:,} items", lambda: subject.score(*[GOOD] * count))
    fields = fields_of(error)
    expect("items" in fields, f"it names {fields}, not items")


def _truncation_is_asked_for(subject: Subject) -> None:
    for side in (reward_pb2.TRUNCATION_LEFT, reward_pb2.TRUNCATION_RIGHT):
        name = reward_pb2.Truncation.Name(side)
        options = reward_pb2.ScoreOptions(model=subject.model_name, truncation=side)
        both = subject.too_long(), GOOD
        cut, whole = subject.rewards(*both, options=options, timeout=subject.long_timeout)
        expect(cut.truncated_tokens > 0, f"{name}: truncated_tokens of a text that is too long is 0")
        expect(cut.truncation == side, f"{name}: it was {reward_pb2.Truncation.Name(cut.truncation)}")
        expect(subject.could_read(cut.token_count), f"{name}: {cut.token_count} tokens were read")
        expect(not whole.truncated_tokens and not whole.truncation, f"{name}: a short text was cut too")


def _chats_are_scored(subject: Subject) -> None:
    turns = [("user", PROMPT), ("assistant", RESPONSES[0])]
    messages = [types_pb2.ChatMessage(role=role, content=content) for role, content in turns]
    item = reward_pb2.ScoreItem(chat=types_pb2.Chat(messages=messages))
    (result,) = subject.results(item)
    if subject.info.has_chat_template:
        expect(result.HasField("reward"), f"it has a template, and says {result.error.message!r}")
    else:
        _expect_error(result, "items[0].chat")


def _ids_are_scored(subject: Subject) -> None:
    info = subject.info
    digest = info.model.tokenizer_sha256
    if not digest:
        raise Skipped("its members read different tokens")
    good, bad = subject.results(ids(3, 4, 5), ids(3, info.vocabulary_size), tokenizer_sha256=digest)
    expect(good.HasField("reward"), f"ids of its own have no reward: {good.error.message}")
    expect(good.reward.token_count == 3, f"three ids were {good.reward.token_count} tokens")
    _expect_error(bad, "items[1].token_ids.ids[1]")
    fields = fields_of(refused(_INVALID, "ids without tokenizer_sha256", lambda: subject.score(ids(3, 4, 5))))
    expect("tokenizer_sha256" in fields, f"without tokenizer_sha256 it names {fields}")


def _foreign_ids_are_refused(subject: Subject) -> None:
    code = grpc.StatusCode.FAILED_PRECONDITION
    error = refused(
        code, "ids of another tokenizer", lambda: subject.score(ids(3, 4, 5), tokenizer_sha256="0" * 64)
    )
    expect(bool(error.preconditions), "without a google.rpc.PreconditionFailure")


def _timing_is_told(subject: Subject) -> None:
    timing = subject.score(GOOD).timing
    for name in ("tokenize_seconds", "queue_seconds", "compute_seconds"):
        seconds = getattr(timing, name)
        expect(0 <= seconds < 3600, f"timing.{name} is {seconds}")
    expect(timing.compute_seconds > 0 or timing.tokenize_seconds > 0, "every part of it is 0")


CHECKS = (
    Check("rewards", "reward is (raw_reward − mean) / std, and tokens are counted", _rewards_are_numbers),
    Check("alignment", "results are aligned with their items", _results_stay_with_their_items),
    Check("company", "a text has the same reward whatever is asked beside it", _company_does_not_matter),
    Check("item errors", "a bad item has an error with its path, and spoils no other", _bad_items_are_named),
    Check(
        "all_or_nothing", "all_or_nothing refuses the call and names every bad item", _strict_form_is_strict
    ),
    Check(
        "empty calls", "a call with nothing in it is INVALID_ARGUMENT, by its path", _empty_calls_are_refused
    ),
    Check("too many items", "more than max_items is INVALID_ARGUMENT, by its path", _limits_are_held),
    Check("truncation", "a text that is too long is cut if asked for, and says so", _truncation_is_asked_for),
    Check("chats", "chats are scored with the template, or refused where there is none", _chats_are_scored),
    Check("token ids", "token ids are scored as they are, with the tokenizer's digest", _ids_are_scored),
    Check("foreign ids", "ids of another tokenizer are FAILED_PRECONDITION", _foreign_ids_are_refused),
    Check("timing", "the answer says where the time went", _timing_is_told),
)
