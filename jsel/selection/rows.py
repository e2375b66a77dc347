"""The rows of a subset themselves, as they are in the files of the pool."""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from jsel.data import files
from jsel.data.parquet_columns import opened
from jsel.selection.pool import ROWS, Part, Pool
from jsel.training import outputs

KINDS = ("jsonl", "parquet")


def check_kind(kind: str) -> None:
  """Raises a ValueError unless rows can be written as ``kind``, or are not to be written."""
  if kind not in ("", *KINDS):
    raise ValueError(
      f"--config.write_rows must be one of {', '.join(KINDS)}, or empty, got {kind!r}"
    )


def write_rows(folder: epath.Path, pool: Pool, index: np.ndarray, kind: str) -> epath.Path:
  """Writes ``rows.jsonl`` or ``rows.parquet``: all columns of the pool's files.

  Rows are in the pool's order, streamed: the i-th is that of the i-th smallest ``index``.

  Args:
    folder: to write into.
    pool: that was selected from.
    index: rows, in any order.
    kind: one of `KINDS`.

  Returns:
    The path of the file.

  Raises:
    ValueError: if files differ in their columns (parquet), or hold what JSON cannot (jsonl).
  """
  path = folder / f"rows.{kind}"
  with outputs.whole_file(path) as file:
    write = _write_jsonl if kind == "jsonl" else _write_parquet
    write(file, _tables(pool, np.sort(index)))
  return path


def _tables(pool: Pool, index: np.ndarray) -> Iterator[tuple[str, pa.Table]]:
  """The rows ``index``, ascending, with the file they are from, a few at a time."""
  start = 0
  for part in pool.parts:
    first, last = np.searchsorted(index, [start, start + part.size])
    wanted = index[first:last] - start
    start += part.size
    if wanted.size:
      for table in _of_part(part, wanted):
        yield part.path, table


def _of_part(part: Part, wanted: np.ndarray) -> Iterator[pa.Table]:
  if part.path.endswith(".parquet"):
    yield from _of_parquet(part.path, wanted)
    return
  if part.path.endswith((".jsonl", ".ndjson")):
    yield from _of_lines(part.path, wanted)
    return
  at = 0
  for piece in part.pieces():
    first, last = np.searchsorted(wanted, [at, at + len(piece)])
    if last > first:
      rows = wanted[first:last]
      values = pa.array(np.ravel(piece[rows - at]))
      embedding = pa.FixedSizeListArray.from_arrays(values, piece.shape[1])
      columns = {name: column.take(pa.array(rows)) for name, column in part.columns.items()}
      yield pa.table({"embedding": embedding, **columns})
    at += len(piece)


def _of_parquet(path: str, wanted: np.ndarray) -> Iterator[pa.Table]:
  with opened(path, in_order=True) as file:
    at = 0
    for group in range(file.num_row_groups):
      end = at + file.metadata.row_group(group).num_rows
      first, last = np.searchsorted(wanted, [at, end])
      if last > first:
        for batch in file.iter_batches(ROWS, row_groups=[group]):
          first, last = np.searchsorted(wanted, [at, at + len(batch)])
          if last > first:
            yield pa.Table.from_batches([batch]).take(pa.array(wanted[first:last] - at))
          at += len(batch)
      at = end


def _of_lines(path: str, wanted: np.ndarray) -> Iterator[pa.Table]:
  found: list[dict[str, Any]] = []
  ahead = iter(wanted.tolist())
  row = next(ahead)
  with files.open_file(path) as file:
    lines = (line for line in file if line.strip())
    for at, line in enumerate(lines):
      if at == row:
        found.append(json.loads(line))
        row = next(ahead, -1)
      if len(found) == ROWS or (row < 0 and found):
        yield pa.Table.from_pylist(found)
        found = []
      if row < 0:
        return


def _write_parquet(file: Any, tables: Iterator[tuple[str, pa.Table]]) -> None:
  writer, begun = None, ""
  try:
    for path, table in tables:
      if writer is None:
        writer, begun = pq.ParquetWriter(file, table.schema), path
      if not table.schema.equals(writer.schema):
        try:
          table = table.select(writer.schema.names).cast(writer.schema)
        except (KeyError, ValueError, pa.ArrowException) as error:
          raise ValueError(
            f"{path} has other columns than {begun} ({error}): set --config.write_rows=jsonl"
          ) from error
      writer.write_table(table)
  finally:
    if writer is not None:
      writer.close()


def _write_jsonl(file: Any, tables: Iterator[tuple[str, pa.Table]]) -> None:
  for path, table in tables:
    for row in table.to_pylist():
      try:
        try:
          text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=_as_text)
        except ValueError:
          text = json.dumps(_without_nan(row), ensure_ascii=False, default=_as_text)
      except TypeError as error:
        raise ValueError(f"{path}: {error}: set --config.write_rows=parquet") from error
      file.write(f"{text}\n".encode())


def _as_text(value: Any) -> str:
  if isinstance(value, bytes):
    raise TypeError("it has a column of bytes, which JSON cannot hold")
  return str(value)  # dates, decimals


def _without_nan(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _without_nan(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_without_nan(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
