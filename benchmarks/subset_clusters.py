"""How many clusters silhouette would pick, and what kmq's subsets teach at each number.

    python -m benchmarks.subset_clusters

The pool and the head are those of benchmarks/subset_accuracy.py; kmq takes 3.5 % of the rows. The
silhouette is that of 2,000 random rows, each against all rows of the pool; the simplified one
compares distances to centers alone. Each is a mean over the seeds.

Leaves benchmarks/results/subset_clusters.json.
"""

import json
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import glosses
from benchmarks.kernels.cases import RESULTS
from benchmarks.machine import machine
from benchmarks.subset_accuracy import interval, trained
from jsel.kernels import segments, silhouette
from jsel.selection import select

PATH = RESULTS / "subset_clusters.json"
CLUSTERS = (16, 32, 64, 128, 256, 512, 1024, 2048)
BUDGET = 0.035
SAMPLE = 2000
ITERATIONS = 20  # of k-means


def silhouettes(
  x: np.ndarray, labels: np.ndarray, sample: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Of the rows ``sample``, exact and simplified; clusters are numbered, and none is empty."""
  k, ids = int(labels.max()) + 1, sample.astype(np.int32)
  labels = labels.astype(np.int32)
  exact = silhouette.sampled(x, labels, ids, k).values
  members = np.bincount(labels).astype(np.float32)
  means = segments.segment_sum(x, labels, k) / members[:, None]
  return np.asarray(exact), np.asarray(silhouette.simplified(x, labels, means).values)[sample]


def table(results: list[dict[str, Any]]) -> str:
  """A row a number of clusters, as Markdown; the largest of a column is bold."""
  silhouette = [100 * np.mean(run["silhouette"]) for run in results]
  simple = [100 * np.mean(run["simplified"]) for run in results]
  accuracy = [np.mean(run["test_accuracy"]) for run in results]
  bold = lambda text, values, place: f"**{text}**" if values[place] == max(values) else text
  lines = ["| clusters | silhouette, % | simplified, % | test accuracy of kmq |"]
  lines.append("|---|---|---|---|")
  for place, run in enumerate(results):
    lines.append(
      f"| {run['clusters']:,} | {bold(f'{silhouette[place]:.2f}', silhouette, place)}"
      f" | {bold(f'{simple[place]:.2f}', simple, place)}"
      f" | {bold(interval(run['test_accuracy']), accuracy, place)} |"
    )
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  del argv
  given = flags.FLAGS
  rows, parts, settings, losses, _ = glosses.probed_wordnet(given.cache)
  x = rows.x[parts.pool]
  sample = np.random.default_rng(6).permutation(len(x))[:SAMPLE]
  results: list[dict[str, Any]] = []
  for clusters in CLUSTERS:
    run: dict[str, Any] = {"clusters": clusters, "silhouette": [], "simplified": []}
    subsets = []
    for seed in range(given.seeds):
      options = {"clusters": clusters, "iterations": ITERATIONS, "seed": seed}
      found = select(x, "kmq", 1.0, columns={"score": -losses}, **options)
      assert found.cluster is not None
      labels = np.empty(len(x), np.int64)
      labels[found.index] = np.unique(found.cluster, return_inverse=True)[1]
      exact, simple = silhouettes(x, labels, sample)
      run["silhouette"].append(float(exact.mean()))
      run["simplified"].append(float(simple.mean()))
      subsets.append(parts.pool[found.index[: round(BUDGET * len(x))]])
    results.append(run | trained(rows, parts, subsets, settings))
    about = {"budget": BUDGET, "sample": SAMPLE, "machine": machine()}
    about |= {"machine_shared": given.shared}
    PATH.write_text(json.dumps(about | {"results": results}, indent=2) + "\n")
    print(table(results[-1:]).splitlines()[-1], flush=True)
  print(table(results))


if __name__ == "__main__":
  flags.DEFINE_string("cache", glosses.CACHE, "Folder of embeddings, outside of the repository.")
  flags.DEFINE_integer("seeds", 3, "Seeds 0, 1, ...")
  flags.DEFINE_bool("shared", False, "Others use the machine: seconds are no measure.")
  app.run(main)
