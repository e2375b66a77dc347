"""k-means: seeding, Lloyd's iterations, and the parts to run them over data in pieces."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jsel.kernels import precision as products
from jsel.kernels.kmeans_parallel import parallel
from jsel.kernels.kmeans_seeding import (
  check_k,
  check_rows,
  in_units,
  influence,
  plus_plus,
  square_lengths,
)
from jsel.kernels.nearest import MOST, distance2, nearest
from jsel.kernels.precision import Precision
from jsel.kernels.reduce import fixed_tree_sum
from jsel.kernels.rows import AxisName, axis_size, row_ids, rows, varying
from jsel.kernels.segments import exponents, segment_sum, sum_by_label
from jsel.kernels.topk import top_k

__all__ = [
  "KMeans",
  "Statistics",
  "assign",
  "finish",
  "fit",
  "init",
  "merge",
  "parallel",
  "plus_plus",
  "update",
]


class KMeans(NamedTuple):
  """Result of `fit`."""

  centers: jax.Array  # [k, d] float32
  labels: jax.Array  # [n] int32, the nearest of `centers`; -1 for padded and non-finite rows
  inertia: jax.Array  # [] float32, weighted sum of squared distances to `centers`
  iterations: jax.Array  # [] int32, how often the centers moved
  converged: jax.Array  # [] bool


class Statistics(NamedTuple):
  """Sums of the rows seen so far by cluster; a monoid under `merge`."""

  sums: jax.Array  # [k, d] float32, weighted
  weight: jax.Array  # [k] float32


@rows("x", "weights", "valid", out=KMeans(False, True, False, False, False))  # pyrefly: ignore
def fit(
  x: jax.Array,
  centers: jax.Array,
  *,
  max_iters: int = 100,
  tol: float = 0.0,
  weights: jax.Array | None = None,
  valid: jax.Array | None = None,
  precision: Precision = "float32",
  axis_name: AxisName = None,
) -> KMeans:
  r"""Lloyd's algorithm: moves ``centers`` to the means of the rows nearest to them.

  .. math:: \min_{c_1 \dots c_k} \sum_i w_i \min_j \lVert x_i - c_j \rVert^2

  A center without rows moves to a row instead: the j-th such center to the row
  that is j-th farthest from its own center. It stays where no row is off its
  center by more than rounding, as when there are fewer distinct rows than centers.

  Sharding: rows may be split over ``axis_name``; costs a sum of three ``[k, d]``
  integers over it an iteration, with weights a maximum of ``[k]`` too. Bitwise
  the same on any device count, for n a multiple of 512: rows are worked on in
  tiles of n / 512 or fewer. Other n are cut into fewer and larger tiles. No tile
  takes more than 16 MB.

  Args:
    x: ``[n, d]`` rows of any real dtype.
    centers: ``[k, d]`` to start from, as of `plus_plus`; ``k <= n``.
    max_iters: the most iterations.
    tol: converged when no center moves farther; at 0, when none moves.
    weights: ``[n]``; weight 2 counts as two rows. Where it is below 1.2e-38 or not
      finite, a row has a label and no influence. All 1 if None.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    precision: of the products that labels are found by. Sums and ``inertia`` are
      float32 in any. ``"bfloat16_3x"`` takes one bfloat16 product, and one in
      float32 of the rows that the first leaves in doubt: the labels are those
      of ``"float32"``, faster where bfloat16 has hardware. ``"bfloat16"`` alone
      finds another, about equally good optimum.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    A `KMeans` whose labels and inertia are those of its centers. Rows with a
    NaN, an infinity or a squared length of 2**125 and more are labelled -1 and
    move nothing. A center that is not finite counts as one without rows. Rows
    whose squared distance is below 1e-38 are equal in float32.

  Raises:
    ValueError: if ``k > n``, or a shape or an option is out of range.

  Example:
    >>> fit(jnp.array([[0.0], [2.0], [9.0]]), jnp.array([[0.0], [9.0]])).centers.ravel().tolist()
    [1.0, 9.0]

  References:
    Lloyd, *Least squares quantization in PCM*, 1982.
  """
  check_rows(x, weights, valid)
  _check_centers(x, centers)
  check_k(centers.shape[0], x.shape[0] * axis_size(axis_name))
  products.check(precision)
  if max_iters < 0 or not tol >= 0:
    raise ValueError(f"max_iters and tol must not be negative, got {max_iters} and {tol}")
  # As arrays, so that other values compile nothing.
  limits = np.int32(max_iters), np.float32(tol)
  return _fit(x, centers, weights, valid, *limits, precision=precision, axis_name=axis_name)


@rows("x", "valid", out=True)
def assign(
  x: jax.Array,
  centers: jax.Array,
  *,
  valid: jax.Array | None = None,
  precision: Precision = "float32",
  axis_name: AxisName = None,
) -> tuple[jax.Array, jax.Array]:
  """The nearest center of each row, and how far it is.

  Sharding: rows may be split over ``axis_name``; costs nothing over it. Bitwise
  the same on any device count, for n a multiple of 512.

  Args:
    x: ``[n, d]`` rows of any real dtype.
    centers: ``[k, d]``.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    precision: of the products that labels are found by, as in `fit`.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    ``labels`` (``int32[n]``, ties to the lowest center) and ``distance2``
    (``float32[n]``, squared, taken of the differences and so exact at 0). For
    padded rows and those with a NaN, an infinity or a squared length of 2**125
    and more: -1 and NaN; for all rows where no center is finite.

  Raises:
    ValueError: if a shape or ``precision`` is another.

  Example:
    >>> labels, distance2 = assign(jnp.array([[1.0], [9.0]]), jnp.array([[0.0], [2.0], [9.0]]))
    >>> labels.tolist(), distance2.tolist()
    ([0, 2], [1.0, 0.0])
  """
  check_rows(x, None, valid)
  _check_centers(x, centers)
  products.check(precision)
  return _assign(x, centers, valid, precision=precision, axis_name=axis_name)


def init(k: int, d: int) -> Statistics:
  """The statistics of no rows, for ``k`` clusters of ``d`` columns.

  >>> init(2, 3).weight.tolist()
  [0.0, 0.0]
  """
  return Statistics(jnp.zeros((k, d), jnp.float32), jnp.zeros(k, jnp.float32))


@rows("x", "labels", "weights", out=False)
def update(
  statistics: Statistics,
  x: jax.Array,
  labels: jax.Array,
  *,
  weights: jax.Array | None = None,
  axis_name: AxisName = None,
) -> Statistics:
  """Adds rows to ``statistics``; one iteration over data that the device cannot hold.

  Sharding: as `jsel.kernels.segments.segment_sum`, bitwise the same on any device count.

  Args:
    statistics: of the rows before, as of `init`.
    x: ``[n, d]`` rows of any real dtype.
    labels: ``[n]`` int32 as of `assign`; rows labelled -1 are left out.
    weights: ``[n]``; all 1 if None.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    The `Statistics` of all rows so far.

  Raises:
    ValueError: if a shape or dtype is another.

  Example:
    >>> x, centers = jnp.array([[0.0], [2.0], [9.0]]), jnp.array([[0.0], [9.0]])
    >>> statistics = init(2, 1)
    >>> for part in (x[:2], x[2:]):
    ...   statistics = update(statistics, part, assign(part, centers)[0])
    >>> finish(statistics, centers).ravel().tolist()
    [1.0, 9.0]
  """
  k, d = statistics.sums.shape
  if x.ndim != 2 or x.shape[1] != d:
    raise ValueError(f"x must be [n, {d}] as the statistics are, got shape {x.shape}")
  ones = jnp.ones((x.shape[0], 1), jnp.float32)
  total = functools.partial(
    segment_sum, labels=labels, count=k, weights=weights, axis_name=axis_name
  )
  return merge(statistics, Statistics(total(x), total(ones)[:, 0]))


def merge(a: Statistics, b: Statistics) -> Statistics:
  """The statistics of the rows of both.

  >>> merge(init(1, 1), Statistics(jnp.ones((1, 1)), jnp.ones(1))).weight.tolist()
  [1.0]
  """
  return Statistics(a.sums + b.sums, a.weight + b.weight)


def finish(statistics: Statistics, centers: jax.Array) -> jax.Array:
  """The means ``[k, d]``; a cluster of no weight keeps its row of ``centers``.

  >>> statistics = Statistics(jnp.array([[6.0], [0.0]]), jnp.array([2.0, 0.0]))
  >>> finish(statistics, jnp.ones((2, 1))).tolist()
  [[3.0], [1.0]]
  """
  seen = (statistics.weight > 0)[:, None]
  weight = jnp.where(seen, statistics.weight[:, None], 1)
  return jnp.where(seen, statistics.sums / weight, centers.astype(jnp.float32))


@functools.partial(jax.jit, static_argnames=("precision", "axis_name"))
def _fit(x, centers, weights, valid, max_iters, tol, *, precision, axis_name):
  n, k = x.shape[0], centers.shape[0]
  square = square_lengths(x, axis_name)
  usable = jnp.isfinite(square) if valid is None else jnp.isfinite(square) & valid
  row_weight = influence(usable, weights)
  ones = jnp.ones((n, 1), jnp.float32)
  exponent = exponents(x, ones[:, 0], row_weight > 0, axis_name)

  def means(labels, centers):
    labels = jnp.where(row_weight > 0, labels, -1)
    # A mean needs the weights of its own rows only as they are to each other.
    unit = row_weight if weights is None else in_units(row_weight, labels, k, axis_name)[0]
    weight = sum_by_label(ones, labels, k, unit, jnp.ones(1, jnp.int32), axis_name)
    sums = sum_by_label(x, labels, k, unit, exponent, axis_name)
    return finish(Statistics(sums, weight[:, 0]), centers)

  def fill(labels, centers):
    """Labels with the farthest rows given to the clusters that have none."""
    taken = jnp.where(row_weight > 0, labels, k)
    size = jnp.zeros(k, jnp.int32).at[taken].add(jnp.where(taken >= 0, 1, 0), mode="drop")
    size = size if axis_name is None else lax.psum(size, axis_name)

    def relabel(labels):
      most = min(k, n * axis_size(axis_name))
      far = distance2(x, centers, labels, axis_name=axis_name)
      # The mean of equal rows is a rounding off them; there is nothing to gain.
      off = (row_weight > 0) & (far > 2.0**-44 * square)
      far = top_k(far, most, valid=off, sorted=True, axis_name=axis_name).indices
      far = jnp.where(far >= 0, far, jnp.iinfo(jnp.int32).max)
      empty = size == 0
      order = jnp.clip(jnp.cumsum(empty, dtype=jnp.int32) - 1, 0, most - 1)
      local = far[order] - row_ids(n, axis_name)[0]
      # What is not here, negative too, is dropped; an index from the end would not be.
      local = jnp.where(empty & (local >= 0) & (local < n), local, n)
      return labels.at[local].set(jnp.arange(k, dtype=jnp.int32), mode="drop")

    return lax.cond(jnp.any(size == 0), relabel, lambda labels: labels, labels)

  def iterate(state):
    centers, _, iteration, _, _ = state
    labels = nearest(x, centers, usable, precision=precision, axis_name=axis_name)
    moved = means(fill(labels, centers), centers)
    # A center that is not finite and stays so would never come to rest.
    step = jnp.where(jnp.isnan(moved) & jnp.isnan(centers), 0, moved - centers)
    converged = jnp.all(jnp.sum(step * step, axis=1) <= tol * tol)
    done = converged | (iteration == max_iters)
    return (
      jnp.where(done, centers, moved),
      labels,
      jnp.where(done, iteration, iteration + 1),
      converged,
      done,
    )

  start = (
    centers.astype(jnp.float32),
    varying(jnp.full(n, -1, jnp.int32), axis_name),
    jnp.int32(0),
    jnp.bool_(False),
    jnp.bool_(False),
  )
  # The last pass finds the labels of the centers returned, and moves none.
  state = lax.while_loop(lambda state: ~state[-1], iterate, start)
  centers, labels, iterations, converged, _ = state
  cost = row_weight * distance2(x, centers, labels, axis_name=axis_name)
  inertia = fixed_tree_sum(
    jnp.where((row_weight > 0) & (labels >= 0), cost, 0), axis_name=axis_name
  )
  return KMeans(centers, labels, inertia, iterations, converged)


@functools.partial(jax.jit, static_argnames=("precision", "axis_name"))
def _assign(x, centers, valid, *, precision, axis_name):
  centers = centers.astype(jnp.float32)
  usable = jnp.isfinite(square_lengths(x, axis_name))
  usable = usable if valid is None else usable & valid
  labels = nearest(x, centers, usable, precision=precision, axis_name=axis_name)
  return labels, distance2(x, centers, labels, axis_name=axis_name)


def _check_centers(x: jax.Array, centers: jax.Array) -> None:
  if centers.ndim != 2 or centers.shape[1] != x.shape[1] or not centers.shape[0]:
    raise ValueError(f"centers must be [k, {x.shape[1]}] as x has it, got shape {centers.shape}")
  if centers.shape[0] > MOST:
    raise ValueError(f"{centers.shape[0]} centers: {MOST} at most")
