"""Least squares on weighted samples: by clusters, by leverage and uniform, on real regression sets.

    python -m benchmarks.sensitivity_regression

Diabetes (442 rows, 10 columns) and, for a second one that scikit-learn brings along, digits (1,797
images, the digit as the target). The risk is the mean squared error over all rows, of the weighted
least squares on a sample; shown is by how much it is above that of all rows. Also the error of the
sample's weighted sum of squares, at the solution of all rows. k-means is drawn anew in each of
--clusterings. Leaves benchmarks/results/sensitivity_regression.json.
"""

import json
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags
from sklearn.datasets import load_diabetes, load_digits

from benchmarks.kernels.cases import RESULTS
from benchmarks.machine import machine
from jsel.selection import select
from jsel.selectors.sensitivity import by_priority
from jsel.selectors.sensitivity_regression import predictions

PATH = RESULTS / "sensitivity_regression.json"
BY = ("uniform", "leverage", "clusters")


class Case(NamedTuple):
  """A regression set, and what is drawn of it."""

  load: Any  # load(return_X_y=True) -> (x, y)
  clusters: int
  rows: tuple[int, ...]  # of the samples


CASES = {
  "diabetes": Case(load_diabetes, 40, (40, 80, 160)),
  "digits": Case(load_digits, 160, (160, 320, 640)),
}


def distribution(x: np.ndarray, y: np.ndarray, by: str, clusters: int, seed: int) -> np.ndarray:
  """``[n]`` the probabilities that the method draws by."""
  options = {"by": by, "columns": {"score": y}, "seed": seed}
  if by == "clusters":
    options["clusters"] = clusters
  found = select(x, "sensitivity_regression", len(x), unit="rows", **options)
  p = np.empty(len(x))
  p[found.index] = found.score
  return p / p.sum()


def measure(case: Case, *, clusterings: int, draws: int) -> dict[str, Any]:
  """Excess risk and error of the sum, by method and rows, a number a draw."""
  x, y = case.load(return_X_y=True)
  x, y = x.astype(np.float32), y.astype(np.float64)
  labels = np.zeros(len(x), np.int32)
  ones = np.ones(len(x))
  loss = np.square(y - predictions(x, y, ones, x))
  results = []
  for by in BY:
    # What does not depend on clusters is the same at every seed.
    several = range(clusterings if by == "clusters" else 1)
    ps = [distribution(x, y, by, case.clusters, seed) for seed in several]
    for rows in case.rows:
      excess, error = [], []
      for draw in range(clusterings * draws):
        found = by_priority(jax.random.key(draw), ps[draw % len(ps)], labels, rows)
        assert found.weight is not None
        fitted = predictions(x[found.index], y[found.index], found.weight, x)
        excess.append(round(float(np.square(y - fitted).mean() / loss.mean() - 1), 9))
        error.append(round(float((found.weight * loss[found.index]).sum() / loss.sum() - 1), 9))
      read = rows + (case.clusters if by == "clusters" else 0)
      results.append(
        {"by": by, "rows": rows, "targets_read": read, "excess_risk": excess, "sum_error": error}
      )
  return {"size": len(x), "columns": x.shape[1], "clusters": case.clusters, "results": results}


def table(sets: dict[str, Any]) -> str:
  """A row a sample, as Markdown; the least excess at each number of rows is bold."""
  lines = [
    "| set | rows | by | targets read, at most | risk above all rows', mean % ± 95 % | median %"
    " | RMS error of the sum % | its mean ± 95 % |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for name, found in sets.items():
    for rows in sorted({result["rows"] for result in found["results"]}):
      same = [result for result in found["results"] if result["rows"] == rows]
      least = min(np.mean(result["excess_risk"]) for result in same)
      for result in same:
        excess = 100 * np.array(result["excess_risk"])
        error = 100 * np.array(result["sum_error"])
        half = lambda values: 1.96 * values.std(ddof=1) / np.sqrt(len(values))
        mean = f"{excess.mean():.2f} ± {half(excess):.2f}"
        mean = f"**{mean}**" if np.mean(result["excess_risk"]) == least else mean
        lines.append(
          f"| {name} | {rows} | {result['by']} | {result['targets_read']} | {mean}"
          f" | {np.median(excess):.2f} | {np.sqrt(np.square(error).mean()):.2f}"
          f" | {error.mean():.2f} ± {half(error):.2f} |"
        )
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  del argv
  given = flags.FLAGS
  sets = {
    name: measure(case, clusterings=given.clusterings, draws=given.draws)
    for name, case in CASES.items()
  }
  about = {"clusterings": given.clusterings, "draws": given.draws}
  about |= {"machine": machine(("scikit-learn",))}
  PATH.write_text(json.dumps(about | {"sets": sets}) + "\n")
  print(table(sets))


if __name__ == "__main__":
  flags.DEFINE_integer("clusterings", 10, "Seeds of k-means.")
  flags.DEFINE_integer("draws", 40, "Samples of each.")
  app.run(main)
