"""What of a ranking is taken, and the table of it."""

from os.path import basename
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from jsel.data.subset_pool import PoolFacts, ids_sha256
from jsel.selection.constraints import Limits, keep
from jsel.selection.pool import Pool
from jsel.selectors.parts import Ranking


class Subset(NamedTuple):
  """The rows that are taken, by rank, and why each was; None where that is not known."""

  index: np.ndarray  # [m] int32 rows of the pool
  score: np.ndarray  # [m] float32, what the method ranks by; NaN where it did not rank the row
  weight: np.ndarray | None = None  # [m] float32 of the row's loss; None: all are 1
  query: np.ndarray | None = None  # [m] int32, the query (of its task) that picked the row; -1
  similarity: np.ndarray | None = None  # [m] float32, to that query
  cluster: np.ndarray | None = None  # [m] int32, the cluster that it was picked from
  task: np.ndarray | None = None  # [m] int32, into ``tasks``; -1
  taken_by: np.ndarray | None = None  # [m] str, "method", "floor" or "must_include"
  tasks: tuple[str, ...] = ()  # names of the sets of queries


def within(
  ranking: Ranking, count: int, must: int, *, tokens: np.ndarray | None, budget: float, rows: int
) -> Subset | None:
  """The first rows of a ranking within the budget; None if it is too short to tell.

  Args:
    ranking: that begins with the rows that must be taken.
    count: rows of the budget, where ``tokens`` is None.
    must: how many must be taken.
    tokens: of the rows of the ranking, if they are what the budget counts.
    budget: tokens that may be taken.
    rows: that there are to rank.

  Raises:
    ValueError: if those that must be taken have more tokens than the budget.
  """
  m = min(count, len(ranking.index))
  if tokens is not None:
    total = np.cumsum(tokens)
    m = int(np.searchsorted(total, budget, side="right"))
    if m < must:
      raise ValueError(
        f"must_include has {total[must - 1]:.0f} tokens, the budget is {budget:.0f}: raise it"
      )
    if m == len(total) < rows:
      return None
  elif ranking.weight is None and m < count:
    return None
  taken_by = np.where(np.arange(m) < must, "must_include", "method") if must else None
  return _subset(ranking, np.arange(m), taken_by)


def within_limits(ranking: Ranking, count: int, limits: Limits, must: np.ndarray) -> Subset | None:
  """The ``count`` rows of highest rank that keep to the limits; None if it is too short to tell.

  Args:
    ranking: that begins with the rows ``must``.
    count: rows of the budget.
    limits: of sources, whose lower ones have room for ``must``.
    must: rows that must be taken.
  """
  kept = keep(ranking, limits, limits.lower, count)
  if kept is None:
    return None
  at = np.flatnonzero(kept)
  held = np.bincount(limits.source[must], minlength=len(limits.names))
  unforced = keep(ranking, limits, held, count)
  assert unforced is not None
  taken_by = np.where(unforced, "method", "floor")
  taken_by = np.where(np.arange(len(kept)) < must.size, "must_include", taken_by)
  return _subset(ranking, at, taken_by[at])


def _subset(ranking: Ranking, at: np.ndarray, taken_by: np.ndarray | None) -> Subset:
  taken = (None if column is None else column[at] for column in ranking)
  return Subset(*taken, taken_by=taken_by)


def subset_table(pool: Pool, subset: Subset) -> pa.Table:
  """A row for each that is taken, by rank."""
  m = len(subset.index)
  columns = {"index": subset.index, "id": subset.index}
  for name in ("id", "group", "source"):
    if name in pool.columns:
      columns[name] = pool.columns[name].take(pa.array(subset.index))
  weight = np.ones(m, np.float32) if subset.weight is None else subset.weight
  columns |= {"score": subset.score, "weight": weight, "rank": np.arange(m, dtype=np.int32)}
  if subset.task is not None:
    names = [*subset.tasks, None]  # -1 is the last
    columns["task"] = pa.array([names[task] for task in subset.task], pa.string())
  for name in ("query", "similarity", "cluster", "taken_by"):
    if getattr(subset, name) is not None:
      columns[name] = getattr(subset, name)
  return pa.table(columns)


def pool_facts(pool: Pool, id_column: str, files_sha256: str) -> PoolFacts:
  """By what ``pool`` is known again.

  Args:
    pool: that was selected from.
    id_column: what its files call the column of ids, if there is one.
    files_sha256: `jsel.data.digest.files_sha256` of its files.
  """
  facts = PoolFacts(
    rows=pool.size,
    width=pool.width,
    columns=sorted(pool.columns),
    files=[basename(part.path) for part in pool.parts],
    files_sha256=files_sha256,
  )
  if "id" not in pool.columns:
    return facts
  return facts._replace(id_column=id_column, ids_sha256=ids_sha256([pool.columns["id"]]))
