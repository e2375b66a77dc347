"""Pools of embeddings: arrays or files, read block by block."""

import bisect
import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jsel.data import files
from jsel.data.digest import combined, files_sha256
from jsel.data.parquet_columns import input_array, opened
from jsel.selection import slices

ROWS = 16_384  # read from a file at a time
COLUMNS = ("id", "group", "source", "length", "score")
Spans = list[tuple[int, int]]  # rows from the first up to the second, ascending and apart


class Part(Protocol):
  """One file, or one array."""

  path: str
  size: int
  width: int
  columns: dict[str, pa.Array]

  def pieces(self, spans: Spans | None = None) -> Iterator[np.ndarray]:
    """Its embeddings of the rows ``spans`` (all if None), in order, a few at a time, ``[m, d]``."""
    ...


class Pool:
  """Rows of several parts, one after another.

  Raises:
    ValueError: if there are no rows, or parts differ in width or columns.
  """

  def __init__(
    self, parts: list[Part], sha256: str = "", names: Mapping[str, str | None] | None = None
  ):
    self.parts, self.sha256, self._names = parts, sha256, names or {}
    self.size, self.width = sum(part.size for part in parts), parts[0].width
    if not self.size:
      raise ValueError(f"{parts[0].path} has no rows: give at least one")
    for part in parts[1:]:
      if part.width != self.width:
        raise ValueError(
          f"{part.path} has embeddings of {part.width} columns, {parts[0].path} of {self.width}:"
          " embed both with the same model"
        )
    self.columns: dict[str, pa.ChunkedArray] = {}
    for name in {name for part in parts for name in part.columns}:
      lacking = [part.path for part in parts if name not in part.columns]
      if lacking:
        raise ValueError(f"{lacking[0]} has no column for {name}, other files have one")
      kinds = {str(part.columns[name].type): part.path for part in parts}
      if len(kinds) > 1:
        told = " and ".join(f"{kind} in {path}" for kind, path in [*kinds.items()][:2])
        raise ValueError(f"the column for {name} holds {told}: store it as one type in all files")
      self.columns[name] = pa.chunked_array([part.columns[name] for part in parts])

  def blocks(
    self, rows: int, start: int = 0, *, own: tuple[int, int] | None = None
  ) -> Iterator[np.ndarray]:
    """Embeddings in order from the row ``start``, float32 ``[rows, d]``, the last one shorter.

    Each is memory of its own.

    Args:
      rows: of a block.
      start: of the pool, where the first block begins.
      own: rows of each block, from the first up to the second, that are read and given; all if
        None. Arrays and encoded texts are read at those rows alone, of a parquet file the row
        groups that have some: to skip the rest, they must be smaller than a block.
    """
    first, end = own or (0, rows)
    part = lambda at: (min(at + first, self.size), min(at + end, self.size))
    spans = [part(at) for at in range(start, self.size, rows)]
    pieces = self._pieces([(start, self.size)] if end - first == rows else spans)
    rest = np.empty((0, self.width), np.float32)
    for first, end in spans:
      block, filled = np.empty((end - first, self.width), np.float32), 0
      while filled < len(block):
        rest = rest if len(rest) else next(pieces)
        taken = min(len(rest), len(block) - filled)
        block[filled : filled + taken] = rest[:taken]
        rest, filled = rest[taken:], filled + taken
      yield block

  def _pieces(self, spans: Spans) -> Iterator[np.ndarray]:
    """The rows ``spans`` of all parts."""
    start = 0
    for part in self.parts:
      inside = within(spans, start, start + part.size)
      if inside:
        yield from part.pieces([(first - start, end - start) for first, end in inside])
      start += part.size

  def numbers(self, name: str) -> np.ndarray | None:
    """The column ``name`` as float64, NaN where there is no value; None if there is none."""
    if name not in self.columns:
      return None
    if not self.is_numeric(name):
      raise ValueError(
        f"{self.parts[0].path}: column {(self._names.get(name) or name)!r} for {name} holds"
        f" {self.columns[name].type}: expected numbers, set --config.columns.{name} to a column of"
        " them"
      )
    return self.columns[name].cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)

  def is_numeric(self, name: str) -> bool:
    """Whether the column ``name`` is there and holds numbers."""
    if name not in self.columns:
      return False
    kind = self.columns[name].type
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)

  def check_ids(self) -> None:
    """Raises a ValueError that names the first row without an id, or the first id that is twice."""
    if "id" not in self.columns:
      return
    ids = self.columns["id"]
    remedy = "or set --config.columns.id= to go by row numbers"
    if ids.null_count:
      row = int(np.flatnonzero(ids.is_null().to_numpy())[0])
      raise ValueError(
        f"{ids.null_count} rows have no id, the first is {self._where(row)}: give it one, {remedy}"
      )
    counts = pc.value_counts(ids)  # pyrefly: ignore[missing-attribute]
    twice = np.flatnonzero(counts.field("counts").to_numpy() > 1)
    if twice.size:
      value = counts.field("values")[int(twice[0])].as_py()
      rows = [row for row, other in enumerate(ids.to_pylist()) if other == value][:2]
      raise ValueError(
        f"{twice.size} ids are there more than once, the first is {value!r}, in"
        f" {' and '.join(map(self._where, rows))}: make them distinct, {remedy}"
      )

  def _where(self, row: int) -> str:
    ends = np.cumsum([part.size for part in self.parts])
    number = int(np.searchsorted(ends, row, side="right"))
    part = self.parts[number]
    return f"row {row - int(ends[number]) + part.size} of {part.path}"


