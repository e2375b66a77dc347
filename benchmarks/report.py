"""The tables of BENCHMARKS.md and the kernels' pictures, from benchmarks/results.

    python -m benchmarks.report

The kernels' last results are benchmarks/results/kernels_*.json; those of another machine may stay
beside them, as benchmarks/results/MACHINE/kernels_*.json. Replaces what stands between the marks of
each table, `<!-- NAME: begin -->` and likewise end, and nothing else. Above each table stand the
command that measures it and the machine.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from absl import app
from matplotlib.figure import Figure

from benchmarks import (
  accuracy,
  aot,
  big_pool,
  collectives,
  feeds,
  fixed_order,
  fused_step,
  overhead,
  pool_size,
  select_big,
  sensitivity_regression,
  subset_sections,
)
from benchmarks.kernels.cases import RESULTS, ROOT, table
from benchmarks.machine import machines_of
from benchmarks.run import KERNELS

of_results = lambda table: lambda result: table(result["results"])
# Of each file in benchmarks/results: what measures it, and its table.
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
  "fashion_mnist": (
    "accuracy --name=fashion_mnist --config=configs/fashion_mnist.py --seeds=3",
    accuracy.table,
  ),
  "digits": ("accuracy --name=digits --config=configs/digits.py --seeds=5", accuracy.table),
  "wordnet": (
    "accuracy --name=wordnet --config=configs/wordnet_dac.py --seeds=3"
    " --selectors=full,random,rs2,dac_rounds",
    accuracy.table,
  ),
  "overhead": ("overhead", overhead.table),
  "fused_step": ("fused_step", of_results(fused_step.table)),
  "fixed_order": ("fixed_order --devices=8", fixed_order.table),
  "collectives": ("collectives", collectives.table),
  "feeds": ("feeds", feeds.table),
  "pool_size": ("pool_size", pool_size.page),
  "big_pool": ("big_pool", of_results(big_pool.table)),
  "select_big": ("select_big", of_results(select_big.table)),
  "sensitivity_regression": (
    "sensitivity_regression",
    lambda result: sensitivity_regression.table(result["sets"]),
  ),
  "aot": ("aot", aot.table),
}


def read(folder: pathlib.Path) -> dict[str, dict[str, dict[str, Any]]]:
  """Cases by kernel, of those that were measured."""
  paths = {name: folder / f"kernels_{name}.json" for name in KERNELS}
  return {
    name: json.loads(path.read_text())["cases"] for name, path in paths.items() if path.exists()
  }


def machines(folder: pathlib.Path) -> str:
  """The kernels' tables, of the last machine first, then of those with a folder of their own."""
  others = [path for path in sorted(folder.iterdir()) if path.is_dir()]
  found = [read(folder), *map(read, others)]
  return "\n\n".join(text(cases) for cases in found if cases)


def sections(folder: pathlib.Path) -> dict[str, str]:
  """What stands between the marks of each table that has been measured."""
  found = {}
  for name, (command, shown) in TABLES.items():
    path = folder / f"{name}.json"
    if path.exists():
      result = json.loads(path.read_text())
      found[name] = f"`python -m benchmarks.{command}` ({machines_of(result)})\n\n{shown(result)}"
  if subsets := subset_sections.text(folder):
    found["subsets"] = subsets
  return found


def text(found: dict[str, dict[str, dict[str, Any]]]) -> str:
  """The tables, each with its command."""
  parts = []
  for name, cases in found.items():
    parts += [f"`python -m benchmarks.kernels.{name}` ({machines_of(cases)})", table(cases)]
    missed = [
      title
      for title, case in cases.items()
      if case["ratios_by_median"] and min(case["ratios_by_median"].values()) < case["must_reach"]
    ]
    if missed:
      parts.append(f"Below what it must reach: {'; '.join(missed)}.")
  return "\n\n".join(parts)


def plot(found: dict[str, dict[str, dict[str, Any]]], path: pathlib.Path) -> None:
  """For each case the time of each peer over jsel's, and what must be reached."""
  cases = [(title, case) for kernel in found.values() for title, case in kernel.items()]
  figure = Figure(figsize=(10, 1.2 + 0.34 * len(cases)), layout="constrained")
  axes = figure.subplots()
  for row, (_, case) in enumerate(cases):
    ratios = case["ratios_by_median"]
    axes.plot(list(ratios.values()), [row] * len(ratios), "o", color="0.6", ms=5)
    for peer, ratio in ratios.items():
      if ratio == min(ratios.values()):
        axes.plot(ratio, row, "o", color="C0", ms=7)
        axes.annotate(f"  {peer}", (ratio, row), va="bottom", fontsize=7)
    axes.plot(case["must_reach"], row, "|", color="C3", ms=14, mew=2)
  axes.axvline(1, color="0.3", lw=0.8)
  axes.set(
    xscale="log",
    yticks=range(len(cases)),
    yticklabels=[title for title, _ in cases],
    xlabel="time of a peer over that of jsel\nblue: the best peer, red: what must be reached",
  )
  axes.invert_yaxis()
  axes.grid(axis="x", which="both", alpha=0.3)
  figure.savefig(path, dpi=120)


def plot_memory(found: dict[str, dict[str, dict[str, Any]]], path: pathlib.Path) -> None:
  """For each case the memory that jsel's program takes beside its arguments and results."""
  cases = [
    (title, case["temporary_bytes"])
    for kernel in found.values()
    for title, case in kernel.items()
    if case["temporary_bytes"] is not None
  ]
  figure = Figure(figsize=(10, 1.2 + 0.26 * len(cases)), layout="constrained")
  axes = figure.subplots()
  mib = [size / 2**20 for _, size in cases]
  axes.barh(range(len(cases)), mib, color="C0", height=0.6)
  for row, size in enumerate(mib):
    axes.annotate(f" {size:.1f}", (size, row), va="center", fontsize=7)
  axes.set(
    yticks=range(len(cases)),
    yticklabels=[title for title, _ in cases],
    xlabel="MiB of temporaries",
  )
  axes.invert_yaxis()
  axes.grid(axis="x", alpha=0.3)
  figure.savefig(path, dpi=120)


def rewritten(page: str, name: str, part: str) -> str:
  """``page`` with ``part`` between the marks of the table ``name``.

  Raises:
    ValueError: if the marks are not there.
  """
  begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
  before, has_begin, rest = page.partition(begin)
  _, has_end, after = rest.partition(end)
  if not (has_begin and has_end):
    raise ValueError(f"the page has no {begin} ... {end}: put them where the table shall stand")
  return f"{before}{begin}\n\n{part}\n\n{end}{after}"


def main(argv: list[str]) -> None:
  del argv
  kernels = read(RESULTS)
  if not kernels:
    raise app.UsageError(f"no kernels_*.json in {RESULTS}: python -m benchmarks.run first")
  plot(kernels, RESULTS / "kernels.png")
  plot_memory(kernels, RESULTS / "kernels_memory.png")
  path = ROOT / "BENCHMARKS.md"
  page = path.read_text()
  for name, part in {"kernels": machines(RESULTS), **sections(RESULTS)}.items():
    page = rewritten(page, name, part)
  path.write_text(page)


if __name__ == "__main__":
  app.run(main)
