"""The kernels' and the subsets' parts of BENCHMARKS.md, and a picture, from benchmarks/results.

    python -m benchmarks.report

Replaces what stands between the marks of each part in BENCHMARKS.md, and nothing else.
"""

import json
import pathlib
from typing import Any

from absl import app
from matplotlib.figure import Figure

from benchmarks import subset_sections
from benchmarks.kernels.cases import RESULTS, ROOT, table
from benchmarks.run import KERNELS


def read(folder: pathlib.Path) -> dict[str, dict[str, dict[str, Any]]]:
  """Cases by kernel, of those that were measured."""
  paths = {name: folder / f"kernels_{name}.json" for name in KERNELS}
  return {
    name: json.loads(path.read_text())["cases"] for name, path in paths.items() if path.exists()
  }


def text(found: dict[str, dict[str, dict[str, Any]]]) -> str:
  """The tables, each with its command."""
  parts = []
  for name, cases in found.items():
    parts += [
      f"`python -m benchmarks.kernels.{name}` ({subset_sections.machines([*cases.values()])})",
      table(cases),
    ]
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


def marks(name: str) -> tuple[str, str]:
  """Where the part ``name`` of the page begins and ends."""
  return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def rewritten(page: str, name: str, part: str) -> str:
  """``page`` with ``part`` between the marks of ``name``.

  Raises:
    ValueError: if the marks are not there.
  """
  first, last = marks(name)
  before, begin, rest = page.partition(first)
  _, end, after = rest.partition(last)
  if not (begin and end):
    raise ValueError(f"the page has no {first} ... {last}: put them where the tables shall stand")
  return f"{before}{first}\n\n{part}\n\n{last}{after}"


def main(argv: list[str]) -> None:
  del argv
  found = read(RESULTS)
  if found:
    plot(found, RESULTS / "kernels.png")
  parts = {"kernels": text(found), "subsets": subset_sections.text(RESULTS)}
  if not any(parts.values()):
    raise app.UsageError(f"no results in {RESULTS}: python -m benchmarks.run first")
  page = ROOT / "BENCHMARKS.md"
  for name, part in parts.items():
    if part:
      page.write_text(rewritten(page.read_text(), name, part))


if __name__ == "__main__":
  app.run(main)
