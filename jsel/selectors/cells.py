"""Clusters of a pool that comes in parts, and the order in which they give rows."""

import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jsel.kernels import kmeans, permutation, silhouette
from jsel.kernels.random import row_gumbel
from jsel.kernels.rows import AxisName
from jsel.selectors.parts import Block, Cost, Note, Pass, Take, Task

SAMPLE = 65_536  # rows that k-means is fitted to, at the least
SILHOUETTES = 1024  # rows whose mean silhouette numbers of clusters are compared by


class Cells(NamedTuple):
  """Result of `cluster`."""

  labels: np.ndarray  # [n] int32, -1 for rows that may not be taken
  distance2: np.ndarray  # [n] float32, squared, to the center; NaN there
  centers: np.ndarray  # [k, d] float32


def cluster(
  key: jax.Array,
  task: Task,
  k: int,
  *,
  iterations: int,
  refinements: int,
  candidates: Sequence[int] = (),
) -> Generator[Pass | Take | Note, Any, Cells]:
  """k-means of the rows that may be taken.

  Seeded and fitted on a sample of ``max(65536, 64 k)`` rows, all where there are no more;
  then the centers are moved ``refinements`` times to the means of all rows. With ``candidates``,
  k is that of them whose clusters of the sample have the highest silhouette.

  Raises:
    ValueError: if there are fewer rows than ``k``.
  """
  rows = np.flatnonzero(task.eligible)
  most = max(candidates, default=k)
  if not 1 <= most <= rows.size:
    raise ValueError(f"{most} clusters of {rows.size} rows: ask for 1 to {rows.size}")
  sample_key, seed_key = jax.random.split(key)
  size = min(max(SAMPLE, 64 * most), rows.size)
  if size < rows.size:
    place = permutation.permute(sample_key, jnp.arange(size, dtype=jnp.int32), int(rows.size))
    rows = np.sort(rows[np.asarray(place)])
  sample = yield Take(rows)
  # Padded to one of few sizes, that a multiple of rows compiles nothing new.
  extra = -sample.shape[0] % 512
  x = jnp.asarray(np.pad(sample, [(0, extra), (0, 0)]))
  valid = jnp.arange(x.shape[0]) < size

  def fitted(k: int) -> jax.Array:
    centers = kmeans.plus_plus(seed_key, x, k, valid=valid)
    return kmeans.fit(x, centers, max_iters=iterations, valid=valid).centers

  if candidates:
    best = _by_silhouette(seed_key, x, valid, size, fitted, candidates)
    k, centers = best.k, best.centers
    yield best.note
  else:
    centers = fitted(k)
  refine, label = _refine(task.axis_name), assigner(task.axis_name)
  for _ in range(refinements if size < task.eligible.sum() else 0):
    sums, _ = yield Pass("moving centers", kmeans.init(k, task.width), centers, refine)
    centers = kmeans.finish(jax.tree.map(jnp.asarray, sums), centers)
  _, found = yield Pass("labelling", (), centers, label)
  return Cells(found["label"], found["distance2"], np.asarray(centers))


class _Best(NamedTuple):
  """Result of `_by_silhouette`."""

  k: int
  centers: jax.Array  # [k, d]
  note: Note


def _by_silhouette(
  key: jax.Array,
  x: jax.Array,
  valid: jax.Array,
  size: int,
  fitted: Callable[[int], jax.Array],
  candidates: Sequence[int],
) -> _Best:
  """The candidate of the highest mean silhouette of up to 1,024 rows; the least of equals."""
  some = jnp.arange(min(SILHOUETTES, size), dtype=jnp.int32)
  index = permutation.permute(jax.random.fold_in(key, 1), some, size)
  means, best, taken = {}, -np.inf, None
  for k in sorted({*candidates}):
    centers = fitted(k)
    label, _ = kmeans.assign(x, centers, valid=valid)
    mean = float(silhouette.sampled(x, label, index, k).mean)
    means[k] = mean if np.isfinite(mean) else -1.0  # where all rows are in one cluster
    if means[k] > best:
      best, taken = means[k], (k, centers)
  assert taken is not None
  text = ", ".join(f"{mean:.3f} of {k} clusters" for k, mean in means.items())
  facts = {"clusters": [*means], "mean": [*means.values()], "taken": taken[0]}
  return _Best(*taken, Note("silhouette", f"{text}; {taken[0]} are taken", facts))


