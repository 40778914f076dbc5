"""Parquet that holds far more than its size: what is read at a time is bounded before it is read."""

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq

from plaudit.files import parquet

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
    """Each batch of 4,096 rows would be 16 GiB."""
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), ["x" * (4 << 20)])
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
