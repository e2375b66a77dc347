"""k-means: Lloyd's iterations from given centers, and k-means++ seeding.

    python -m benchmarks.kernels.kmeans

Lloyd: the centers after some iterations, and the labels of all rows by them. Its error is that of
the inertia, in float64, against as many iterations in float64. Seeding: the rows chosen by plain
k-means++, one draw a center, and by k-means|| in five rounds; the error is how much more than that
of a float64 k-means++ their inertia is.
"""

import functools

import jax
import numpy as np

from benchmarks.kernels.cases import Case, Work, peer, run, temporaries
from benchmarks.turns import Contender
from jsel.kernels import kmeans

BLOCK = 4000  # rows a block of the peers' and the references' products


@functools.cache
def rows(n: int, d: int, k: int) -> tuple[np.ndarray, np.ndarray]:
  """Overlapping clusters, twice as many as are asked for, and rows to start from."""
  rng = np.random.default_rng(0)
  middle = rng.standard_normal((2 * k, d), np.float32)
  x = middle[rng.integers(0, 2 * k, n)] + rng.standard_normal((n, d), np.float32)
  return x, x[rng.permutation(n)[:k]]


def nearest(x: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, float]:
  """Labels and inertia in float64."""
  half = (centers**2).sum(1) / 2
  labels, inertia = np.empty(len(x), np.int64), 0.0
  for start in range(0, len(x), BLOCK):
    block = x[start : start + BLOCK].astype(np.float64)
    score = half - block @ centers.T
    own = score.argmin(1)
    labels[start : start + BLOCK] = own
    inertia += (2 * score[np.arange(len(block)), own] + (block**2).sum(1)).sum()
  return labels, inertia


@functools.cache
def reference(n: int, d: int, k: int, iterations: int) -> float:
  """The inertia after so many iterations in float64."""
  x, start = rows(n, d, k)
  centers = start.astype(np.float64)
  for _ in range(iterations):
    labels, _ = nearest(x, centers)
    order = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[order], np.arange(k))
    assert (np.diff(np.append(first, n)) > 0).all(), "a cluster without rows: peers differ there"
    sums = np.add.reduceat(x[order].astype(np.float64), first)
    centers = sums / np.diff(np.append(first, n))[:, None]
  return nearest(x, centers)[1]


