"""Speed and memory of selection by queries against the way in which research code does it.

    python -m benchmarks.subset_speed

Round robin over 285 queries of 3.5 % of a pool of random unit rows of 384: `select` against all
products at once, a dictionary of each query's, and `heapq.nlargest` of that, which is run at 20,000
and 200,000 rows and extrapolated, in proportion to the rows, to 2,000,000. Each in a process of its
own; seconds are of the first call, with compiling; memory is beside the pool (benchmarks/watch.py).
CRDS-R of 18 layers of 4096: `select` against signs that are drawn anew for each layer of each row.
Whitening to 64 of 1,200 components of slow decay: the largest error of a cosine of two rows, jsel's
and that of scikit-learn's randomised PCA with five seeds, against float64's decomposition.

Leaves benchmarks/results/subset_speed.json.
"""

import heapq
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import app, flags
from sklearn.decomposition import PCA

from benchmarks.kernels.cases import RESULTS
from benchmarks.machine import machine
from benchmarks.watch import watched
from jsel.kernels import whitening
from jsel.selection import select

PATH = RESULTS / "subset_speed.json"
WIDTH, QUERIES, BUDGET = 384, 285, 0.035
CASES = {"dictionaries": (20_000, 200_000), "jsel": (20_000, 200_000, 2_000_000)}
LAYERS, LAYER_WIDTH = 18, 4096
BLOCK = 10_000  # rows


def unit_rows(n: int, d: int, seed: int) -> np.ndarray:
  """``[n, d]`` float32."""
  x = np.random.default_rng(seed).standard_normal((n, d), np.float32)
  for start in range(0, n, BLOCK):  # a norm of all rows would square a copy of them
    block = x[start : start + BLOCK]
    block /= np.linalg.norm(block, axis=1, keepdims=True)
  return x


def by_dictionaries(x: np.ndarray, queries: np.ndarray, count: int) -> list[int]:
  """Round robin of each query's ``count`` best; one whose best is taken goes on to its next."""
  products = queries @ x.T
  lists = []
  for row in products.tolist():
    scores = dict(enumerate(row))
    lists.append(iter(heapq.nlargest(count, scores, key=scores.__getitem__)))
  taken: dict[int, None] = {}
  while len(taken) < count:
    for best in lists:
      if len(taken) < count:
        taken[next(row for row in best if row not in taken)] = None
  return list(taken)


def round_robin(case: str, rows: int, width: int, queries: int) -> dict[str, float]:
  """Seconds of one case, and the memory of the process before it."""
  x, asked = unit_rows(rows, width, 0), unit_rows(queries, width, 1)
  begun = time.perf_counter()
  if case == "jsel":
    taken = select(x, "rds", BUDGET, queries=asked).index
  else:
    taken = by_dictionaries(x, asked, round(BUDGET * rows))
  seconds = time.perf_counter() - begun
  assert len(set(map(int, taken))) == round(BUDGET * rows)
  return {"seconds": seconds, "pool_bytes": x.nbytes}


def watched_case(case: str, rows: int, width: int, queries: int) -> dict[str, Any]:
  """`round_robin` in a process of its own, with its peak memory beside the pool."""
  with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / "found.json"
    command = [sys.executable, "-m", "benchmarks.subset_speed", f"--one={case}", f"--out={out}"]
    command += [f"--rows={rows}", f"--width={width}", f"--queries={queries}"]
    memory = watched(command, Path(folder) / "log")
    found = json.loads(out.read_text())
  beside = memory["peak_unbacked_bytes"] - found["pool_bytes"]
  return {"case": case, "rows": rows, "seconds": found["seconds"], "beside_pool_bytes": beside}


