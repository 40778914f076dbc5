"""Reading rows of each format, and writing them again with new columns."""

import io
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from plaudit import Chat
from plaudit.files import csv_rows, jsonl, lines, parquet
from plaudit.files.csv_rows import Csv
from plaudit.files.formats import format_of, open_source
from plaudit.files.jsonl import JsonLines
from plaudit.files.rows import BadRow, FileError, Row, check_columns, item_of

ADDED = ("reward", "raw_reward", "token_count")
NEW = {"reward": 0.1, "raw_reward": -2.5, "token_count": 7}


@pytest.fixture
def write(tmp_path):
    """write(bytes or str, name) → its path."""

    def put(content, name="rows.jsonl"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return put


def rewritten(source, new=NEW, added=ADDED, keep=lambda row: not row.problem):
    """The bytes of a file with the rows that `keep` says."""
    file = io.BytesIO()
    sink = source.sink(file, added)
    for row in source.rows():
        if keep(row):
            sink.write(row, new)
    sink.close()
    return file.getvalue()


# --- JSON lines ---


def test_json_lines(write):
    source = JsonLines(write('{"a": 1}\n\n  {"b": [2]}  \r\n \t \n{"c": "é"}'))
    found = [(row.line, row.columns, row.problem) for row in source.rows()]
    assert found == [(1, {"a": 1}, ""), (3, {"b": [2]}, ""), (5, {"c": "é"}, "")]
    assert [row.end for row in source.rows()][-1] == source.size


def test_json_lines_behind_a_line(write):
    source = JsonLines(write('{"a": 1}\n\n{"a": 3}\n{"a": 4}\n'))
    assert [row.line for row in source.rows(after=1)] == [3, 4]
    assert [row.line for row in source.rows(after=4)] == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"prompt": ', "is no JSON: Expecting value (character 11)"),
        (b'{"a": 1} {"b": 2}', "is no JSON: Extra data (character 10)"),
        (b"[1, 2]", "is no JSON object"),
        (b'"text"', "is no JSON object"),
        (b"null", "is no JSON object"),
        (b'{"a": "\xff"}', "is not UTF-8 at byte 8"),
        (b"[" * 100_000, "is no JSON that can be read"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is no JSON that can be read"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else "",
)
def test_a_line_that_is_no_object_says_so_and_its_neighbours_are_read(write, line, problem):
    rows = [*JsonLines(write(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')).rows()]
    assert [row.line for row in rows] == [1, 2, 3]
    assert [bool(row.problem) for row in rows] == [False, True, False]
    assert rows[1].problem.startswith(problem)


def test_a_broken_line_is_told_as_it_was(write):
    source = JsonLines(write(b'{"a": \xff\n{"a": 1}\n'))
    assert [source.original(row) for row in source.rows()] == ['{"a": �', {"a": 1}]


@pytest.fixture(scope="module")
def lines_file(tmp_path_factory):
    return tmp_path_factory.mktemp("lines") / "lines"


@given(st.lists(st.binary(max_size=12) | st.sampled_from([b"\n", b"a\r\n", b"b\n\nc", b"x" * 25])))
def test_a_pipes_lines_are_those_of_the_file(lines_file, chunks):
    lines_file.write_bytes(b"".join(chunks))
    ours, theirs = os.pipe()
    with pytest.MonkeyPatch.context() as patched, os.fdopen(ours, "rb") as pipe:
        patched.setattr(lines, "MAX_LINE", 20)
        patched.setattr(lines, "CHUNK", 7)
        patched.setattr(lines, "POLL_S", 0.0)
        come = lines.lines_as_they_come(pipe)
        assert next(come) is None, "none has come"
        os.write(theirs, b"".join(chunks))
        os.close(theirs)
        assert [each for each in come if each is not None] == [*lines.lines_of(lines_file)]


@pytest.mark.parametrize("length", [90, 100, 101, 150, 201, 202, 303, 1000])
def test_a_line_that_no_call_could_carry_is_bad_and_never_whole_in_memory(write, monkeypatch, length):
    monkeypatch.setattr(lines, "MAX_LINE", 100)
    monkeypatch.setattr(jsonl, "SHOWN", 10)
    long = '{"a": "' + "x" * (length - 9) + '"}'
    content = f'{{"a": 1}}\n{long}\n{{"a": 3}}\n'
    rows = [*JsonLines(write(content)).rows()]
    assert [(row.line, row.columns.get("a")) for row in (rows[0], rows[2])] == [(1, 1), (3, 3)]
    assert rows[2].end == len(content)
    fits = length < 100  # with its line end
    assert rows[1].problem == ("" if fits else "is longer than 100 bytes")
    assert fits or rows[1].raw == long[:10].encode()


def test_a_scored_line_keeps_its_bytes(write):
    line = '{ "prompt":"a" ,"big":12345678901234567890,  "n":1.50, "x":"\\u00e9é", "x": NaN  }'
    (done,) = rewritten(JsonLines(write("\ufeff" + line + "   \n"))).decode().splitlines()
    assert done == line[:-1].rstrip() + ', "reward": 0.1, "raw_reward": -2.5, "token_count": 7}'


@given(
    st.dictionaries(
        st.text(min_size=1).filter(lambda name: name not in ADDED),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=5,
        ),
        min_size=1,
    ),
    st.sampled_from([None, 2]),
    st.booleans(),
)
def test_a_scored_line_is_the_object_with_new_members(columns, space, ascii_only):
    text = json.dumps(columns, ensure_ascii=ascii_only, separators=(",", " " * (space or 0) + ":"))
    line = text.encode("utf-8", "surrogatepass")
    source = JsonLines([(line, len(line))])
    (row,) = source.rows()
    if row.problem:
        assert not ascii_only, "lone surrogates are no UTF-8, but they are JSON's escapes"
        return
    file = io.BytesIO()
    source.sink(file, ADDED).write(row, NEW)
    assert json.loads(file.getvalue()) == {**columns, **NEW}


# --- CSV ---

TABLE = 'id,prompt,response\n1,a, b\n2,"a, ""x""","b\nc"\n\n3,é,\n'


def test_csv(write):
    source = Csv(write(TABLE, "rows.csv"))
    assert source.names == ["id", "prompt", "response"]
    assert [(row.line, [*row.columns.values()]) for row in source.rows()] == [
        (2, ["1", "a", " b"]),
        (3, ["2", 'a, "x"', "b\nc"]),
        (6, ["3", "é", ""]),
    ]
    assert [row.end for row in source.rows()][-1] == source.size


def test_csv_behind_a_line(write):
    source = Csv(write(TABLE, "rows.csv"))
    for after, places in ((0, [2, 3, 6]), (2, [3, 6]), (3, [6]), (6, [])):
        assert [row.line for row in source.rows(after)] == places


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_scored_record_keeps_its_bytes(write, end):
    table = f'"id",prompt,response{end}"1","a","b{end}c"{end}2, x ,y{end}'
    assert rewritten(Csv(write(table, "rows.csv"))).decode() == (
        f'"id",prompt,response,reward,raw_reward,token_count{end}'
        f'"1","a","b{end}c",0.1,-2.5,7{end}'
        f"2, x ,y,0.1,-2.5,7{end}"
    )


def test_a_last_record_without_a_line_end_gets_one(write):
    assert rewritten(Csv(write("prompt,response\na,b", "rows.csv"))).decode() == (
        "prompt,response,reward,raw_reward,token_count\na,b,0.1,-2.5,7\n"
    )


def test_components_are_json_in_a_cell(write):
    parts = [{"name": "x, y", "raw_reward": 1.0, "reward": 2.0}]
    new, added = {**NEW, "components": parts}, (*ADDED, "components")
    *_, cell = rewritten(Csv(write("prompt,response\na,b\n", "rows.csv")), new, added).decode().split(",7,")
    assert json.loads(cell.strip().strip('"').replace('""', '"')) == parts


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ("a", "has 1 values; the header names 2 columns"),
        ("a,b,c", "has 3 values; the header names 2 columns"),
        ('"a"x,b', "is no CSV: "),
    ],
)
def test_a_record_that_does_not_fit_says_so_and_its_neighbours_are_read(write, record, problem):
    source = Csv(write(f"prompt,response\na,b\n{record}\nc,d\n", "rows.csv"))
    rows = [*source.rows()]
    assert [row.line for row in rows] == [2, 3, 4]
    assert rows[1].problem.startswith(problem)
    assert source.original(rows[1]) == record
    assert rewritten(source).decode().splitlines()[1:] == ["a,b,0.1,-2.5,7", "c,d,0.1,-2.5,7"]


def test_a_quote_that_is_never_closed_is_one_bad_record(write):
    rows = [*Csv(write('prompt,response\na,b\nc,"d\ne,f\n', "rows.csv")).rows()]
    assert [(row.line, bool(row.problem)) for row in rows] == [(2, False), (3, True)]


def test_bytes_that_are_no_utf8_spoil_one_value_and_are_kept(write):
    source = Csv(write(b"id,prompt,response\n\xff,a,b\n2,\xfe,b\n", "rows.csv"))
    good, bad = source.rows()
    assert item_of(good, False, ADDED) == ("a", "b")
    with pytest.raises(BadRow, match="prompt has no valid Unicode at character 1"):
        item_of(bad, False, ADDED)
    assert rewritten(source).splitlines()[1] == b"\xff,a,b,0.1,-2.5,7"


def test_values_may_be_long(write):
    long = "x" * 1_000_000
    (row,) = Csv(write(f"prompt,response\na,{long}\n", "rows.csv")).rows()
    assert row.columns["response"] == long


@pytest.mark.parametrize("length", [90, 100, 101, 150, 201, 202, 303, 1000])
def test_a_record_that_no_call_could_carry_is_bad_and_never_whole_in_memory(write, monkeypatch, length):
    monkeypatch.setattr(lines, "MAX_LINE", 100)
    monkeypatch.setattr(csv_rows, "SHOWN", 10)
    long = "x" * (length - 3) + ",y"
    source = Csv(write(f"prompt,response\na,b\n{long}\nc,d\n", "rows.csv"))
    rows = [*source.rows()]
    assert [(row.line, [*row.columns.values()]) for row in (rows[0], rows[2])] == [
        (2, ["a", "b"]),
        (4, ["c", "d"]),
    ]
    assert rows[2].end == source.size
    fits = length <= 100  # with its line end
    assert rows[1].problem == ("" if fits else "is no CSV: its record is longer than 100 bytes at line 3")
    assert fits or rows[1].raw == long[:10].encode()


def test_a_record_of_many_lines_that_no_call_could_carry_is_bad(write, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE", 100)
    long = '"' + "x\n" * 49 + '",y'
    rows = [*Csv(write(f"prompt,response\na,b\n{long}\nc,d\n", "rows.csv")).rows()]
    assert [(row.line, bool(row.problem)) for row in rows] == [(2, False), (3, True), (53, False)]
    assert rows[1].problem == "is no CSV: its record is longer than 100 bytes at line 52"


def test_a_header_that_no_call_could_carry(write, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE", 100)
    with pytest.raises(FileError, match=r"rows\.csv: has no header that can be read: its record is longer"):
        open_source(write("x" * 1000, "rows.csv"), "csv", False, ADDED)


def test_a_byte_order_mark_belongs_to_no_column(write):
    source = Csv(write("\ufeffprompt,response\na,b\n", "rows.csv"))
    assert source.names == ["prompt", "response"]
    assert [row.end for row in source.rows()] == [source.size]


@pytest.mark.parametrize("content", ["", "\n", '"never closed'])
def test_csv_without_a_header(write, content):
    with pytest.raises(FileError, match=r"header|must name the columns"):
        Csv(write(content, "rows.csv"))


# --- Parquet ---


@pytest.fixture
def table():
    turns = [[{"role": "user", "content": str(number)}] for number in range(10)]
    return pa.table(
        {
            "id": pa.array(range(10), pa.uint16()),
            "messages": turns,
            "when": pa.array([1_000_000_001] * 10, pa.timestamp("ns")),
            "kind": pa.array(["x", None] * 5).dictionary_encode(),
            "data": [b"\xff"] * 10,
        }
    )


@pytest.fixture
def parquet_file(tmp_path, table):
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path, row_group_size=4)
    return path


def test_parquet(parquet_file, monkeypatch):
    monkeypatch.setattr(parquet, "BATCH_ROWS", 3)
    source = parquet.Parquet(parquet_file)
    rows = [*source.rows()]
    assert [(row.line, row.end) for row in rows] == [(n, n) for n in range(1, 11)]
    assert [row.columns["messages"][0]["content"] for row in rows] == [str(n) for n in range(10)]
    assert (source.size, source.names) == (10, ["id", "messages", "when", "kind", "data"])
    for after in range(11):
        assert [row.line for row in source.rows(after)] == [*range(after + 1, 11)]


@pytest.mark.parametrize("batch", [1, 3, 4, 100])
def test_scored_rows_keep_types_values_and_order(parquet_file, tmp_path, table, monkeypatch, batch):
    monkeypatch.setattr(parquet, "BATCH_ROWS", batch)
    source, kept = parquet.Parquet(parquet_file), [0, 1, 4, 5, 6, 9]
    (tmp_path / "out.parquet").write_bytes(rewritten(source, keep=lambda row: row.line - 1 in kept))
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.select(table.column_names).equals(table.take(kept))
    assert found.schema.field("reward").type == found.schema.field("raw_reward").type == pa.float32()
    assert found["raw_reward"].to_pylist() == [-2.5] * 6
    assert found["token_count"].to_pylist() == [7] * 6


def test_parquet_of_bad_rows_only_is_empty_and_whole(parquet_file, tmp_path):
    (tmp_path / "out.parquet").write_bytes(rewritten(parquet.Parquet(parquet_file), keep=lambda row: False))
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


def test_components_are_a_list_of_structs(parquet_file, tmp_path):
    parts = [{"name": "x", "raw_reward": 1.0, "reward": 2.0}]
    new, added = {**NEW, "components": parts}, (*ADDED, "components")
    (tmp_path / "out.parquet").write_bytes(rewritten(parquet.Parquet(parquet_file), new, added))
    assert pq.read_table(tmp_path / "out.parquet")["components"].to_pylist() == [parts] * 10


def test_an_original_row_has_all_its_columns(parquet_file):
    source = parquet.Parquet(parquet_file)
    first = source.original(next(source.rows()))
    assert (first["id"], first["data"]) == (0, b"\xff")


def test_what_is_no_parquet(write):
    with pytest.raises(FileError, match="is no Parquet that can be read"):
        parquet.Parquet(write("PAR1 and nothing else", "rows.parquet"))


def test_parquet_that_is_damaged_further_on(parquet_file):
    whole = bytearray(parquet_file.read_bytes())
    whole[200:260] = bytes(60)
    parquet_file.write_bytes(whole)
    with pytest.raises(FileError, match=r"rows\.parquet: can't be read behind row [0-9]+: "):
        open_source(parquet_file, "parquet", False, ())


def test_parquet_that_is_damaged_while_it_is_read(parquet_file):
    source = open_source(parquet_file, "parquet", False, ())
    whole = bytearray(parquet_file.read_bytes())
    whole[200:260] = bytes(60)
    parquet_file.write_bytes(whole)
    with pytest.raises(FileError, match=r"rows\.parquet: can't be read behind row [0-9]+: "):
        list(source.rows())


def test_without_pyarrow_the_extra_is_named(parquet_file):
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path\n"
        "from plaudit.files.formats import open_source\n"
        f"open_source(Path({str(parquet_file)!r}), 'parquet', False, ())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith("needs pyarrow: pip install 'plaudit[parquet]'")


def test_pyarrow_is_only_imported_for_parquet():
    code = "import sys, plaudit.files.formats; print('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# --- which format ---


@pytest.mark.parametrize(
    ("name", "format_"),
    [("a.jsonl", "jsonl"), ("a.ndjson", "jsonl"), ("a.CSV", "csv"), ("a.parquet", "parquet")],
)
def test_the_suffix_names_the_format(tmp_path, name, format_):
    assert format_of(tmp_path / name, None) == format_
    assert format_of(tmp_path / name, "csv") == "csv"


def test_an_unknown_suffix_is_asked_about(tmp_path):
    with pytest.raises(
        FileError, match=r"a\.txt: unknown suffix; name the format with --format jsonl\|csv\|parquet"
    ):
        format_of(tmp_path / "a.txt", None)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileError, match="no such file"):
        open_source(tmp_path / "a.jsonl", "jsonl", False, ADDED)
    with pytest.raises(FileError, match="no regular file"):
        open_source(tmp_path, "jsonl", False, ADDED)


def test_errors_of_a_file_name_it(write):
    path = write("a,b\n", "rows.csv")
    with pytest.raises(FileError, match=r"rows\.csv: has the columns a, b; needed are prompt and response"):
        open_source(path, "csv", False, ADDED)


# --- what of a row is scored ---


def row(**columns):
    return Row(1, 1, columns, "", None)


@pytest.mark.parametrize(
    ("columns", "ids", "item"),
    [
        ({"prompt": "a", "response": "b"}, False, ("a", "b")),
        ({"prompt": "", "response": ""}, False, ("", "")),
        ({"prompt": "a", "response": "b", "messages": [], "token_ids": [1]}, False, ("a", "b")),
        ({"prompt": "a", "response": "b", "token_ids": [1, 2]}, True, [1, 2]),
        ({"prompt": "a", "response": "b", "token_ids": None}, True, ("a", "b")),
        ({"token_ids": "[1, 2]"}, True, [1, 2]),
        ({"token_ids": []}, True, []),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, False, Chat([("user", "x")])),
        ({"messages": '[{"role": "user", "content": "x"}]'}, False, Chat([("user", "x")])),
        ({"prompt": "a", "messages": []}, False, Chat([])),
        ({"prompt": None, "response": "b", "messages": []}, False, Chat([])),
    ],
)
def test_items(columns, ids, item):
    assert item_of(row(**columns), ids, ADDED) == item


