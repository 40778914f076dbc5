"""Data files that hold anything at all: one clear error with file and line, or the row's own fault."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz_settings import fuzzed
from hostile_json import mangled
from hostile_messages import TEXTS
from hypothesis import given, strategies as st
from measured_memory import bounded_memory
from tiny_models import tiny_tokenizer

from plaudit.files.bad_rows import BadRows
from plaudit.files.columns import added_columns
from plaudit.files.formats import open_source
from plaudit.files.rows import BadRow, FileError, item_of
from trainer.data import read_demonstrations, read_prompts, read_rankings, read_texts
from trainer.errors import DataError

TOKENIZER = tiny_tokenizer()
TURNS = [{"role": "user", "content": "the film is"}, {"role": "assistant", "content": " good"}]
ROWS = {
    read_demonstrations: [{"prompt": "the film is", "completion": " good"}, {"messages": TURNS}],
    read_rankings: [
        {"prompt": "the film", "completions": [" a", " b"], "ranks": [1, 2], "labeler": "l"},
        {"messages": TURNS[:1], "chosen": " a", "rejected": " b"},
    ],
    read_prompts: [{"prompt": "the film is"}, {"messages": TURNS[:1]}],
    read_texts: [{"text": "the film is good"}],
}
SCORED = [
    {"prompt": "the film is", "response": " good", "more": {"a": [1]}},
    {"messages": TURNS},
    {"token_ids": [5, 6, 7]},
]
KEYS = ["prompt", "completion", "messages", "ranks", "response", "token_ids", "reward", "text", "more"]
LINES = {
    "empty": b"",
    "spaces": b" \t ",
    "BOM": b"\xef\xbb\xbf{}",
    "NUL": b"\x00\x00",
    "not UTF-8": b'{"prompt": "\xff"}',
    "deep list": b"[" * 100_000,
    "deep and closed": b"[" * 100_000 + b"]" * 100_000,
    "deep value": b'{"prompt": "a", "response": "b", "more": ' + b"[" * 960 + b"]" * 960 + b"}",
    "deep ranks": b'{"prompt": "a", "completions": ["a", "b"], "ranks": ['
    + b"[" * 960
    + b"]" * 960
    + b", 1]}",
    "huge integer": b'{"prompt": "a", "response": "b", "ranks": ' + b"9" * 10_000 + b"}",
    "no number": b'{"prompt": NaN, "response": Infinity}',
    "lone surrogate": b'{"prompt": "\\ud800", "response": "a", "completion": "b", "text": "\\udfff"}',
    "a mapping twice": b'{"prompt": "a", "prompt": 1}',
    "long": b'{"prompt": "' + b"a" * 200_000 + b'", "response": "b", "completion": "c", "text": "d"}',
    "odd line ends": b'{"prompt": "a"}\r{"prompt": "b"}\x0b\x0c\xc2\x85',
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """file(bytes, suffix) → path; each overwrites the one before."""
    folder = tmp_path_factory.mktemp("fuzz")

    def write(content, suffix):
        path = folder / f"rows{suffix}"
        path.write_bytes(content)
        return path

    return write


def lines(rows):
    some = mangled(rows, KEYS).map(lambda row: json.dumps(row).encode())
    return st.lists(some | st.sampled_from(list(LINES.values())) | st.binary(max_size=30), max_size=5)


def train_on(read, path):
    """Reads the file, and has a tokenizer read what is in it, as a stage does."""
    with bounded_memory(path.stat().st_size):
        try:
            for found in read(path):
                context = getattr(found, "context", found)
                if not isinstance(context, str):
                    context.encode(TOKENIZER)
                    context.encode_completion(TOKENIZER, getattr(found, "completion", "a"), "completion")
        except DataError as error:
            assert str(error).startswith(str(path)), error


def score(path, format_):
    """Reads, scores (a number of its own) and writes every row, as `plaudit score` does; (good, bad) rows."""
    with bounded_memory(path.stat().st_size):
        return _score(path, format_)


def _score(path, format_):
    added = added_columns({})
    out, bad = io.BytesIO(), BadRows(io.BytesIO())
    good = 0
    try:
        source = open_source(path, format_, True, added)
        sink = source.sink(out, added)
        for row in source.rows():
            try:
                item_of(row, True, added)
            except BadRow as error:
                bad.add(row.line, str(error), source.original(row))
                continue
            good += 1
            sink.write(row, {"reward": 0.5, "raw_reward": 0.5, "token_count": 3})
        sink.close()
    except FileError:
        return None
    return good, bad.count


@pytest.mark.parametrize("read", ROWS)
def test_any_training_data(read, file):
    @fuzzed
    @given(lines(ROWS[read]))
    def run(found):
        train_on(read, file(b"\n".join(found), ".jsonl"))

    run()


@pytest.mark.parametrize("read", ROWS)
@pytest.mark.parametrize("name", LINES)
def test_hostile_lines_of_training_data(name, read, file):
    good = json.dumps(ROWS[read][0]).encode()
    train_on(read, file(good + b"\n" + LINES[name], ".jsonl"))


@fuzzed
@given(found=lines(SCORED))
def test_any_rows_to_score(found, file):
    assert score(file(b"\n".join(found), ".jsonl"), "jsonl") is not None


@pytest.mark.parametrize("name", LINES)
def test_a_hostile_line_spoils_no_other(name, file):
    good = json.dumps(SCORED[0]).encode()
    scored, _ = score(file(good + b"\n" + LINES[name] + b"\n" + good, ".jsonl"), "jsonl")
    assert scored >= 2


CELLS = [*TEXTS, 'a"b', '"', "a,b", "[1, 2]", "[" * 2000, '[{"role": "user"}]', "\udcff", "x" * 200_000]


@fuzzed
@given(
    header=st.permutations(["prompt", "response", "messages", "token_ids", "more"]),
    rows=st.lists(st.lists(st.sampled_from(CELLS), min_size=4, max_size=6), max_size=4),
    noise=st.binary(max_size=20),
)
def test_any_csv(header, rows, noise, file):
    text = "\n".join(",".join(row) for row in [header, *rows])
    score(file(text.encode("utf-8", "surrogateescape") + noise, ".csv"), "csv")


@fuzzed
@given(content=st.binary(max_size=60))
def test_any_bytes_as_any_format(content, file):
    for format_ in ("csv", "jsonl", "parquet"):
        score(file(content, ""), format_)


@pytest.fixture(scope="module")
def parquet():
    table = pa.table({"prompt": ["the film is"] * 50, "response": [" good"] * 50, "token_ids": [[5, 6]] * 50})
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


@fuzzed
@given(at=st.floats(0, 1), patch=st.binary(min_size=1, max_size=8), cut=st.booleans())
def test_damaged_parquet(at, patch, cut, parquet, file):
    place = int(at * len(parquet))
    score(
        file(parquet[:place] + (b"" if cut else patch + parquet[place + len(patch) :]), ".parquet"), "parquet"
    )


NOT_UTF8 = pa.StringArray.from_buffers(
    2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")
)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"\xff"] * 2, pa.binary()),
        NOT_UTF8,
        pa.array([2**70, 1], pa.decimal128(38)),
        pa.array([float("nan"), float("inf")]),
        pa.array([{"role": "user"}] * 2),
        pa.array([[[["a"]]]] * 2),
        pa.nulls(2),
    ],
    ids=["bytes", "not UTF-8", "decimal", "no numbers", "struct", "nested", "nulls"],
)
@pytest.mark.parametrize("name", ["prompt", "messages", "token_ids", "more"])
def test_odd_types_in_parquet(name, column, file):
    columns = {"prompt": ["a", "b"], "response": ["c", "d"], "messages": [None, None], name: column}
    content = io.BytesIO()
    pq.write_table(pa.table(columns), content)
    assert score(file(content.getvalue(), ".parquet"), "parquet") is not None
