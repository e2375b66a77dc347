"""How much two subsets of the same budget have in common, and what a subset is made of.

    python -m benchmarks.subset_overlap

The pool, the queries and the budget of 3.5 % of its rows are those of
benchmarks/subset_accuracy.py. Overlap is Jaccard's: rows in both over rows in either; two random
subsets of a share b have b / (2 - b). Between methods, at the same seed; between seeds, which draw
other queries; and with the subset of one query fewer, of all 208 or of the 8 of one class alone.
Then the mean length of what is taken, and how far its classes are from the pool's (half the sum of
the differences of shares).

Leaves benchmarks/results/subset_overlap.json.
"""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import glosses
from benchmarks.glosses import Rows, Split
from benchmarks.kernels.cases import RESULTS
from benchmarks.machine import machine
from benchmarks.rankings import CONSTANTS, cut, lacks, rankings_of_seeds
from jsel.selection import select
from jsel.selection.compare import jaccard
from jsel.selectors.methods import METHODS, make

PATH = RESULTS / "subset_overlap.json"
BUDGET = 0.035
OF_QUERIES = ("rds", "crds_w", "crds_r")


def subsets(
  methods: Sequence[str], rows: Rows, parts: Split, losses: np.ndarray, seeds: int
) -> dict[str, list[np.ndarray]]:
  """What each method takes, places in the pool, a subset a seed."""
  found = {}
  for method in methods:
    constants = CONSTANTS.get(method, {})
    options = {"budgets": (BUDGET,), "constants": constants}
    length = rows.length[parts.pool]
    ranked = rankings_of_seeds(method, rows, parts, losses, seeds=seeds, **options)
    found[method] = [cut(one[0].ranking, length, "rows", BUDGET).index for one in ranked]
  return found


def between(found: dict[str, list[np.ndarray]]) -> dict[str, dict[str, float]]:
  """Mean overlap of two methods at the same seed; of a method with itself, at other seeds."""
  table: dict[str, dict[str, float]] = {}
  for a, b in itertools.product(found, found):
    pairs = itertools.combinations(found[a], 2) if a == b else zip(found[a], found[b], strict=True)
    table.setdefault(a, {})[b] = float(np.mean([jaccard(*pair) for pair in pairs]))
  return table


def dropped(method: str, rows: Rows, parts: Split, *, each: int, most: int) -> dict[str, Any]:
  """Mean overlap with the subset of one query fewer; all of one class, or ``each`` = 0 of all.

  Args:
    method: one that needs queries alone.
    rows: of the set.
    parts: its splits.
    each: queries, all of the largest class; 0 takes those of `glosses.queries`.
    most: queries that are dropped in turn, at the most.
  """
  x = rows.layers if method == "crds_r" else rows.x
  assert x is not None
  picks = glosses.queries(rows, parts, 0)
  if each:
    largest = np.bincount(rows.labels).argmax()
    picks = picks[rows.labels[picks] == largest][:each]
  constants, pool = CONSTANTS.get(method, {}), x[parts.pool]
  take = lambda of: select(pool, method, BUDGET, queries=x[of], **constants).index
  whole = take(picks)
  out = np.linspace(0, len(picks) - 1, min(most, len(picks))).round().astype(int)
  overlaps = [jaccard(whole, take(np.delete(picks, one))) for one in out]
  return {"method": method, "queries": len(picks), "dropped": len(out), "overlaps": overlaps}


def balance(found: dict[str, list[np.ndarray]], rows: Rows, parts: Split) -> list[dict[str, Any]]:
  """Of each method's first subset: its mean length and the distance of its classes' shares."""
  labels, length = rows.labels[parts.pool], rows.length[parts.pool]
  classes = int(labels.max()) + 1
  share = lambda of: np.bincount(of, minlength=classes) / len(of)
  return [
    {
      "method": method,
      "mean_length": float(length[taken[0]].mean()),
      "pool_mean_length": float(length.mean()),
      "class_distance": float(np.abs(share(labels[taken[0]]) - share(labels)).sum() / 2),
    }
    for method, taken in found.items()
  ]


def overlap_table(overlaps: dict[str, dict[str, float]]) -> str:
  """A row and a column a method, as Markdown; on the diagonal between seeds."""
  lines = [f"| % | {' | '.join(overlaps)} |", f"|{'---|' * (1 + len(overlaps))}"]
  for method, row in overlaps.items():
    lines.append(f"| {method} | {' | '.join(f'{100 * value:.0f}' for value in row.values())} |")
  return "\n".join(lines)


def dropped_table(results: list[dict[str, Any]]) -> str:
  """A row a method and number of queries, as Markdown."""
  lines = ["| method | queries | kept when one is dropped, mean | least |", "|---|---|---|---|"]
  for run in results:
    overlaps = 100 * np.array(run["overlaps"])
    lines.append(
      f"| {run['method']} | {run['queries']} | {overlaps.mean():.0f} % | {overlaps.min():.0f} % |"
    )
  return "\n".join(lines)


def balance_table(results: list[dict[str, Any]]) -> str:
  """A row a method, as Markdown."""
  lines = ["| method | mean tokens (pool) | distance of its classes from the pool's |"]
  lines.append("|---|---|---|")
  for run in results:
    lines.append(
      f"| {run['method']} | {run['mean_length']:.1f} ({run['pool_mean_length']:.1f})"
      f" | {100 * run['class_distance']:.0f} % |"
    )
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  del argv
  given = flags.FLAGS
  rows, parts, _, losses, _ = glosses.probed_wordnet(given.cache)
  methods = [method for method in given.methods if not lacks(method, rows)]
  found = subsets(methods, rows, parts, losses, given.seeds)
  fewer = [
    dropped(method, rows, parts, each=each, most=8)
    for method in OF_QUERIES
    if method in methods and "queries" in make(method).needs
    for each in (0, glosses.EACH)
  ]
  result = {
    **{"budget": BUDGET, "seeds": given.seeds, "pool": len(parts.pool)},
    **{"overlaps": between(found), "dropped": fewer, "balance": balance(found, rows, parts)},
    **{"machine": machine(), "machine_shared": given.shared},
  }
  PATH.write_text(json.dumps(result, indent=2) + "\n")
  print(overlap_table(result["overlaps"]), dropped_table(fewer), sep="\n\n")
  print(balance_table(result["balance"]))


if __name__ == "__main__":
  flags.DEFINE_string("cache", glosses.CACHE, "Folder of embeddings, outside of the repository.")
  flags.DEFINE_list("methods", list(METHODS), "To compare.")
  flags.DEFINE_integer("seeds", 3, "Seeds 0, 1, ...")
  flags.DEFINE_bool("shared", False, "Others use the machine: seconds are no measure.")
  app.run(main)