def projections(rows: int, few: int, layers: int, width: int) -> dict[str, float]:
  """Seconds a row of a selection by ``crds_r``, and of products with signs drawn anew."""
  x = unit_rows(rows, layers * width, 2)
  dim = width // layers
  begun = time.perf_counter()
  select(x, "crds_r", 1, unit="rows", queries=x[:8], layers=layers)
  ours = time.perf_counter() - begun
  begun = time.perf_counter()
  for row in x[:few].reshape(few, layers, width):
    for layer in range(layers):
      signs = np.random.default_rng(layer).integers(0, 2, (width, dim), np.int8)
      _ = row[layer] @ (2 * signs.astype(np.float32) - 1)
  return {"jsel": ours / rows, "signs_anew": (time.perf_counter() - begun) / few, "rows": rows}


def cosine_errors(n: int, d: int, rank: int, seeds: int) -> dict[str, Any]:
  """The largest error of a cosine of two whitened rows, of 200 rows."""
  rng = np.random.default_rng(7)
  x = rng.standard_normal((n, d)) * np.arange(1, d + 1) ** -0.25
  x = x.astype(np.float32)
  exact = x.astype(np.float64) - x.astype(np.float64).mean(0)
  values, vectors = np.linalg.eigh(exact.T @ exact / (n - 1))
  top = slice(-1, -rank - 1, -1)

  def cosines(y: np.ndarray) -> np.ndarray:
    y = y[:200].astype(np.float64)
    y = y / np.linalg.norm(y, axis=1, keepdims=True)
    return y @ y.T

  truth = cosines(exact @ vectors[:, top] / np.sqrt(values[top]))
  off = lambda y: float(np.abs(cosines(y) - truth).max())
  fit = whitening.fit(jnp.asarray(x), rank=rank)
  peers = [
    PCA(rank, whiten=True, svd_solver="randomized", random_state=seed).fit_transform(x)
    for seed in range(seeds)
  ]
  ours = np.asarray(whitening.apply(fit, jnp.asarray(x)))
  return {"jsel": off(ours), "randomized": [off(peer) for peer in peers]}


def table(runs: list[dict[str, Any]]) -> str:
  """A row a case, as Markdown; with what is extrapolated to the largest pool."""
  lines = ["| | pool rows | seconds | GiB beside the pool |", "|---|---|---|---|"]
  line = lambda case, rows, seconds, size, about="": (
    f"| {case} | {rows:,}{about} | {seconds:,.1f} | {size / 2**30:.2f} |"
  )
  for run in runs:
    size = run["beside_pool_bytes"]
    lines.append(line(run["case"], run["rows"], run["seconds"], size))
  largest = max(run["rows"] for run in runs)
  last = max((r for r in runs if r["case"] == "dictionaries"), key=lambda run: run["rows"])
  times = largest / last["rows"]
  if times > 1:
    about = f", extrapolated from {last['rows']:,}"
    seconds, size = times * last["seconds"], times * last["beside_pool_bytes"]
    lines.append(line("dictionaries", largest, seconds, size, about))
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  del argv
  given = flags.FLAGS
  if given.one:
    found = round_robin(given.one, given.rows, given.width, given.queries)
    Path(given.out).write_text(json.dumps(found))
    return
  runs = []
  for case, sizes in CASES.items():
    for rows in sizes:
      runs.append(watched_case(case, rows, WIDTH, QUERIES))
      print(runs[-1], flush=True)
  result = {
    "runs": runs,
    "projections": projections(2048, 20, LAYERS, LAYER_WIDTH),
    "cosine_errors": cosine_errors(3000, 1200, 64, 5),
    **{"machine": machine(), "machine_shared": given.shared},
  }
  PATH.write_text(json.dumps(result, indent=2) + "\n")
  print(table(runs), result["projections"], result["cosine_errors"], sep="\n")


if __name__ == "__main__":
  flags.DEFINE_enum("one", None, list(CASES), "This case alone, in this process.")
  flags.DEFINE_string("out", None, "Where --one leaves what it found.")
  flags.DEFINE_integer("rows", 20_000, "Of the pool of --one.")
  flags.DEFINE_integer("width", WIDTH, "Of its rows.")
  flags.DEFINE_integer("queries", QUERIES, "Of --one.")
  flags.DEFINE_bool("shared", False, "Others use the machine: seconds are no measure.")
  app.run(main)
