"""Rows of text in .jsonl and .parquet files, read one after another."""

import contextlib
import difflib
import io
import json
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import pyarrow as pa

from jsel.data import chats, files
from jsel.data.parquet_columns import opened

ROWS = 4096  # of a parquet file, in memory at a time
LINES = (".jsonl", ".ndjson")
READ = 1 << 20  # bytes of a jsonl file


class TextFile:
  """A file of chats, instructions or plain texts.

  Args:
    path: a .jsonl or .parquet file, local or remote.
    kind: a `chats.Format`, that of all rows; "" finds it out from the first.
    column: of the text or the turns; "" is that of the format.
    names: further columns that `columns_of` gives: by what they mean, what they are called; where
      None, one of that very name is taken if the first row has it; "" takes none.

  Raises:
    ValueError: if the file is missing, broken, of another kind or without rows, or the first row
      lacks a column, naming the nearest.
  """

  def __init__(
    self,
    path: str,
    *,
    kind: str = "",
    column: str = "",
    names: Mapping[str, str | None] | None = None,
  ):
    self.path = path
    self._columns: list[str] | None = None
    with contextlib.closing(self._rows()) as rows:
      first = next(rows, None)
    if first is None:
      raise ValueError(f"{path} has no rows: leave it out")
    where, row = first
    try:
      self.layout = chats.layout_of(row, kind=kind, column=column)
    except ValueError as error:
      raise ValueError(f"{where}: {error}") from error
    self.names = {}
    for meaning, name in (names or {}).items():
      if name and name not in row:
        near = difflib.get_close_matches(name, row, 1, 0)
        raise ValueError(
          f"{where} has no column {name!r}: did you mean {near[0]!r}? Set"
          f" --config.columns.{meaning} to one of {', '.join(row)}"
        )
      if name or (name is None and meaning in row):
        self.names[meaning] = name or meaning
    needed = {self.layout.column, *self.names.values()}
    if self.layout.kind == "alpaca":
      needed |= {"input", "output"}
    self._columns = [name for name in row if name in needed]

  def rows(self) -> Iterator[tuple[str, chats.Chat, dict[str, Any]]]:
    """Of each row, in order: where it is, for messages; who said what; the columns ``names``.

    Raises:
      ValueError: for a row that cannot be read, naming file and line.
    """
    for where, row in self._rows():
      try:
        chat = chats.read_chat(row, self.layout)
      except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
      yield where, chat, {meaning: row.get(name) for meaning, name in self.names.items()}

  def _rows(self) -> Generator[tuple[str, Mapping[str, Any]]]:
    if self.path.endswith(LINES):
      return _json_lines(self.path)
    if self.path.endswith(".parquet"):
      return _parquet_rows(self.path, self._columns)
    raise ValueError(f"{self.path} is of an unknown kind: texts are in .jsonl or .parquet")


def columns_of(values: Mapping[str, list[Any]], path: str) -> dict[str, pa.Array]:
  """Lists of what rows have in a column, as arrays.

  Raises:
    ValueError: if a column has values of several kinds.
  """
  columns = {}
  for name, column in values.items():
    try:
      columns[name] = pa.array(column)
    except (pa.ArrowException, OverflowError) as error:
      text = " ".join(str(error).split())
      raise ValueError(f"{path}: values of {name} are of several kinds ({text})") from error
  return columns


def _json_lines(path: str) -> Generator[tuple[str, Mapping[str, Any]]]:
  """Where each row is, and the row; empty lines are none."""
  with files.open_file(path) as handle, io.BufferedReader(handle, READ) as file:  # pyrefly: ignore
    for number, line in enumerate(file, 1):
      if not line.strip():
        continue
      where = f"{path}:{number}"
      try:
        row = json.loads(line)
      except ValueError as error:
        raise ValueError(f"{where} is no JSON ({error}): repair or drop the line") from error
      if not isinstance(row, dict):
        raise ValueError(f"{where} is a {type(row).__name__}, expected an object: drop the line")
      yield where, row


def _parquet_rows(path: str, columns: list[str] | None) -> Generator[tuple[str, Mapping[str, Any]]]:
  start = 0
  with opened(path) as file:
    for batch in file.iter_batches(ROWS, columns=columns):
      for place, row in enumerate(batch.to_pylist()):
        yield f"{path}, row {start + place}", row
      start += batch.num_rows
