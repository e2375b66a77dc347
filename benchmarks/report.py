"""The kernels' part of BENCHMARKS.md, and its picture, from benchmarks/results.

    python -m benchmarks.report

Replaces what stands between the two marks in BENCHMARKS.md, and nothing else.
"""

import json
import pathlib
from typing import Any

from absl import app
from matplotlib.figure import Figure

from benchmarks.kernels.cases import RESULTS, ROOT, table
from benchmarks.run import KERNELS

BEGIN, END = "<!-- kernels: begin -->", "<!-- kernels: end -->"


def read(folder: pathlib.Path) -> dict[str, dict[str, dict[str, Any]]]:
  """Cases by kernel, of those that were measured."""
  paths = {name: folder / f"kernels_{name}.json" for name in KERNELS}
  return {
    name: json.loads(path.read_text())["cases"] for name, path in paths.items() if path.exists()
  }


def machine_of(cases: dict[str, dict[str, Any]]) -> str:
  """The machines and versions of the cases, in a sentence."""
  facts = {json.dumps(case["machine"], sort_keys=True): case["machine"] for case in cases.values()}
  said = []
  for fact in facts.values():
    versions = [f"{what} {value}" for what, value in fact.items() if what not in ("cpu", "cores")]
    said.append(f"{fact['cpu']}, {fact['cores']} cores; {', '.join(versions)}")
  return ". ".join(said)


def text(found: dict[str, dict[str, dict[str, Any]]]) -> str:
  """The tables, each with its command."""
  parts = []
  for name, cases in found.items():
    parts += [f"`python -m benchmarks.kernels.{name}` ({machine_of(cases)})", table(cases)]
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


def rewritten(page: str, part: str) -> str:
  """``page`` with ``part`` between the marks.

  Raises:
    ValueError: if the marks are not there.
  """
  before, begin, rest = page.partition(BEGIN)
  _, end, after = rest.partition(END)
  if not (begin and end):
    raise ValueError(f"the page has no {BEGIN} ... {END}: put them where the tables shall stand")
  return f"{before}{BEGIN}\n\n{part}\n\n{END}{after}"


def main(argv: list[str]) -> None:
  del argv
  found = read(RESULTS)
  if not found:
    raise app.UsageError(f"no kernels_*.json in {RESULTS}: python -m benchmarks.run first")
  plot(found, RESULTS / "kernels.png")
  page = ROOT / "BENCHMARKS.md"
  page.write_text(rewritten(page.read_text(), text(found)))


if __name__ == "__main__":
  app.run(main)