@pytest.mark.parametrize(
    ("columns", "ids", "words"),
    [
        ({}, False, "messages, or token_ids with --tokenizer-sha256; it has nothing"),
        ({"prompt": "a", "answer": "b"}, False, "it has prompt, answer"),
        ({"prompt": "a", "response": None}, False, "it has prompt"),
        ({"token_ids": [1]}, False, "it has token_ids"),
        ({"prompt": 5, "response": "b"}, False, "prompt is a number; it must be text"),
        ({"prompt": "a", "response": True}, False, "response is true or false; it must be text"),
        ({"prompt": "a", "response": ["b"]}, False, "response is a list; it must be text"),
        ({"prompt": "a", "response": "\ud800"}, False, "response has no valid Unicode at character 1"),
        ({"messages": {"role": "user"}}, False, "messages is an object; it must be a list of {"),
        ({"messages": ["hi"]}, False, "messages[0] must have role and content"),
        ({"messages": [{"role": "user"}]}, False, "messages[0] must have role and content"),
        (
            {"messages": [{"role": "user", "content": None}]}, False,
            "messages[0].content is null; it must be text",
        ),
        ({"messages": "hello"}, False, "messages is text that is no JSON"),
        ({"token_ids": 5}, True, "token_ids is a number; it must be a list of ids"),
        ({"token_ids": [1, -1]}, True, "token_ids[1] is -1, no token id"),
        ({"token_ids": [1, True]}, True, "token_ids[1] is True, no token id"),
        ({"token_ids": [2**32]}, True, "token_ids[0] is 4294967296, no token id"),
        (
            {"prompt": "a", "response": "b", "reward": 1}, False,
            "has a column 'reward', which the score would replace; rename it",
        ),
    ],
)  # fmt: skip
def test_rows_that_can_not_be_scored(columns, ids, words):
    with pytest.raises(BadRow) as caught:
        item_of(row(**columns), ids, ADDED)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("names", "ids", "words"),
    [
        (["prompt", "response", "reward"], False, "has a column 'reward' already"),
        (["prompt", "response", "id", "id"], False, "has two columns 'id'"),
        (["prompt"], False, "needed are prompt and response"),
        (["token_ids"], False, "needed are prompt and response"),
    ],
)
def test_headers_that_can_not_be(names, ids, words):
    with pytest.raises(FileError, match=words):
        check_columns(names, ids, ADDED)


@pytest.mark.parametrize(
    ("names", "ids"), [(["prompt", "response"], False), (["x", "messages"], False), (["token_ids"], True)]
)
def test_headers_that_can(names, ids):
    check_columns(names, ids, ADDED)
