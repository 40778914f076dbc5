"""Parquet that holds far more than its size: what it takes is bounded before it is read."""

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plaudit.files import parquet, parquet_trial
from plaudit.files.formats import open_source
from plaudit.files.rows import FileError

READ_ALL = """
import resource, sys
from pathlib import Path
from plaudit.files.formats import open_source
import pyarrow.parquet
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = peak()
try:
    for row in open_source(Path(sys.argv[1]), "parquet", False, ()).rows():
        assert row.columns["response"] == "no"
        if row.line >= 40:
            break
except Exception as error:
    print(error)
print(peak() - before)
"""

TOO_MUCH = "takes more than 1,024 MiB of memory to read; write it in smaller row groups"


def read(path):
    """What reading forty rows says, and the memory that it takes, in MiB; in a process of its own."""
    done = subprocess.run([sys.executable, "-c", READ_ALL, str(path)], capture_output=True, text=True)
    *words, memory = done.stdout.splitlines()
    return words, int(memory)


def packed(tmp_path, column, **how):
    """A file of rows whose prompt is `column`, which says nothing of how Arrow had it."""
    path = tmp_path / "packed.parquet"
    table = pa.table({"prompt": column, "response": ["no"] * len(column)})
    pq.write_table(table, path, compression="zstd", store_schema=False, **how)
    assert path.stat().st_size < 100_000
    return path


def test_one_text_in_every_row_takes_the_memory_of_few(tmp_path):
    """A batch of all of them would be 4 GiB."""
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), ["x" * (4 << 20)])
    words, memory = read(packed(tmp_path, same, dictionary_pagesize_limit=1 << 30))
    assert words == []
    assert memory < 400


def test_a_column_that_is_packed_out_of_proportion_is_refused_before_it_is_read(tmp_path):
    path = packed(tmp_path, ["x" * (100 << 20), "y"], use_dictionary=False)
    words, memory = read(path)
    assert [line.removeprefix(f"{path}: ").split(" has ")[0] for line in words] == ["row group 0"]
    assert "bytes of column 'prompt' packed into" in words[0]
    assert "write it again in smaller row groups" in words[0]
    assert memory < 90


def test_batches_go_by_the_bytes_of_their_row_group(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    rows = [f"{number:04}" * 25 for number in range(200)]
    pq.write_table(pa.table({"prompt": rows, "response": rows}), path, row_group_size=50, compression="none")
    monkeypatch.setattr(parquet, "BATCH_BYTES", 100_000)
    source = parquet.Parquet(path)
    found = [*source.rows()]
    assert [row.columns["prompt"] for row in found] == rows
    assert 4 < len({id(row.raw[0]) for row in found}) < 100
    with (tmp_path / "out.parquet").open("wb") as file:
        sink = source.sink(file, ["token_count"])
        for row in found:
            sink.write(row, {"token_count": 7})
        sink.close()
    assert pq.read_metadata(tmp_path / "out.parquet").num_row_groups == 1, "though of many batches"
    assert pq.read_table(tmp_path / "out.parquet")["prompt"].to_pylist() == rows


def test_a_list_of_one_text_a_million_times_is_refused_before_it_is_read(tmp_path):
    """Its footer tells of the one text only."""
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int32()), ["x" * 4096])
    path = packed(tmp_path, pa.ListArray.from_arrays([0, 1_000_000], same))
    assert path.stat().st_size < 20_000
    words, memory = read(path)
    assert words == [f"{path}: {TOO_MUCH}"]
    assert memory < 90


def test_a_footer_that_lies_is_not_believed(tmp_path):
    """It tells of four bytes, so that all rows are one batch, of 4 GiB."""
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), ["x" * (4 << 20)])
    path = packed(tmp_path, same, dictionary_pagesize_limit=1 << 30)
    whole, told = path.read_bytes(), varint(2 * size_told(path), 4)
    at = whole.rindex(told)
    path.write_bytes(whole[:at] + varint(2 * 4, 4) + whole[at + 4 :])
    assert size_told(path) == 4
    words, memory = read(path)
    assert words == [f"{path}: {TOO_MUCH}"]
    assert memory < 90


def size_told(path):
    return pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size


def varint(number, count):
    """In so many bytes, whether it needs them or not; seven bits in each, the lowest first."""
    return bytes(number >> 7 * at & 127 | (at < count - 1) << 7 for at in range(count))


def test_what_has_no_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_trial, "STARTS_S", 0.01)
    path = packed(tmp_path, ["x"] * 10)
    with pytest.raises(FileError, match=r"packed\.parquet: can't be read within 0 s"):
        open_source(path, "parquet", False, ())


def test_a_reader_that_is_killed_is_told_of():
    """What makes pyarrow crash isn't known, or it would be mended."""
    killed = subprocess.run(["sh", "-c", "kill -SEGV $$"], capture_output=True, text=True, check=False)
    assert parquet_trial._why(killed) == "can't be read: who tries is ended by SIGSEGV"
    failed = subprocess.run([sys.executable, "-c", "1 / 0"], capture_output=True, text=True, check=False)
    assert parquet_trial._why(failed) == "can't be read: ZeroDivisionError: division by zero"


def test_what_is_called_plaudit_where_the_caller_stands_is_not_run(tmp_path):
    (tmp_path / "plaudit").mkdir()
    (tmp_path / "plaudit" / "__init__.py").write_text("raise SystemExit('not meant')")
    path = packed(tmp_path, ["x"] * 40)
    code = (
        "import sys; from pathlib import Path; from plaudit.files.formats import open_source\n"
        "print(open_source(Path(sys.argv[1]), 'parquet', False, ()).size)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(path)], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("40\n", "")
