"""Tensors of the open inference protocol: one column of texts in, one column of numbers out."""

from collections.abc import Sequence

import numpy as np

from services.errors import InvalidInput
from services.oip import open_inference_pb2 as oip

_LENGTH_BYTES = 4
_NUMBERS = {"FP32": ("<f4", "fp32_contents"), "UINT32": ("<u4", "uint_contents")}
"""Datatype → type in raw contents, field of typed contents."""


def read_elements(
    tensor: oip.ModelInferRequest.InferInputTensor, raw: bytes | None, max_rows: int
) -> list[bytes]:
    """The N elements of a BYTES tensor of shape [N] or [N, 1]; `raw` is None if its contents are typed.

    Raises InvalidInput with paths below `inputs.NAME`.
    """
    field = f"inputs.{tensor.name}"
    if tensor.datatype != "BYTES":
        raise InvalidInput.at(f"{field}.datatype", f"is {tensor.datatype!r}; send BYTES, a text an element")
    rows = _row_count(tensor, field, max_rows)
    if raw is not None:
        return split_elements(raw, rows, field)
    found = len(tensor.contents.bytes_contents)
    if found != rows:
        raise InvalidInput.at(
            f"{field}.contents.bytes_contents", f"holds {found} elements, shape says {rows}"
        )
    return list(tensor.contents.bytes_contents)


def split_elements(raw: bytes, count: int, field: str) -> list[bytes]:
    """The elements of a raw BYTES tensor: each its length in four bytes, lowest first, and then itself.

    Raises InvalidInput unless `raw` is exactly `count` of them.
    """
    elements: list[bytes] = []
    start = 0
    for index in range(count):
        begin = start + _LENGTH_BYTES
        end = begin + int.from_bytes(raw[start:begin], "little")
        if end > len(raw):
            raise InvalidInput.at(
                field, f"breaks off at element {index} of {count}: its raw contents end at byte {len(raw)}"
            )
        elements.append(raw[begin:end])
        start = end
    if start != len(raw):
        raise InvalidInput.at(field, f"has {len(raw) - start} bytes left over after the {count} of its shape")
    return elements


def add_output(
    response: oip.ModelInferResponse, name: str, datatype: str, values: Sequence[float], *, raw: bool
) -> None:
    """Appends a tensor of shape [N], in raw or typed contents; one response has one of the two."""
    dtype, field = _NUMBERS[datatype]
    tensor = response.outputs.add(name=name, datatype=datatype, shape=[len(values)])
    if raw:
        response.raw_output_contents.append(np.asarray(values, dtype).tobytes())
    else:
        getattr(tensor.contents, field).extend(values)


def raw_contents(request: oip.ModelInferRequest) -> list[bytes | None]:
    """The raw contents of each input; None for each if they are typed. Raises InvalidInput."""
    for tensor in request.inputs:
        if any(name.startswith("shared_memory") for name in tensor.parameters):
            raise InvalidInput.at(
                f"inputs.{tensor.name}", "is in shared memory, which isn't read; send the data"
            )
    found = len(request.raw_input_contents)
    if not found:
        return [None] * len(request.inputs)
    if found != len(request.inputs):
        raise InvalidInput.at(
            "raw_input_contents",
            f"holds {found} tensors, inputs {len(request.inputs)}; send one for each, in their order",
        )
    for tensor in request.inputs:
        if tensor.contents.ByteSize():
            raise InvalidInput.at(
                f"inputs.{tensor.name}.contents", "is set beside raw_input_contents; send one"
            )
    return list(request.raw_input_contents)


def _row_count(tensor: oip.ModelInferRequest.InferInputTensor, field: str, max_rows: int) -> int:
    match list(tensor.shape):
        case [rows] | [rows, 1] if rows > 0:
            if rows > max_rows:
                raise InvalidInput.at(
                    f"{field}.shape", f"says {rows} rows, a call holds at most {max_rows}; split it"
                )
            return rows
        case shape:
            raise InvalidInput.at(f"{field}.shape", f"is {shape}; send [N] or [N, 1] with N of at least 1")
