"""What each method takes of a pool of labelled rows, with queries, scores and lengths given."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import glosses
from benchmarks.glosses import Rows, Split
from jsel.selection import select
from jsel.selection.subset import Subset
from jsel.selectors.methods import make
from jsel.selectors.parts import Ranking

GIVEN = ("queries", "score", "length")
# These draw nothing and read no queries: one answer for all seeds, of which qdit takes minutes.
UNSEEDED = ("deita", "longest", "qdit")
# What differs from the methods' defaults, so that k-means does not take the day.
CONSTANTS: dict[str, dict[str, Any]] = {
  "crds_r": {"layers": len(glosses.LAYERS)},
  "dac": {"iterations": 20},
  "km_closest": {"iterations": 5},
  "km_random": {"iterations": 20},
  "kmq": {"iterations": 20},
}


class Ranked(NamedTuple):
  """The answer for one budget."""

  ranking: Subset
  seconds: float  # of the call


def lacks(method: str, rows: Rows) -> str:
  """Which input of ``method`` there is none of, if any."""
  missing = [need for need in make(method).needs if need not in GIVEN]
  if method == "crds_r" and rows.layers is None:
    missing.append("hidden states of several layers")
  return ", ".join(missing)


def rankings(
  method: str,
  rows: Rows,
  parts: Split,
  losses: np.ndarray,
  *,
  seed: int,
  budgets: Sequence[float],
  constants: dict[str, Any],
) -> list[Ranked]:
  """One for each budget, ascending: rows enough to cut to that share of the rows or of the tokens.

  Methods with weights rank as many rows as are wanted, and are called for each budget. So is
  km_closest, which has a cluster for each row of the budget; of all others the ranking for the
  largest budget begins with that for any smaller one.
  """
  x = rows.layers if method == "crds_r" else rows.x
  assert x is not None
  length = rows.length[parts.pool].astype(np.int64)
  score = losses if method.startswith("sensitivity") else -losses
  picks, pool = x[glosses.queries(rows, parts, seed)], x[parts.pool]
  options = {"queries": picks, "columns": {"length": length, "score": score}, "seed": seed}

  def call(budget: float) -> Ranked:
    begun = time.perf_counter()
    own = constants
    wanted = count = round(budget * len(pool))
    if method == "km_closest":
      own = {"clusters": wanted} | constants
    if not make(method).weighted:
      count = min(2 * wanted, len(pool))
    while True:
      found = select(pool, method, count, unit="rows", **options, **own)
      weighed = found.weight is not None or length[found.index].sum() >= budget * length.sum()
      if weighed or count == len(pool):
        return Ranked(found, time.perf_counter() - begun)
      count = min(2 * count, len(pool))

  if method == "km_closest" or make(method).weighted:
    return [call(budget) for budget in budgets]
  return [call(budgets[-1])] * len(budgets)


def rankings_of_seeds(method: str, *args: Any, seeds: int, **options: Any) -> list[list[Ranked]]:
  """`rankings` of the seeds 0, 1, ...; worked out once where no seed is read."""
  if method in UNSEEDED:
    return [rankings(method, *args, seed=0, **options)] * seeds
  return [rankings(method, *args, seed=seed, **options) for seed in range(seeds)]


def cut(ranking: Ranking | Subset, length: np.ndarray, unit: str, budget: float) -> Ranking:
  """The first rows of ``ranking``, ``budget`` of all rows or of all tokens.

  Args:
    ranking: as `rankings` gives it.
    length: ``[n]`` of the whole pool.
    unit: "rows" or "tokens".
    budget: a share.

  Raises:
    ValueError: for tokens, if the ranking has weights, which hold for its number of rows.
  """
  if unit == "rows":
    count = round(budget * len(length))
  elif ranking.weight is not None:
    raise ValueError("weights hold for a number of rows, not of tokens")
  else:
    total = np.cumsum(length[ranking.index].astype(np.int64))
    count = int(np.searchsorted(total, round(budget * int(length.sum())), side="right"))
  columns = (getattr(ranking, name) for name in Ranking._fields)
  return Ranking(*(None if column is None else column[:count] for column in columns))