def cluster_cost(
  task: Task, k: int, *, iterations: int, refinements: int, candidates: Sequence[int] = ()
) -> Cost:
  """Of `cluster`."""
  most = max(candidates, default=k)
  size = min(max(SAMPLE, 64 * most), task.size)
  walks = 1 + (refinements if size < task.size else 0)
  fits = size * (iterations + 1.5) * (sum(candidates) or k)
  compared = size * (sum(candidates) + SILHOUETTES * len(candidates))
  products = (fits + compared + task.size * walks * most) * 2.0 * task.width
  held = 3 * 4.0 * size * task.width + 24.0 * most * task.width + 8.0 * task.size
  return Cost(1 + walks, products, held)


def take_turns(labels: np.ndarray, precedence: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Rows in the order in which clusters give them, each in proportion to its weight.

  The j-th row (from 0) that cluster c gives comes at time ``(j + 1/2) / weights[c]``, the
  first cluster first on ties. The first b rows are b seats that Webster's method gives to
  the clusters; one that has no row left is passed over. Unlike quotas by largest remainder
  these are nested: those of b are within those of b + 1.

  Args:
    labels: ``[n]``, -1 for rows that are not given.
    precedence: ``[n]``; in a cluster the row of the highest comes first, then the lowest id.
    weights: ``[k]``, at least 0; clusters of weight 0 come last, and take turns.

  >>> labels, precedence = np.array([0, 0, 0, 0, 1, 1]), np.arange(6)
  >>> take_turns(labels, precedence, np.array([4, 2])).tolist()
  [3, 5, 2, 1, 4, 0]
  """
  rows = np.flatnonzero(labels >= 0)
  rows = rows[np.lexsort((rows, -precedence[rows].astype(np.float64), labels[rows]))]
  cell = labels[rows]
  first = np.flatnonzero(np.diff(cell, prepend=-1))
  place = np.arange(rows.size) - np.repeat(first, np.diff(first, append=rows.size)) + 0.5
  weight = np.asarray(weights, np.float64)[cell]
  time = np.where(weight > 0, place / np.where(weight > 0, weight, 1), np.inf)
  return rows[np.lexsort((cell, place, time))]


def lottery(key: jax.Array, log_weights: np.ndarray) -> np.ndarray:
  """``[n]`` float64: in its descending order, rows are drawn one after another, by weight.

  The noise of row i is a function of the key and i (Gumbel top-k).
  """
  noise = row_gumbel(key, jnp.arange(log_weights.shape[0], dtype=jnp.int32))
  return log_weights + np.asarray(noise, np.float64)


def sizes(labels: np.ndarray, k: int) -> np.ndarray:
  """Rows of each cluster.

  >>> sizes(np.array([0, -1, 2, 0]), 3).tolist()
  [2, 0, 1]
  """
  return np.bincount(labels[labels >= 0], minlength=k)


@functools.cache
def assigner(axis_name: AxisName) -> Callable[..., Any]:
  """An update of `Pass` that says each row's nearest of the centers that it is shared."""

  def update(state: tuple[()], centers: jax.Array, block: Block):
    label, distance2 = kmeans.assign(block.x, centers, valid=block.valid, axis_name=axis_name)
    return state, {"label": label, "distance2": distance2}

  return update


@functools.cache
def _refine(axis_name: AxisName) -> Callable[..., Any]:
  def update(sums: kmeans.Statistics, centers: jax.Array, block: Block):
    label, _ = kmeans.assign(block.x, centers, valid=block.valid, axis_name=axis_name)
    return kmeans.update(sums, block.x, label, axis_name=axis_name), {}

  return update
