"""What trainers hand over, as items to score."""

import numpy as np
import pytest

from plaudit import Chat, InvalidArgument
from plaudit.adapters.items import scorable

USER = {"role": "user", "content": "How was it?"}
ANSWER = {"role": "assistant", "content": "Good."}
CONVERSATION = Chat([("user", "How was it?"), ("assistant", "Good.")])


def test_two_texts_are_a_pair():
    assert scorable("the film", " is good", "") == ("the film", " is good")


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ([USER], [ANSWER]),
        ([USER], "Good."),
        ("How was it?", [ANSWER]),
        (np.array([USER], dtype=object), "Good."),  # as Parquet files are read
        ((USER,), (ANSWER,)),
    ],
)
def test_with_turns_on_either_side_it_is_a_conversation(prompt, response):
    assert scorable(prompt, response, "") == CONVERSATION


def test_turns_stay_in_order():
    turns = [{"role": "system", "content": "Be short."}, USER, ANSWER, USER]
    chat = scorable(turns, [ANSWER], "")
    assert chat == Chat([(turn["role"], turn["content"]) for turn in [*turns, ANSWER]])


def test_keys_that_say_nothing_are_left_out():
    assert scorable([USER], [{**ANSWER, "tool_calls": [], "name": None}], "") == CONVERSATION


@pytest.mark.parametrize(
    ("prompt", "response", "field", "words"),
    [
        (
            [USER],
            [{**ANSWER, "tool_calls": [{"name": "search"}]}],
            "[3].response[0].tool_calls",
            "can't be sent",
        ),
        ([USER], [{"role": "assistant", "content": None}], "[3].response[0]", "must be str"),
        ([{"role": "user", "content": [{"type": "image"}]}], "Good.", "[3].prompt[0]", "must be str"),
        ([{"content": "Hm?"}], "Good.", "[3].prompt[0]", "must be str"),
        (["How was it?"], "Good.", "[3].prompt[0]", "is no turn"),
        (None, "Good.", "[3].prompt", "neither text nor"),
        ("How was it?", 7, "[3].response", "neither text nor"),
    ],
)
def test_what_a_reward_model_cant_read_is_named(prompt, response, field, words):
    with pytest.raises(InvalidArgument, match=words) as caught:
        scorable(prompt, response, "[3]")
    assert caught.value.violations[0].field == field
