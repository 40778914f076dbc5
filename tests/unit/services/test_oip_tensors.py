"""Tensors of the open inference protocol: what comes in is read exactly or refused by name."""

import struct

import numpy as np
import pytest
from hypothesis import given, strategies as st

from services.errors import InvalidInput
from services.oip import open_inference_pb2 as oip
from services.reward.oip_tensors import add_output, raw_contents, read_elements, split_elements

ELEMENTS = st.lists(st.binary(max_size=40), max_size=12)


def joined(elements):
    """As tritonclient writes a BYTES tensor."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def tensor(shape=(2,), *, name="prompt", datatype="BYTES", elements=()):
    made = oip.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    if elements:
        made.contents.bytes_contents.extend(elements)
    return made


def request(*tensors, raw=()):
    return oip.ModelInferRequest(inputs=tensors, raw_input_contents=raw)


def refused(call, *args):
    with pytest.raises(InvalidInput) as caught:
        call(*args)
    return str(caught.value)


# --- raw elements ---


@given(ELEMENTS)
def test_elements_come_back_as_they_were_joined(elements):
    assert split_elements(joined(elements), len(elements), "x") == elements


@given(ELEMENTS, st.data())
def test_a_buffer_that_is_cut_short_is_refused(elements, data):
    whole = joined([*elements, b"last"])
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert "breaks off at element" in refused(split_elements, whole[:cut], len(elements) + 1, "x")


@given(ELEMENTS, st.integers(0, 14))
def test_a_count_other_than_the_buffers_is_refused(elements, count):
    if count == len(elements):
        assert split_elements(joined(elements), count, "x") == elements
    else:
        words = "breaks off" if count > len(elements) else "left over"
        assert words in refused(split_elements, joined(elements), count, "inputs.prompt")


@given(st.binary(max_size=60), st.integers(0, 5))
def test_any_bytes_are_elements_or_a_named_error(raw, count):
    try:
        elements = split_elements(raw, count, "inputs.prompt")
    except InvalidInput as error:
        assert error.violations[0].field == "inputs.prompt"
    else:
        assert joined(elements) == raw


def test_where_a_buffer_breaks_off_is_said():
    raw = joined([b"one", b"two"])[:-1]
    message = refused(split_elements, raw, 2, "inputs.prompt")
    assert message == "inputs.prompt: breaks off at element 1 of 2: its raw contents end at byte 13"


def test_a_length_beyond_the_buffer_reserves_nothing():
    assert "breaks off at element 0" in refused(split_elements, b"\xff\xff\xff\xff", 1, "x")


def test_a_big_buffer_of_empty_elements_is_not_read_past_the_count():
    assert "has 4096 bytes left over after the 2" in refused(split_elements, bytes(4096 + 8), 2, "x")


# --- input tensors ---


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_a_column_has_shape_n_or_n_by_1(shape):
    assert read_elements(tensor(shape), joined([b"a", b""]), 9) == [b"a", b""]
    assert read_elements(tensor(shape, elements=[b"a", b"b"]), None, 9) == [b"a", b"b"]


@pytest.mark.parametrize("shape", [(), (0,), (-1,), (2, 2), (1, 2), (2, 1, 1), (0, 1)])
def test_any_other_shape_is_refused(shape):
    message = refused(read_elements, tensor(shape), joined([b"a", b"b"]), 9)
    assert message == f"inputs.prompt.shape: is {list(shape)}; send [N] or [N, 1] with N of at least 1"


def test_more_rows_than_a_call_holds_are_refused_before_they_are_read():
    message = refused(read_elements, tensor((2**40,)), b"", 9)
    assert message == f"inputs.prompt.shape: says {2**40} rows, a call holds at most 9; split it"


@pytest.mark.parametrize("datatype", ["", "FP32", "INT32", "STRING", "bytes"])
def test_a_datatype_other_than_bytes_is_refused(datatype):
    message = refused(read_elements, tensor(datatype=datatype, name="response"), b"", 9)
    assert message == f"inputs.response.datatype: is {datatype!r}; send BYTES, a text an element"


@pytest.mark.parametrize("elements", [(), (b"a",), (b"a", b"b", b"c")])
def test_typed_contents_that_do_not_fit_the_shape_are_refused(elements):
    message = refused(read_elements, tensor(elements=elements), None, 9)
    assert message == f"inputs.prompt.contents.bytes_contents: holds {len(elements)} elements, shape says 2"


def test_contents_of_another_type_are_no_elements():
    made = tensor()
    made.contents.int_contents.extend([1, 2])
    assert "bytes_contents: holds 0 elements" in refused(read_elements, made, None, 9)


# --- raw or typed ---


def test_raw_contents_belong_to_the_inputs_in_order():
    assert raw_contents(request(tensor(), tensor(name="response"), raw=[b"1", b"2"])) == [b"1", b"2"]


def test_without_raw_contents_each_input_is_typed():
    assert raw_contents(request(tensor(), tensor(name="response"))) == [None, None]


@pytest.mark.parametrize("raw", [[b"1"], [b"1", b"2", b"3"]])
def test_raw_contents_for_some_inputs_only_are_refused(raw):
    message = refused(raw_contents, request(tensor(), tensor(name="response"), raw=raw))
    assert message.startswith(f"raw_input_contents: holds {len(raw)} tensors, inputs 2; send one for each")


def test_raw_and_typed_contents_together_are_refused():
    made = request(tensor(), tensor(name="response", elements=[b"a"]), raw=[b"1", b"2"])
    assert refused(raw_contents, made).startswith(
        "inputs.response.contents: is set beside raw_input_contents"
    )


def test_empty_typed_contents_beside_raw_ones_say_nothing():
    made = request(tensor(), raw=[b"1"])
    made.inputs[0].contents.SetInParent()
    assert raw_contents(made) == [b"1"]


def test_shared_memory_is_refused_in_its_own_words():
    made = request(tensor(), tensor(name="response"), raw=[b"1"])
    made.inputs[1].parameters["shared_memory_region"].string_param = "region"
    assert refused(raw_contents, made).startswith("inputs.response: is in shared memory")


# --- output tensors ---


def test_numbers_leave_in_raw_contents():
    response = oip.ModelInferResponse()
    add_output(response, "reward", "FP32", [0.5, -1.25], raw=True)
    add_output(response, "token_count", "UINT32", [3, 4_000_000_000], raw=True)
    assert [(each.name, each.datatype, list(each.shape)) for each in response.outputs] == [
        ("reward", "FP32", [2]), ("token_count", "UINT32", [2])
    ]  # fmt: skip
    assert np.frombuffer(response.raw_output_contents[0], "<f4").tolist() == [0.5, -1.25]
    assert np.frombuffer(response.raw_output_contents[1], "<u4").tolist() == [3, 4_000_000_000]
    assert not any(each.HasField("contents") for each in response.outputs)


def test_numbers_leave_in_typed_contents():
    response = oip.ModelInferResponse()
    add_output(response, "reward", "FP32", [0.5, -1.25], raw=False)
    add_output(response, "token_count", "UINT32", [3, 7], raw=False)
    assert list(response.outputs[0].contents.fp32_contents) == [0.5, -1.25]
    assert list(response.outputs[1].contents.uint_contents) == [3, 7]
    assert not response.raw_output_contents
