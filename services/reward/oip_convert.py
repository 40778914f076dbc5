"""Between the open inference protocol's messages and the reward service's own words."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.errors import InvalidInput, UnknownName, Violation
from services.oip import open_inference_pb2 as oip
from services.reward import answers
from services.reward.interface import TRUNCATIONS, Outcome, RewardModel
from services.reward.items import Pair, Score
from services.reward.oip_tensors import add_output, raw_contents, read_elements

PLATFORM = "pytorch_transformers"
INPUTS = ("prompt", "response")
PARAMETERS = {"truncation": TRUNCATIONS, "bad_rows": ("error", "nan")}
"""What may be asked for by name; the first value if it isn't."""


@dataclass(frozen=True)
class Output:
    """One number of a score, as a tensor."""

    datatype: str
    read: Callable[[Score], float]
    without: float = 0
    """In place of a bad row's, where that was asked for."""


OUTPUTS = {
    "reward": Output("FP32", lambda score: score.reward, math.nan),
    "raw_reward": Output("FP32", lambda score: score.raw_reward, math.nan),
    "token_count": Output("UINT32", lambda score: score.token_count),
    "truncated_tokens": Output("UINT32", lambda score: score.truncated_tokens),
}


def pairs(request: oip.ModelInferRequest, max_rows: int) -> list[Pair | InvalidInput]:
    """The request's rows; one whose text can't be read is an error. Raises InvalidInput for other faults."""
    columns = _columns(request, max_rows)
    prompts, responses = (columns[name] for name in INPUTS)
    if len(prompts) != len(responses):
        raise InvalidInput.at(
            "inputs.response.shape",
            f"says {len(responses)} rows, that of prompt {len(prompts)}; send as many",
        )
    return [_pair(index, *row) for index, row in enumerate(zip(prompts, responses, strict=True))]


def declared_rows(request: oip.ModelInferRequest, max_rows: int) -> int:
    """Rows as the first shape tells them, right or wrong, at most `max_rows`: before anything is read."""
    shape = request.inputs[0].shape if request.inputs else ()
    return min(max(0, shape[0]), max_rows) if shape else 0


def parameters(request: oip.ModelInferRequest) -> dict[str, str]:
    """The value of each of PARAMETERS. Raises InvalidInput for any other parameter or value."""
    for name in request.parameters:
        if name not in PARAMETERS:
            known = " and ".join(PARAMETERS)
            raise InvalidInput.at(f"parameters.{name}", f"isn't known; those there are: {known}")
    return {name: _parameter(request, name, values) for name, values in PARAMETERS.items()}


def outputs(request: oip.ModelInferRequest) -> list[str]:
    """Names of the outputs that are wanted; all if none is named. Raises InvalidInput."""
    names: list[str] = []
    for index, output in enumerate(request.outputs):
        field = f"outputs[{index}]"
        if output.name not in OUTPUTS:
            raise InvalidInput.at(
                f"{field}.name", f"is {output.name!r}; the outputs are {', '.join(OUTPUTS)}"
            )
        if output.name in names:
            raise InvalidInput.at(f"{field}.name", f"is {output.name!r} a second time")
        for name in output.parameters:
            raise InvalidInput.at(f"{field}.parameters.{name}", "isn't known; leave it out")
        names.append(output.name)
    return names or list(OUTPUTS)


def check_version(version: str, model: RewardModel) -> None:
    """A model's one version is the digest of its weights. Raises UnknownName for any but that and ""."""
    if version not in ("", model.facts.weights_sha256):
        raise UnknownName("version", version)


def fields(rows: int) -> list[str]:
    """A path for each row; the reward model writes below it what part of the row is wrong."""
    return [f"inputs.*[{row}]" for row in range(rows)]


def renamed(error: InvalidInput) -> InvalidInput:
    """The error with this protocol's paths: "inputs.*[3].pair.prompt" is "inputs.prompt[3]" here.

    "inputs.*[3]" stays as it is: a fault of prompt and response together.
    """
    return InvalidInput([Violation(_path(each.field), each.description) for each in error.violations])


def infer_response(
    request: oip.ModelInferRequest, model: RewardModel, outputs: Sequence[str], outcomes: Sequence[Outcome]
) -> oip.ModelInferResponse:
    """A tensor for each of `outputs`, in raw contents if the inputs came so; why bad rows have no score."""
    response = oip.ModelInferResponse(
        model_name=model.name, model_version=model.facts.weights_sha256, id=request.id
    )
    for name in outputs:
        output = OUTPUTS[name]
        values = [output.read(each) if isinstance(each, Score) else output.without for each in outcomes]
        add_output(response, name, output.datatype, values, raw=bool(request.raw_input_contents))
    for row, each in enumerate(outcomes):
        if not isinstance(each, Score):
            response.parameters[f"bad_rows[{row}]"].string_param = _told(each)
    return response


def metadata_response(model: RewardModel) -> oip.ModelMetadataResponse:
    """What the model takes and gives; -1 is the number of rows."""
    tensor = oip.ModelMetadataResponse.TensorMetadata
    return oip.ModelMetadataResponse(
        name=model.name,
        versions=[model.facts.weights_sha256],
        platform=PLATFORM,
        inputs=[tensor(name=each, datatype="BYTES", shape=[-1]) for each in INPUTS],
        outputs=[tensor(name=each, datatype=OUTPUTS[each].datatype, shape=[-1]) for each in OUTPUTS],
    )


def _parameter(request: oip.ModelInferRequest, name: str, values: Sequence[str]) -> str:
    if name not in request.parameters:
        return values[0]
    found = request.parameters[name].string_param
    if found not in values:
        raise InvalidInput.at(f"parameters.{name}", f"is {found!r}; use {', '.join(values)}, as a string")
    return found


def _told(error: Exception) -> str:
    violations = answers.violations(error)
    return str(renamed(InvalidInput(violations)) if violations else error)


def _columns(request: oip.ModelInferRequest, max_rows: int) -> dict[str, list[bytes]]:
    takes = " and ".join(INPUTS)
    columns: dict[str, list[bytes]] = {}
    for index, (tensor, raw) in enumerate(zip(request.inputs, raw_contents(request), strict=True)):
        if tensor.name not in INPUTS:
            raise InvalidInput.at(f"inputs[{index}].name", f"is {tensor.name!r}; the inputs are {takes}")
        if tensor.name in columns:
            raise InvalidInput.at(f"inputs[{index}].name", f"is {tensor.name!r} a second time")
        columns[tensor.name] = read_elements(tensor, raw, max_rows)
    for name in INPUTS:
        if name not in columns:
            raise InvalidInput.at("inputs", f"lack {name!r}; send {takes}")
    return columns


def _pair(index: int, prompt: bytes, response: bytes) -> Pair | InvalidInput:
    texts, violations = list[str](), list[Violation]()
    for name, element in zip(INPUTS, (prompt, response), strict=True):
        try:
            texts.append(element.decode())
        except UnicodeDecodeError as error:
            violations.append(Violation(f"inputs.{name}[{index}]", f"isn't UTF-8 at byte {error.start}"))
    return InvalidInput(violations) if violations else Pair(*texts)


def _path(field: str) -> str:
    whole = "inputs" if field == "items" else field
    return re.sub(r"^inputs\.\*(\[\d+\])\.pair\.(\w+)$", r"inputs.\2\1", whole)
