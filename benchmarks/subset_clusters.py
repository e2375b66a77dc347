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
from benchmarks.heads import Settings
from benchmarks.kernels.cases import RESULTS
from benchmarks.machine import machine
from benchmarks.subset_accuracy import interval, trained
from jsel.selection import select

PATH = RESULTS / "subset_clusters.json"
CLUSTERS = (16, 32, 64, 128, 256, 512, 1024, 2048)
BUDGET = 0.035
SAMPLE = 2000
ITERATIONS = 20  # of k-means


def distances(x: np.ndarray, sample: np.ndarray) -> np.ndarray:
  """``[m, n]`` float32, Euclidean, of the rows ``sample`` from all."""
  norm2 = np.square(x).sum(1)
  squares = norm2[sample, None] - 2 * (x[sample] @ x.T) + norm2[None]
  found = np.sqrt(np.maximum(squares, 0))
  found[np.arange(len(sample)), sample] = 0
  return found


def silhouettes(distance: np.ndarray, sample: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """``[m]`` of the rows ``sample``; 0 for one that is alone in its cluster.

  Args:
    distance: ``[m, n]`` of those rows from all.
    sample: ``[m]``.
    labels: ``[n]`` clusters, all of them in [0, k) and none empty.
  """
  order = np.argsort(labels, kind="stable")
  first = np.flatnonzero(np.diff(labels[order], prepend=-1))
  total = np.add.reduceat(distance[:, order], first, axis=1, dtype=np.float64)
  size = np.diff(first, append=len(labels))
  row, own = np.arange(len(sample)), labels[sample]
  inside = total[row, own] / np.maximum(size[own] - 1, 1)
  mean = total / size
  mean[row, own] = np.inf
  outside = mean.min(1)
  return np.where(size[own] > 1, (outside - inside) / np.maximum(outside, inside), 0)


def simplified(x: np.ndarray, sample: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """As `silhouettes`, with the distances to the clusters' means in the place of mean distances."""
  centers = np.zeros((labels.max() + 1, x.shape[1]))
  np.add.at(centers, labels, x)
  centers /= np.bincount(labels)[:, None]
  apart = np.square(x[sample]).sum(1)[:, None] - 2 * x[sample] @ centers.T
  distance = np.sqrt(np.maximum(apart + np.square(centers).sum(1)[None], 0))
  row, own = np.arange(len(sample)), labels[sample]
  inside = distance[row, own].copy()
  distance[row, own] = np.inf
  outside = distance.min(1)
  return (outside - inside) / np.maximum(np.maximum(outside, inside), 1e-12)


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
  rows = glosses.read_wordnet(given.cache)
  parts = glosses.split(rows.labels)
  chosen = json.loads((RESULTS / "subset_accuracy.json").read_text())["settings"]
  settings = Settings(**chosen)
  losses, _ = glosses.probe(rows, parts, settings)
  x = rows.x[parts.pool]
  sample = np.random.default_rng(6).permutation(len(x))[:SAMPLE]
  distance = distances(x, sample)
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
      run["silhouette"].append(float(silhouettes(distance, sample, labels).mean()))
      run["simplified"].append(float(simplified(x, sample, labels).mean()))
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
