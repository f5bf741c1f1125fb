"""Parquet files, read column by column and in small batches; the only importer of pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_rl.demos.data_errors import AGAIN, DemosError, damaged, extra_needed

BATCH_ROWS = 64  # rows with pictures are large
Columns = dict[str, list[Any]]


def column_names(file: Path) -> list[str]:
    """Return the names of the columns."""
    with _opened(file) as parquet:
        return list(parquet.schema_arrow.names)


def num_rows(file: Path) -> int:
    """Return the number of rows of a file."""
    with _opened(file) as parquet:
        return int(parquet.metadata.num_rows)


def read_columns(file: Path, columns: Sequence[str], start: int = 0, stop: int | None = None) -> Columns:
    """Return columns by name, rows `start` to `stop` of the file, as Python values."""
    values: Columns = {name: [] for name in columns}
    for batch in _batches(file, columns, start, stop, batch_rows=4096):
        for name in columns:
            values[name] += batch.column(name).to_pylist()
    return values


def read_table(
    file: Path, columns: Sequence[str], start: int, stop: int, *, optional: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Return columns of numbers or of lists of numbers: (rows,) or (rows, width) each.

    Args:
        file: The Parquet file.
        columns: Names of the columns.
        start: First row.
        stop: Row after the last one.
        optional: Names of further columns, which are left out if the file lacks them.

    Raises:
        DemosError: a column is missing, or its lists differ in length.
    """
    parts: dict[str, list[NDArray[Any]]] = {}
    for batch in _batches(file, columns, start, stop, batch_rows=4096, optional=optional):
        for name in batch.schema.names:
            parts.setdefault(name, []).append(_to_numpy(file, name, batch.column(name)))
    parts = {name: [] for name in columns} | parts
    return {name: np.concatenate(of_column) if of_column else np.zeros(0) for name, of_column in parts.items()}


def read_cells(file: Path, column: str, start: int, stop: int) -> Iterator[Any]:
    """Yield the cells of one column as Python values, a few rows at a time."""
    for batch in _batches(file, [column], start, stop, batch_rows=BATCH_ROWS):
        yield from batch.column(column).to_pylist()


def _to_numpy(file: Path, name: str, column: Any) -> NDArray[Any]:  # noqa: ANN401 - an array of pyarrow
    if not hasattr(column, "flatten") or column.type.num_fields == 0:
        return np.asarray(column.to_numpy(zero_copy_only=False))
    flat = np.asarray(column.flatten().to_numpy(zero_copy_only=False))
    lengths = {len(cell) if cell is not None else 0 for cell in column.to_pylist()}
    if len(lengths) != 1:
        raise DemosError(file, name, "all rows have the same length", found=f"lengths {sorted(lengths)}")
    return flat.reshape(len(column), lengths.pop())


def _batches(
    file: Path,
    columns: Sequence[str],
    start: int,
    stop: int | None,
    *,
    batch_rows: int,
    optional: Sequence[str] = (),
) -> Iterator[Any]:
    """Yield record batches that cover exactly the rows from `start` to `stop`; other row groups are not read."""
    with _opened(file) as parquet:
        names = parquet.schema_arrow.names
        for name in columns:
            if name not in names:
                raise DemosError(file, name, "is missing", found=", ".join(names), allowed="LeRobot's columns")
        chosen = [*columns, *(name for name in optional if name in names)]
        groups, first = [], 0
        end = parquet.metadata.num_rows if stop is None else stop
        skipped = None
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if first < end and first + rows > start:
                groups.append(group)
                skipped = first if skipped is None else skipped
            first += rows
        if stop is not None and stop > first:
            raise DemosError(file, "", "has too few rows", found=f"{first}", allowed=f"at least {stop}", fix=AGAIN)
        position = skipped or 0
        for batch in parquet.iter_batches(batch_size=batch_rows, row_groups=groups, columns=chosen):
            low, high = max(start - position, 0), min(end - position, batch.num_rows)
            position += batch.num_rows
            if low < high:
                yield batch.slice(low, high - low)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open a Parquet file; pyarrow's errors become errors that name the file."""
    with extra_needed("reading LeRobot datasets"):
        import pyarrow as arrow
        from pyarrow import parquet
    if not file.is_file():
        raise DemosError(file, "", "is missing", fix="fetch the whole dataset")
    try:
        with parquet.ParquetFile(file) as opened:
            yield opened
    except (arrow.ArrowException, OSError) as error:
        raise damaged(file, "cannot be read as parquet", found=str(error).split("\n")[0]) from error