class ArrayPart:
  """An array in memory, a memory map, or one in a file."""

  def __init__(
    self,
    x: np.ndarray | slices.Slices,
    columns: Mapping[str, Any] | None = None,
    path: str = "pool",
  ):
    if x.ndim != 2 or not x.shape[1] or x.dtype.kind != "f":
      raise ValueError(f"{path}: embeddings must be floats [n, d], got {x.dtype}{x.shape}")
    self.path, self._x = path, x
    self.size, self.width = x.shape
    self.columns = {name: pa.array(column) for name, column in (columns or {}).items()}
    for name, column in self.columns.items():
      if len(column) != self.size:
        raise ValueError(f"{path}: {self.size} embeddings but {len(column)} values of {name}")

  def pieces(self, spans: Spans | None = None) -> Iterator[np.ndarray]:
    """Its embeddings (`Part.pieces`)."""
    for first, end in [(0, self.size)] if spans is None else spans:
      for at in range(first, end, ROWS):
        yield self._x[at : min(at + ROWS, end)]


class ParquetPart:
  """A parquet file; lists of float16, float32 or float64 are embeddings."""

  def __init__(self, path: str, names: Mapping[str, str]):
    self.path, self._column = path, names["embedding"]
    with opened(path) as file:
      schema, self.size = file.schema_arrow, file.metadata.num_rows
      _find(path, schema.names, "embedding", self._column)
      wanted = {name: names[name] for name in COLUMNS if names.get(name)}
      for name, column in wanted.items():
        _find(path, schema.names, name, column)
      for name in COLUMNS:
        if names.get(name) is None and name in schema.names:
          wanted[name] = name
      table = file.read(columns=list(wanted.values()))
      self.columns = {n: table.column(c).combine_chunks() for n, c in wanted.items()}
    kind = schema.field(self._column).type
    if not pa.types.is_nested(kind) or not pa.types.is_floating(kind.value_type):
      raise ValueError(f"{path}: column {self._column!r} is {kind}: expected lists of floats")
    first = next(self.pieces(), None)
    self.width = 1 if first is None else first.shape[1]

  def pieces(self, spans: Spans | None = None) -> Iterator[np.ndarray]:
    """Its embeddings (`Part.pieces`); row groups that have none of the rows are not read."""
    spans = [(0, self.size)] if spans is None else spans
    with opened(self.path, in_order=True) as file:
      counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
      edges = np.cumsum([0, *counts]).tolist()
      wanted = [g for g in range(len(counts)) if within(spans, edges[g], edges[g + 1])]
      breaks = np.flatnonzero(np.diff(wanted) > 1) + 1
      for groups in np.split(np.array(wanted, int), breaks) if wanted else ():
        yield from self._cut(file, groups.tolist(), edges[groups[0]], spans)

  def _cut(
    self, file: pq.ParquetFile, groups: list[int], start: int, spans: Spans
  ) -> Iterator[np.ndarray]:
    """Of row groups that follow each other, the first at row ``start``, what is in ``spans``."""
    for batch in file.iter_batches(ROWS, row_groups=groups, columns=[self._column]):
      inside = within(spans, start, start + len(batch))
      if inside:
        column = batch.column(0).cast(pa.list_(pa.float32()))
        x = input_array(column, start=start, path=self.path)
        yield from (x[first - start : end - start] for first, end in inside)
      start += len(batch)


def within(spans: Spans, start: int, end: int) -> Spans:
  """What of ``spans`` is in the rows from ``start`` up to ``end``.

  >>> within([(0, 4), (6, 9), (9, 12)], 3, 8)
  [(3, 4), (6, 8)]
  """
  at = bisect.bisect_right(spans, start, key=lambda span: span[1])
  found: Spans = []
  while at < len(spans) and spans[at][0] < end:
    first, last = max(spans[at][0], start), min(spans[at][1], end)
    if first < last:
      found.append((first, last))
    at += 1
  return found


def open_pool(patterns: str, names: Mapping[str, str], *, key: str) -> Pool:
  """The pool in the files ``patterns``: .parquet, .npy, .npz or .safetensors, local or remote.

  Args:
    patterns: paths or globs, separated by commas.
    names: the columns (of npz and safetensors, arrays) for "embedding" and those of `COLUMNS`;
      where None, one of that very name is taken if it is there; "" takes none.
    key: of the config, for messages.

  Raises:
    ValueError: if a file is missing, broken or of an unknown kind, or lacks a column.
  """
  paths = files.expand(patterns, remedy=f"correct --config.{key}")
  names = {**names, "embedding": names.get("embedding") or "embedding"}
  parts = [_part(path, names) for path in paths]
  return Pool(parts, combined("pool", files_sha256(paths)), names)


def _part(path: str, names: Mapping[str, str]) -> Part:
  if path.endswith(".parquet"):
    return ParquetPart(path, names)
  if path.endswith(".npy"):
    return ArrayPart(slices.npy_rows(path), path=path)
  if path.endswith(".npz"):
    return _of_arrays(path, *slices.npz_arrays(path), names)
  if path.endswith(".safetensors"):
    return _of_arrays(path, *slices.safetensors_arrays(path), names)
  raise ValueError(f"{path} is of an unknown kind: give .parquet, .npy, .npz or .safetensors")


def _of_arrays(path: str, there: list[str], read: Any, names: Mapping[str, str]) -> ArrayPart:
  _find(path, there, "embedding", names["embedding"])
  columns = {}
  for name in COLUMNS:
    column = names.get(name)
    if column:
      _find(path, there, name, column)
    if column or (column is None and name in there):
      columns[name] = read(column or name)[:]
  return ArrayPart(read(names["embedding"]), columns, path)


def _find(path: str, there: list[str], name: str, column: str) -> None:
  if column not in there:
    near = difflib.get_close_matches(column, there, 1, 0)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
      f"{path} has no column {column!r}: {hint}Set --config.columns.{name} to one of"
      f" {', '.join(there)}"
    )
