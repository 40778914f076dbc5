"""Parquet, with pyarrow, which the [parquet] extra brings. Columns keep their types.

A file may be far smaller than what it holds: a text that a million rows have is in it once, and a long run of
one letter takes no room. How much is read at a time goes by the sizes that its footer tells. It may lie,
and what a list in a row comes to isn't in it: so all is tried out first; see parquet_trial.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from plaudit.files.parquet_trial import check_readable
from plaudit.files.rows import FORMS, FileError, Row

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH_ROWS = 4096
"""Rows that are in memory at a time, and of a row group that is written, at most ..."""
BATCH_BYTES = 64 << 20
"""... and about how many bytes, if they come in more than one row."""
MAX_PACKING = 100
"""Times that a column of a row group of more than BATCH_BYTES may be larger than it is in the file: texts
shrink to a tenth, seldom to a thirtieth."""
_READ_AHEAD = 1 << 20


class Parquet:
    """Rows of a Parquet file."""

    def __init__(self, path: Path) -> None:
        """Has all tried out, and reads the schema. Raises FileError, also where pyarrow is missing."""
        self._path = path
        check_readable(path)
        with _opened(path) as file:
            self.schema = file.schema_arrow
            self.size = file.metadata.num_rows
        self.names = list(self.schema.names)

    def rows(self, after: int = 0) -> Iterator[Row]:
        """Those behind row `after`, from 1. Raises FileError where the file isn't any more what it was."""
        try:
            yield from _read(self._path, after)
        except FileError as error:
            raise FileError(f"{self._path}: {error}") from None
        except MemoryError:
            raise FileError(f"{self._path}: takes more memory to read than there is") from None

    def original(self, row: Row) -> object:
        """The row as plain values."""
        batch, index = row.raw
        columns = zip(batch.schema.names, batch.columns, strict=True)
        return {name: _plain(column[index]) for name, column in columns}

    def sink(self, file: BinaryIO, added: Sequence[str]) -> "ParquetSink":
        """Writes rows of this file with the columns `added` to `file`."""
        return ParquetSink(file, self.schema, added)


class ParquetSink:
    """Writes scored rows, in row groups of several of the batches that they come from if those are small."""

    def __init__(self, file: BinaryIO, schema: "pa.Schema", added: Sequence[str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._added = [(name, _type(name)) for name in added]
        for name, type_ in self._added:
            schema = schema.append(pa.field(name, type_))
        self._schema = schema
        self._writer = pq.ParquetWriter(file, schema, compression="zstd")
        self._batch: pa.RecordBatch | None = None
        self._kept: list[int] = []
        self._values: list[Mapping[str, Any]] = []
        self._waiting: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def write(self, row: Row, values: Mapping[str, Any]) -> None:
        """Adds a row with its new values; it is written with others."""
        batch, index = row.raw
        if batch is not self._batch:
            self._finish_batch()
            self._batch = batch
        self._kept.append(index)
        self._values.append(values)

    def close(self) -> None:
        """Writes what waits, and the file's footer."""
        self._finish_batch()
        self._flush()
        self._writer.close()

    def _finish_batch(self) -> None:
        import pyarrow as pa

        if self._batch is None or not self._kept:
            return
        columns = self._batch.take(pa.array(self._kept)).columns
        new = [pa.array([value[name] for value in self._values], type_) for name, type_ in self._added]
        self._kept.clear()
        self._values.clear()
        done = pa.RecordBatch.from_arrays([*columns, *new], schema=self._schema)
        self._waiting.append(done)
        self._rows += done.num_rows
        self._bytes += done.nbytes
        if self._rows >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting, self._schema))
            self._waiting.clear()
            self._rows = self._bytes = 0


def read_through(path: Path) -> None:
    """Reads all rows, and keeps none. Raises FileError for what `Parquet` doesn't read, MemoryError."""
    for _ in _read(path):
        pass


def _read(path: Path, after: int = 0) -> Iterator[Row]:
    import pyarrow as pa

    number = 0
    with _opened(path) as file:
        _check_packing(file.metadata)
        try:
            for batch in _batches(file):
                if number + batch.num_rows > after:
                    yield from _rows(batch, number, max(0, after - number))
                number += batch.num_rows
        except MemoryError:  # one of Arrow's own
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise FileError(f"can't be read behind row {number}: {error}") from None


def _opened(path: Path) -> "pq.ParquetFile":
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise FileError("needs pyarrow: pip install 'plaudit[parquet]'") from None
    try:
        return pq.ParquetFile(path, buffer_size=_READ_AHEAD)  # else a column of a row group is read at once
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names that aren't UTF-8
        raise FileError(f"is no Parquet that can be read: {error}") from None


def _check_packing(metadata: "pq.FileMetaData") -> None:
    """Raises FileError for a column that takes memory out of proportion to the file."""
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            size, packed = column.total_uncompressed_size, column.total_compressed_size
            if size > BATCH_BYTES and size > MAX_PACKING * packed:
                raise FileError(
                    f"row group {group} has {size:,} bytes of column {column.path_in_schema!r} packed into "
                    f"{packed:,}, and may pack {MAX_PACKING} into one; write it again in smaller row groups"
                )


def _batches(file: "pq.ParquetFile") -> "Iterator[pa.RecordBatch]":
    """Each row of a group may have any of the texts in it, so that rows × size of the group is the bound."""
    metadata = file.metadata
    for group in range(metadata.num_row_groups):
        columns = (metadata.row_group(group).column(index) for index in range(metadata.num_columns))
        size = sum(column.total_uncompressed_size for column in columns)
        yield from file.iter_batches(max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, size))), [group])


def _rows(batch: "pa.RecordBatch", number: int, start: int) -> Iterator[Row]:
    forms = batch.select([name for name in batch.schema.names if name in FORMS])
    try:
        found = [(columns, "") for columns in forms.slice(start).to_pylist()]
    except (ValueError, OverflowError):
        found = [_alone(forms.slice(index, 1)) for index in range(start, forms.num_rows)]
    for index, (columns, problem) in enumerate(found, start=start):
        yield Row(number + index + 1, number + index + 1, columns, problem, (batch, index))


def _alone(row: "pa.RecordBatch") -> tuple[dict[str, Any], str]:
    """Columns of the one row of a batch, and what is wrong with them."""
    try:
        return row.to_pylist()[0], ""
    except (ValueError, OverflowError) as error:
        return {}, f"can't be read: {error}"


def _plain(value: "pa.Scalar[Any]") -> object:
    try:
        return value.as_py()
    except (ValueError, OverflowError):  # text that isn't UTF-8, a date after the year 9999
        return f"a {value.type} that can't be read"


def _type(name: str) -> "pa.DataType":
    import pyarrow as pa

    if name == "components":
        parts = [("name", pa.string()), ("raw_reward", pa.float32()), ("reward", pa.float32())]
        return pa.list_(pa.struct(parts))
    return pa.float32() if name in ("reward", "raw_reward") else pa.int32()