def lloyd(n: int, d: int, k: int, iterations: int, precision: str) -> Work:
  x, start = rows(n, d, k)
  on_device = jax.device_put((x, start))

  @jax.jit
  def ours(x, centers):
    return kmeans.fit(x, centers, max_iters=iterations, precision=precision)[:2]

  def of_faiss():
    import faiss

    def work():
      options = {"niter": iterations, "max_points_per_centroid": n, "min_points_per_centroid": 1}
      found = faiss.Kmeans(d, k, **options)
      found.train(x, init_centroids=start)
      return found.centroids, found.index.search(x, 1)[1]

    settings = f"no subsample, {faiss.omp_get_max_threads()} threads"
    return [Contender("faiss.Kmeans", work, settings, lambda result: result)]

  def of_sklearn():
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    def work():
      with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(k, init=start, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd")
        found.fit(x)
      return found.cluster_centers_, found.labels_

    return [Contender("sklearn KMeans", work, "lloyd, tol=0", lambda result: result)]

  def of_torch():
    import torch

    data, first = torch.from_numpy(x), torch.from_numpy(start)
    half_precision = data.to(torch.bfloat16)

    def labels_by(centers, narrow):
      half = (centers * centers).sum(1) / 2
      table = (centers.to(torch.bfloat16) if narrow else centers).T
      source = half_precision if narrow else data
      return torch.cat(
        [(half - (source[i : i + BLOCK] @ table).float()).argmin(1) for i in range(0, n, BLOCK)]
      )

    def work(narrow):
      centers = first
      for _ in range(iterations):
        labels = labels_by(centers, narrow)
        sums = torch.zeros(k, d).index_add_(0, labels, data)
        centers = sums / torch.bincount(labels, minlength=k)[:, None]
      return centers, labels_by(centers, narrow)

    settings = f"blocks of {BLOCK}, {torch.get_num_threads()} threads"
    to_numpy = lambda result: tuple(part.numpy() for part in result)
    found = [Contender("torch float32", lambda: work(False), settings, to_numpy)]
    if precision == "bfloat16":
      settings += ", rows rounded beforehand"
      found.append(Contender("torch bfloat16", lambda: work(True), settings, to_numpy))
    return found

  def error(name, result):
    del name
    _, inertia = nearest(x, np.asarray(result[0], np.float64))
    return abs(inertia / reference(n, d, k, iterations) - 1)

  return Work(
    Contender("jsel", lambda: ours(*on_device), f"precision={precision}"),
    [*peer("faiss", of_faiss), *peer("sklearn", of_sklearn), *peer("torch", of_torch)],
    error,
    temporaries(ours, *on_device),
    # Every row with every center, once more than the centers move. With bfloat16_3x as many of
    # the rows in float32 beside as the first product leaves in doubt, which are not counted.
    {"float32" if precision == "float32" else "bfloat16": 2.0 * n * d * k * (iterations + 1)},
  )


def seeding(n: int, d: int, k: int, how: str) -> Work:
  x, _ = rows(n, d, k)
  on_device = jax.device_put(x)
  key = jax.random.key(0)

  @jax.jit
  def ours(key, x):
    return {"plus_plus": kmeans.plus_plus, "parallel": kmeans.parallel}[how](key, x, k)

  def of_sklearn():
    from sklearn.cluster import kmeans_plusplus

    work = lambda: kmeans_plusplus(x, k, random_state=0, n_local_trials=1)[0]
    return [Contender("sklearn kmeans_plusplus", work, "n_local_trials=1", lambda result: result)]

  @functools.cache
  def expected():
    rng = np.random.default_rng(1)
    wide = x.astype(np.float64)
    squares = (wide**2).sum(1)
    far, total = np.full(n, np.inf), 0.0
    for j in range(k):
      at = rng.integers(n) if j == 0 else np.searchsorted(np.cumsum(far), rng.random() * total)
      distance2 = squares + squares[at] - 2 * wide @ wide[at]
      far = np.minimum(far, np.maximum(distance2, 0))
      total = far.sum()
    return total

  def error(name, result):
    del name
    return max(nearest(x, np.asarray(result, np.float64))[1] / expected() - 1, 0)

  mine = Contender("jsel", lambda: ours(key, on_device), how)
  return Work(mine, peer("sklearn", of_sklearn), error, temporaries(ours, key, on_device))


SMALL = {"n": 2000, "d": 8, "k": 10}
WIDE = {"n": 100_000, "d": 384, "k": 1000, "iterations": 3}
NARROW = {"n": 100_000, "d": 128, "k": 256, "iterations": 5}
CASES = {
  f"k-means {title}": Case(
    lloyd,
    {**sizes, "precision": precision},
    {**SMALL, "iterations": 2, "precision": precision},
    most_error,
    must_reach,
  )
  for title, sizes, precision, most_error, must_reach in (
    ("100k x 384, k 1000, float32", WIDE, "float32", 1e-6, 1.5),
    ("100k x 384, k 1000, bfloat16_3x", WIDE, "bfloat16_3x", 1e-6, 1.5),
    ("100k x 384, k 1000, bfloat16", WIDE, "bfloat16", 2e-3, 2.5),
    ("100k x 128, k 256, float32", NARROW, "float32", 1e-6, 1.5),
    ("100k x 128, k 256, bfloat16_3x", NARROW, "bfloat16_3x", 1e-6, 1.5),
  )
}
# Draws differ: two seedings of the same rows are within some percent of one another.
for title, how, must_reach in (("k-means++", "plus_plus", 3.0), ("k-means||", "parallel", 3.0)):
  CASES[f"{title} 100k x 128, k 256"] = Case(
    seeding,
    {"n": 100_000, "d": 128, "k": 256, "how": how},
    {**SMALL, "how": how},
    0.1,
    must_reach,
  )

if __name__ == "__main__":
  run("kmeans", CASES)
