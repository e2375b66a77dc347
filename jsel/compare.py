"""What subsets of one pool have in common, and what each is made of.

    python -m jsel.compare runs/rds runs/kmq runs/rds-seed1

Workdirs of `python -m jsel.select`. Prints the overlap of every two (rows in both over rows in
either), by ids where the pools have them, and each one's rows, lengths and largest sources beside
the pool's. For the overlap between seeds, or with a query fewer, select so once more. Exit code 2:
a mistake in what was asked for, in one line.
"""

import json
import pathlib
import sys
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from absl import app

from jsel.data.subset_pool import PoolFacts, facts_in
from jsel.selection.compare import overlaps

SOURCES = 3  # that are named


class Selected(NamedTuple):
  """What a selection left."""

  name: str
  index: np.ndarray  # [m] rows of the pool
  ids: np.ndarray | None  # [m], None where the pool has none
  facts: PoolFacts | None
  summary: dict[str, Any]


def read(workdir: pathlib.Path) -> Selected:
  """What is in ``workdir``.

  Raises:
    ValueError: if it is no finished selection, or damaged.
  """
  try:
    table = pq.read_table(workdir / "subset.parquet")
    summary = json.loads((workdir / "summary.json").read_text())
    index = table["index"].to_numpy()
  except (OSError, ValueError, KeyError) as error:
    raise ValueError(
      f"{workdir} holds no finished selection of python -m jsel.select ({error})"
    ) from error
  facts = facts_in(table.schema)
  # Where the pool has no ids, the column holds its rows' numbers.
  ids = np.array(table["id"].to_pylist(), str) if facts and facts.id_column else None
  return Selected(str(workdir), index, ids, facts, summary)


def members(found: list[Selected]) -> dict[str, np.ndarray]:
  """What tells rows of one selection from those of another: ids, or rows of the same pool.

  Raises:
    ValueError: if there are no ids and pools differ.
  """
  if all(one.ids is not None for one in found):
    return {one.name: one.ids for one in found if one.ids is not None}
  pools = {one.facts.files_sha256 if one.facts else one.name for one in found}
  if len(pools) > 1:
    raise ValueError(
      "the subsets are of different pools, and not all have ids: select with --config.columns.id"
    )
  return {one.name: one.index for one in found}


def overlap_table(of: dict[str, np.ndarray]) -> str:
  """A row and a column a subset, in percent, as Markdown."""
  lines = [f"| overlap, % | {' | '.join(of)} |", f"|{'---|' * (1 + len(of))}"]
  for name, row in zip(of, overlaps(of), strict=True):
    lines.append(f"| {name} | {' | '.join(f'{100 * value:.1f}' for value in row)} |")
  return "\n".join(lines)


def balance_table(found: list[Selected]) -> str:
  """A row a subset, as Markdown: its rows, and its balance beside the pool's."""
  lines = ["| subset | method | rows | median length (pool) | largest sources (pool) |"]
  lines.append(f"|{5 * '---|'}")
  for one in found:
    balance = one.summary["balance"]
    cells = [one.name, one.summary["method"], f"{len(one.index):,}"]
    cells += [_length(balance.get("length")), _sources(balance.get("source"))]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def _length(spread: dict[str, dict[str, float]] | None) -> str:
  return f"{spread['subset']['q50']:,.0f} ({spread['pool']['q50']:,.0f})" if spread else ""


def _sources(counts: dict[str, dict[str, int]] | None) -> str:
  if not counts:
    return ""
  totals = {kind: sum(count[kind] for count in counts.values()) for kind in ("pool", "subset")}
  share = lambda count, kind: f"{100 * count[kind] / max(totals[kind], 1):.0f} %"
  largest = sorted(counts, key=lambda name: -counts[name]["subset"])[:SOURCES]
  return ", ".join(
    f"{name} {share(counts[name], 'subset')} ({share(counts[name], 'pool')})" for name in largest
  )


def main(argv: list[str]) -> int:
  workdirs = argv[1:]
  try:
    if len(workdirs) < 2 or len(set(workdirs)) < len(workdirs):
      given = " ".join(workdirs) or "none"
      raise ValueError(f"give two workdirs or more, each once, got {given}")
    found = [read(pathlib.Path(workdir)) for workdir in workdirs]
    of = members(found)
  except ValueError as error:
    print(f"compare.py: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
  print(overlap_table(of), balance_table(found), sep="\n\n")
  return 0


if __name__ == "__main__":
  app.run(main)
