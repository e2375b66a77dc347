"""Rows that may not be taken, and why."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from jsel.selection.pool import Pool

REASONS = ("empty", "ngram", "similarity", "duplicate_text", "duplicate")


class Found(NamedTuple):
  """Rows that one search found, each once."""

  reason: str  # of `REASONS`
  index: np.ndarray  # [m] int32 rows of the pool
  matched: np.ndarray  # [m] int32, the row that is like it: of the pool, or of what is excluded
  similarity: np.ndarray  # [m] float32: a cosine, a Jaccard similarity, or a share of n-grams

  @classmethod
  def of(cls, reason: str, rows: list[tuple[int, int, float]]) -> "Found":
    """From (index, matched, similarity), in any order."""
    index, matched, similarity = zip(*sorted(rows), strict=True) if rows else ((), (), ())
    return cls(
      reason,
      np.array(index, np.int32),
      np.array(matched, np.int32),
      np.array(similarity, np.float32),
    )


class Searched(NamedTuple):
  """What all searches found."""

  mask: np.ndarray  # [n] bool, rows that may not be taken
  table: pa.Table  # a row for each of them
  counts: dict[str, int]  # by reason


def as_table(pool: Pool, found: list[Found]) -> Searched:
  """Searches one after another, each of what those before have left, as one table.

  Its columns: index and id; reason; matched_index and matched_id, of the row that stays instead;
  eval_row, of the rows that were excluded by, from 0; similarity.
  """
  mask = np.zeros(pool.size, bool)
  pieces = []
  for one in found:
    mask[one.index] = True
    inside = one.reason.startswith("duplicate")
    outside = one.reason in ("ngram", "similarity")
    matched = pa.array(one.matched, mask=np.full(len(one.index), not inside))
    columns = {
      "index": pa.array(one.index),
      "id": ids(pool, pa.array(one.index)),
      "reason": pa.array([one.reason] * len(one.index), pa.string()),
      "matched_index": matched,
      "matched_id": ids(pool, matched),
      "eval_row": pa.array(one.matched, mask=np.full(len(one.index), not outside)),
      "similarity": pa.array(one.similarity, mask=np.isnan(one.similarity)),
    }
    if "source" in pool.columns:
      columns["source"] = pool.columns["source"].take(pa.array(one.index)).combine_chunks()
    pieces.append(pa.table(columns))
  counts = {one.reason: len(one.index) for one in found}
  table = pa.concat_tables(pieces).sort_by("index") if pieces else pa.table({})
  return Searched(mask, table, counts)


def ids(pool: Pool, index: pa.Array) -> pa.Array:
  """The ids of rows, null where ``index`` is; their numbers where the pool has no ids."""
  if "id" not in pool.columns:
    return index
  taken = pool.columns["id"].take(index)
  return taken.combine_chunks() if isinstance(taken, pa.ChunkedArray) else taken


def by_source(table: pa.Table) -> list[str]:
  """A line for each reason, with the sources that most rows are from.

  >>> by_source(pa.table({"reason": ["ngram"] * 3, "source": ["a", "b", "a"]}))
  ['ngram: 3 (a 2, b 1)']
  """
  lines = []
  for reason in REASONS:
    rows = np.flatnonzero(np.array(table["reason"].to_pylist(), object) == reason)
    if not rows.size:
      continue
    of = ""
    if "source" in table.column_names:
      sources = table["source"].take(pa.array(rows)).value_counts().to_pylist()
      sources.sort(key=lambda entry: (-entry["counts"], str(entry["values"])))
      most = [f"{entry['values']} {entry['counts']:,}" for entry in sources[:MOST]]
      rest = [f"{len(sources) - MOST} more"] if len(sources) > MOST else []
      of = f" ({', '.join([*most, *rest])})"
    lines.append(f"{reason}: {rows.size:,}{of}")
  return lines


MOST = 8  # sources that are named
