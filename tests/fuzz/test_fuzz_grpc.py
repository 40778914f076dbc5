"""Any message to every method: a documented status, and the next good request is served."""

import pytest
from fuzz_settings import fuzzed
from fuzzed_services import METHODS, request_class
from good_requests import GOOD
from hostile_messages import Known, hostile, spoilt
from hypothesis import given, strategies as st

from lm.loading import load_tokenizer
from lm.tokenizer import tokenizer_sha256
from plaudit.v1 import weights_pb2


@pytest.fixture(scope="module")
def known(tiny_policy, tiny_reward):
    """What lets a message past the first checks."""
    digest = tokenizer_sha256(load_tokenizer(str(tiny_reward)))
    return Known(
        {
            "model": ["", "reward"],
            "model_name": ["", "reward"],
            "model_version": [""],
            "tokenizer_sha256": ["", digest],
            "name": ["prompt", "response", "reward"],
            "datatype": ["BYTES"],
            "shape": [1, 2],
            "max_new_tokens": [1, 4],
            "samples_per_prompt": [1, 2],
            "ids": [5, 6, 7],
            "token_ids": [5, 6, 7],
            "start": [1, 2],
            "step_exactly": [0],
            "step_at_least": [0],
            "base_step": [0],
            "weights_sha256": ["0" * 64],
            "encoding": [weights_pb2.PUSH_ENCODING_FULL],
        }
    )


WORDS = (b"", b"\xff", b"\x0a\x01\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0b" * 20_000, b"\x00" * 64)
"""No message: a field without an end, text that isn't UTF-8, a length of 4 GB, groups 20,000 deep."""


@st.composite
def damaged(draw, bodies):
    """One of `bodies` with a byte changed, or cut."""
    body = draw(bodies)
    at = draw(st.integers(0, len(body)))
    return body[:at] + draw(st.binary(max_size=2)) + body[at + draw(st.integers(0, 2)) :]


def bodies(path, known):
    """Messages that say anything, messages that say almost the right thing, and bytes that are none."""
    kind = request_class(path)
    messages = hostile(kind, known) | spoilt(GOOD.get(path, kind()), known)
    whole = messages.map(lambda one: one.SerializeToString())
    return whole | whole | damaged(whole) | st.sampled_from(WORDS) | st.binary(max_size=40)


@pytest.mark.parametrize("path", METHODS)
def test_whatever_is_sent_ends_as_documented(path, services, known):
    most = 3 if METHODS[path][1].client_streaming else 1

    @fuzzed
    @given(st.lists(bodies(path, known), min_size=1, max_size=most))
    def check(sent):
        services.check(path, *sent)

    check()


@pytest.mark.parametrize("word", WORDS, ids=range(len(WORDS)))
def test_bytes_that_are_no_message_are_the_callers_fault(word, services):
    path = "plaudit.v1.RewardService/Score"
    code, told = services.end(path, word)
    assert code == "INVALID_ARGUMENT"
    assert told.startswith("request: isn't the method's message: " if word else "items: is empty")


def test_a_stream_is_told_which_message_is_none(services):
    path = "plaudit.v1.RewardService/ScoreStream"
    good = GOOD[path].SerializeToString()
    assert services.end(path, good)[0] == "OK"
    code, told = services.end(path, good, b"\xff")
    assert (code, told.partition(":")[0]) == ("INVALID_ARGUMENT", "request")
