"""Messages of the open inference protocol: every wrong field is named, and errors bear its paths."""

from types import SimpleNamespace

import numpy as np
import pytest

from lm.errors import InputError
from services.errors import InvalidInput, UnknownName
from services.oip import open_inference_pb2 as oip
from services.reward import oip_convert
from services.reward.items import ModelFacts, Pair, Score, ScoreNotFinite

FACTS = ModelFacts("folder", "5" * 64, "7" * 64, "float32", 300, 128, 0.25, 2.0, True, "cpu")
MODEL = SimpleNamespace(name="careful", facts=FACTS)
SCORE = Score(raw_reward=1.5, reward=0.625, token_count=9, truncated_tokens=2, truncation="left")


def request(prompts=(b"a", b"b"), responses=(b"c", b"d"), **fields):
    """Typed contents."""
    made = oip.ModelInferRequest(**fields)
    for name, elements in (("prompt", prompts), ("response", responses)):
        tensor = made.inputs.add(name=name, datatype="BYTES", shape=[len(elements)])
        tensor.contents.bytes_contents.extend(elements)
    return made


def refused(call, *args, kind=InvalidInput):
    with pytest.raises(kind) as caught:
        call(*args)
    return str(caught.value)


def refused_rows(made):
    return refused(oip_convert.pairs, made, 9)


# --- rows ---


def test_rows_are_pairs_whatever_the_order_of_the_inputs():
    made = request()
    assert oip_convert.pairs(made, 9) == [Pair("a", "c"), Pair("b", "d")]
    first, second = made.inputs
    turned = oip.ModelInferRequest(inputs=[second, first])
    assert oip_convert.pairs(turned, 9) == [Pair("a", "c"), Pair("b", "d")]


def test_text_is_utf8():
    made = request([" Wörter".encode()], ["好".encode()])
    assert oip_convert.pairs(made, 9) == [Pair(" Wörter", "好")]


def test_a_row_that_is_not_utf8_is_an_error_of_its_own():
    good, bad = oip_convert.pairs(request([b"a", b"ab\xff"], [b"c", b"\xfe"]), 9)
    assert good == Pair("a", "c")
    assert str(bad) == "inputs.prompt[1]: isn't UTF-8 at byte 2; inputs.response[1]: isn't UTF-8 at byte 0"


def test_an_unknown_input_is_named():
    made = request()
    made.inputs.add(name="context", datatype="BYTES", shape=[2])
    assert refused_rows(made) == "inputs[2].name: is 'context'; the inputs are prompt and response"


@pytest.mark.parametrize(("kept", "lacking"), [(0, "response"), (1, "prompt")])
def test_a_lacking_input_is_named(kept, lacking):
    made = oip.ModelInferRequest(inputs=[request().inputs[kept]])
    assert refused_rows(made) == f"inputs: lack '{lacking}'; send prompt and response"


def test_no_inputs_at_all():
    assert refused_rows(oip.ModelInferRequest()) == "inputs: lack 'prompt'; send prompt and response"


def test_an_input_given_twice_is_named():
    made = request()
    made.inputs[1].name = "prompt"
    assert refused_rows(made) == "inputs[1].name: is 'prompt' a second time"


def test_columns_of_unequal_length_are_refused():
    made = request([b"a", b"b"], [b"c"])
    assert refused_rows(made) == "inputs.response.shape: says 1 rows, that of prompt 2; send as many"


# --- parameters, outputs, version ---


def asked(name, **value):
    return request(parameters={name: oip.InferParameter(**value)})


@pytest.mark.parametrize("side", ["error", "left", "right"])
def test_truncation_is_a_parameter(side):
    made = asked("truncation", string_param=side)
    assert oip_convert.parameters(made) == {"truncation": side, "bad_rows": "error"}


@pytest.mark.parametrize("value", ["error", "nan"])
def test_so_is_what_becomes_of_bad_rows(value):
    made = asked("bad_rows", string_param=value)
    assert oip_convert.parameters(made) == {"truncation": "error", "bad_rows": value}


def test_without_parameters_nothing_is_cut_or_passed_over():
    assert oip_convert.parameters(request()) == {"truncation": "error", "bad_rows": "error"}


@pytest.mark.parametrize("value", [{"string_param": "middle"}, {"string_param": ""}, {"int64_param": 1}])
@pytest.mark.parametrize(
    ("name", "right"), [("truncation", "error, left, right"), ("bad_rows", "error, nan")]
)
def test_any_other_value_is_refused(name, right, value):
    message = refused(oip_convert.parameters, asked(name, **value))
    assert message.startswith(f"parameters.{name}: is ")
    assert message.endswith(f"use {right}, as a string")


@pytest.mark.parametrize("name", ["truncate", "priority", "timeout", "sequence_id"])
def test_any_other_parameter_is_refused(name):
    message = refused(oip_convert.parameters, asked(name, int64_param=1))
    assert message == f"parameters.{name}: isn't known; those there are: truncation and bad_rows"


def test_all_outputs_if_none_is_named_and_otherwise_those_in_their_order():
    assert oip_convert.outputs(request()) == ["reward", "raw_reward", "token_count", "truncated_tokens"]
    made = request(outputs=[{"name": "raw_reward"}, {"name": "reward"}])
    assert oip_convert.outputs(made) == ["raw_reward", "reward"]


