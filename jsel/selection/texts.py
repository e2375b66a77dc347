"""Files of texts as parts of a pool: encoded once, and read from the cache block by block."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from jsel.data import chats
from jsel.data.embedding_cache import KEY, EmbeddingCache, text_keys
from jsel.data.text_files import TextFile, columns_of
from jsel.selection.pool import ROWS, Pool, Spans


class TextPart:
  """A file of texts, whose embeddings are in a cache once `scan` has been through `encode`.

  Args:
    file: of the rows.
    span: of a row that is embedded.
    template: that makes a text of its turns.
  """

  def __init__(self, file: TextFile, *, span: chats.Span, template: chats.Template):
    self.path, self._file = file.path, file
    self._span, self._template = span, template
    self.size, self.width = 0, 0
    self.columns: dict[str, pa.Array] = {}
    self.keys = np.zeros(0, KEY)
    self.empty = np.zeros(0, bool)  # [n], rows in which there is nothing to embed

  def scan(self) -> Iterator[str]:
    """The texts to embed, in order; at its end, `keys`, `empty` and `values` are of all rows."""
    keys, empty = bytearray(), []
    self.values: dict[str, list[Any]] = {name: [] for name in self._file.names}
    for where, chat, columns in self._file.rows():
      try:
        text = self._template(chats.spanned(chat, self._span))
        keys += text_keys([text]).tobytes()
      except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds half of a character ({error}): repair the row") from error
      except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
      empty.append(not text.strip())
      for name, column in self.values.items():
        column.append(columns[name])
      yield text
    self.keys, self.empty = np.frombuffer(bytes(keys), KEY), np.array(empty, bool)
    self.size = len(self.keys)

  def read_from(self, cache: EmbeddingCache) -> None:
    """Takes embeddings from ``cache``."""
    self._cache, self.width = cache, cache.width

  def pieces(self, spans: Spans | None = None) -> Iterator[np.ndarray]:
    """Its embeddings of the rows ``spans``, all if None (`jsel.selection.pool.Part`)."""
    for first, end in [(0, self.size)] if spans is None else spans:
      for at in range(first, end, ROWS):
        yield self._cache.read(self.keys[at : min(at + ROWS, end)])[0]

  def texts(self) -> Iterator[str]:
    """What was said in each row, all of it, whatever span is embedded."""
    for _, chat, _ in self._file.rows():
      yield chats.contents(chats.spanned(chat, "both"))


def make_parts(
  paths: list[str],
  names: Mapping[str, str | None],
  *,
  kind: str = "",
  column: str = "",
  span: chats.Span = "both",
  template: str = "",
) -> list[TextPart]:
  """A part for each file.

  Args:
    paths: .jsonl and .parquet files.
    names: of the columns beside the text (`TextFile`).
    kind: a `chats.Format`, or "".
    column: of the text, or "".
    span: of a row that is embedded.
    template: a file of a Jinja template; "" is `chats.joined`.

  Raises:
    ValueError: if a file, a column or the template is missing or broken.
  """
  write: Callable[..., str] = chats.open_template(template) if template else chats.joined
  options = {"kind": kind, "column": column, "names": names}
  return [TextPart(TextFile(path, **options), span=span, template=write) for path in paths]


def fill_columns(parts: list[TextPart], cache: EmbeddingCache, *, tokens: bool) -> None:
  """Gives scanned parts their columns, each of one type in all files.

  ``tokens`` makes a column "length", of the texts that are embedded before any cut, where no file
  has one.
  """
  for name in dict.fromkeys(name for part in parts for name in part.values):
    having = [part for part in parts if name in part.values]
    values = [*itertools.chain.from_iterable(part.values[name] for part in having)]
    whole = columns_of({name: values}, " and ".join(part.path for part in having[:2]))[name]
    at = 0
    for part in having:
      part.columns[name] = whole.slice(at, part.size)
      at += part.size
  for part in parts:
    if tokens and not any("length" in other.values for other in parts):
      part.columns["length"] = pa.array(cache.lengths(part.keys))
    part.values = {}


def text_parts(pool: Pool) -> list[TextPart] | None:
  """The parts of a pool of texts, None of one that came as embeddings."""
  parts = [part for part in pool.parts if isinstance(part, TextPart)]
  return parts if len(parts) == len(pool.parts) else None
