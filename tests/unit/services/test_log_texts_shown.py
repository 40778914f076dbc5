"""How a message of any size becomes a line of the log."""

import pytest

from plaudit.v1 import trainer_pb2
from services.oip import open_inference_pb2 as oip
from services.rpc.texts import MOST_CHARACTERS, MOST_ITEMS, shortened, shown


@pytest.mark.parametrize("value", [1, 1.5, True, None, "", "a" * MOST_CHARACTERS, [], {}, {"a": ["b"]}])
def test_what_is_short_stays_as_it_is(value):
    assert shown(value) == value


def test_a_long_text_is_cut_and_its_rest_counted():
    assert shown("a" * (MOST_CHARACTERS + 3)) == "a" * MOST_CHARACTERS + "… 3 more characters"


def test_a_long_list_is_cut_at_every_depth():
    assert shown([[1] * (MOST_ITEMS + 2)] * (MOST_ITEMS + 1)) == [
        *[[*[1] * MOST_ITEMS, "… 2 more"]] * MOST_ITEMS,
        "… 1 more",
    ]


def test_a_large_table_is_cut():
    found = shown({str(key): key for key in range(MOST_ITEMS + 5)})
    assert len(found) == MOST_ITEMS + 1 and found["…"] == "… 5 more"


def test_maps_of_messages():
    assert shown(trainer_pb2.Run(step=3, metrics={"loss": 0.5})) == {"step": 3, "metrics": {"loss": 0.5}}


def test_texts_in_bytes_are_read():
    contents = oip.InferTensorContents(bytes_contents=["grün".encode(), b"\xff"])
    assert shown(contents) == {"bytes_contents": ["grün", "\ufffd"]}


def test_bytes_are_cut_before_they_are_read():
    assert shortened("üü".encode(), 3) == "ü\ufffd… 1 more bytes"


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\u2028b", "a\x1b[2Jb", "a\u202eb", "a\x85b"])
def test_nothing_in_a_text_ends_the_line_or_moves_the_cursor(text):
    assert repr(shown({"prompt": text})).isprintable()