def test_an_unknown_output_is_named():
    message = refused(oip_convert.outputs, request(outputs=[{"name": "reward"}, {"name": "score"}]))
    assert message.startswith("outputs[1].name: is 'score'; the outputs are reward, raw_reward")


def test_an_output_asked_for_twice_is_refused():
    message = refused(oip_convert.outputs, request(outputs=[{"name": "reward"}] * 2))
    assert message == "outputs[1].name: is 'reward' a second time"


@pytest.mark.parametrize("name", ["classification", "shared_memory_region"])
def test_a_parameter_of_an_output_is_refused(name):
    made = request(outputs=[{"name": "reward", "parameters": {name: oip.InferParameter(int64_param=1)}}])
    assert refused(oip_convert.outputs, made) == f"outputs[0].parameters.{name}: isn't known; leave it out"


def test_the_one_version_is_the_digest_of_the_weights():
    oip_convert.check_version("", MODEL)
    oip_convert.check_version(FACTS.weights_sha256, MODEL)
    assert "no version '1' here" in refused(oip_convert.check_version, "1", MODEL, kind=UnknownName)


# --- paths ---


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ("inputs.*[3].pair.response", "inputs.response[3]"),
        ("inputs.*[12].pair.prompt", "inputs.prompt[12]"),
        ("inputs.*[3]", "inputs.*[3]"),
        ("inputs.prompt[3]", "inputs.prompt[3]"),
        ("items", "inputs"),
    ],
)
def test_errors_bear_the_protocols_own_paths(inside, outside):
    assert str(oip_convert.renamed(InvalidInput.at(inside, "is wrong"))) == f"{outside}: is wrong"


def test_every_row_has_a_path():
    assert oip_convert.fields(2) == ["inputs.*[0]", "inputs.*[1]"]


# --- answers ---


def test_the_answer_carries_every_number_of_a_score():
    response = oip_convert.infer_response(request(id="mine"), MODEL, list(oip_convert.OUTPUTS), [SCORE] * 2)
    assert (response.model_name, response.model_version, response.id) == ("careful", "5" * 64, "mine")
    found = {
        each.name: list(each.contents.fp32_contents) + list(each.contents.uint_contents)
        for each in response.outputs
    }
    assert found == {
        "reward": [0.625] * 2, "raw_reward": [1.5] * 2, "token_count": [9] * 2, "truncated_tokens": [2] * 2
    }  # fmt: skip
    assert [list(each.shape) for each in response.outputs] == [[2]] * 4


def test_the_answer_is_raw_if_the_question_was():
    made = request(raw_input_contents=[b"", b""])
    response = oip_convert.infer_response(made, MODEL, ["raw_reward", "reward"], [SCORE])
    assert [each.name for each in response.outputs] == ["raw_reward", "reward"]
    assert [np.frombuffer(raw, "<f4").tolist() for raw in response.raw_output_contents] == [[1.5], [0.625]]


BAD = [
    SCORE,
    InputError("inputs.*[1].pair.response", "is empty"),
    InvalidInput.at("inputs.prompt[2]", "isn't UTF-8 at byte 2"),
    ScoreNotFinite("the model's score is nan"),
]


@pytest.mark.parametrize("raw", [False, True])
def test_a_bad_row_is_no_number_and_says_why(raw):
    made = request(raw_input_contents=[b"", b""] if raw else [])
    response = oip_convert.infer_response(made, MODEL, list(oip_convert.OUTPUTS), BAD)
    reward, raw_reward, token_count, truncated = columns(response)
    np.testing.assert_array_equal(reward, [0.625, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(raw_reward, [1.5, np.nan, np.nan, np.nan])
    assert (list(token_count), list(truncated)) == ([9, 0, 0, 0], [2, 0, 0, 0])
    assert {name: each.string_param for name, each in response.parameters.items()} == {
        "bad_rows[1]": "inputs.response[1]: is empty",
        "bad_rows[2]": "inputs.prompt[2]: isn't UTF-8 at byte 2",
        "bad_rows[3]": "the model's score is nan",
    }


def columns(response):
    """The four outputs, however they came."""
    types = ("<f4", "<f4", "<u4", "<u4")
    if response.raw_output_contents:
        return [np.frombuffer(*each) for each in zip(response.raw_output_contents, types, strict=True)]
    contents = [each.contents for each in response.outputs]
    return [list(each.fp32_contents) + list(each.uint_contents) for each in contents]


def test_metadata_says_what_goes_in_and_comes_out():
    response = oip_convert.metadata_response(MODEL)
    assert (response.name, list(response.versions)) == ("careful", ["5" * 64])
    assert [(each.name, each.datatype, list(each.shape)) for each in response.inputs] == [
        ("prompt", "BYTES", [-1]), ("response", "BYTES", [-1])
    ]  # fmt: skip
    assert [(each.name, each.datatype, list(each.shape)) for each in response.outputs] == [
        ("reward", "FP32", [-1]), ("raw_reward", "FP32", [-1]),
        ("token_count", "UINT32", [-1]), ("truncated_tokens", "UINT32", [-1]),
    ]  # fmt: skip
