"""Silhouette of clusters: of a sample of rows against all, or by the clusters' centers alone."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jsel.kernels import precision as products
from jsel.kernels.gather import gather
from jsel.kernels.kmeans_seeding import check_rows, square_lengths
from jsel.kernels.nearest import distance2, mean_of
from jsel.kernels.reduce import count as count_rows
from jsel.kernels.reduce import fixed_tree_sum
from jsel.kernels.rows import AxisName, first_row, rows
from jsel.kernels.segments import LIMB_ROWS, sum_of_tiles
from jsel.kernels.tiles import TILE, blocks, map_tiles

SAMPLED = 1024  # sampled rows that a walk over all rows serves, at the most
EQUAL = 2.0**-20  # of the squared lengths of two rows: what is less apart, rounding may have made


class Silhouette(NamedTuple):
  """Result of `sampled` and `simplified`; from -1 to 1, high where clusters are apart."""

  mean: jax.Array  # [] float32, of the rows that have one; NaN where none has
  values: jax.Array  # float32, [m] of the sample or [n]; NaN for rows in no cluster


@rows("x", "labels", out=Silhouette(False, False))  # pyrefly: ignore
def sampled(
  x: jax.Array,
  labels: jax.Array,
  index: jax.Array,
  clusters: int,
  *,
  axis_name: AxisName = None,
) -> Silhouette:
  r"""Silhouette of the rows ``index``, each against all rows.

  .. math:: s_i = \frac{b_i - a_i}{\max(a_i, b_i)}

  with a the mean distance of row i to the others of its cluster, and b the least mean distance
  to the rows of another. All n rows would cost n^2 d; the mean over a random sample estimates
  theirs. A row that is alone in its cluster has 0, as in scikit-learn.

  Distances come of products in float32, about the mean of the sample; rows whose distance is
  below a thousandth of their lengths there count as equal.

  Sharding: rows may be split over ``axis_name``; costs the sampled rows and three
  ``[clusters, m]`` integers over it. Bitwise the same on any device count, for n a multiple of
  512. At most 1024 sampled rows and 2**22 sums are held at a time; more walk over x again.

  Args:
    x: ``[n, d]`` rows of any real dtype.
    labels: ``[n]`` int32 clusters; rows labelled outside of [0, clusters), as padded ones are,
      are left out, and so are those with a NaN or an infinity.
    index: ``[m]`` int32 global ids of the sampled rows.
    clusters: how many labels there are, static; some may have no row.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    `Silhouette`, the same on every device. NaN for a sampled row that is left out, and for all
    where fewer than two clusters have rows.

  Raises:
    ValueError: if a shape, a dtype or ``clusters`` is out of range.

  Example:
    >>> x, labels = jnp.array([[0.0], [1.0], [4.0], [4.0]]), jnp.array([0, 0, 1, 1])
    >>> sampled(x, labels, jnp.array([0, 2]), 2).values.tolist()
    [0.75, 1.0]

  References:
    Rousseeuw, *Silhouettes: a graphical aid to the interpretation and validation of cluster
    analysis*, 1987.
  """
  _check(x, labels)
  if index.ndim != 1 or index.dtype != jnp.int32 or not index.shape[0]:
    raise ValueError(f"index must be int32 [m], m > 0, got {index.dtype} {index.shape}")
  if not isinstance(clusters, (int, np.integer)) or clusters < 1:
    raise ValueError(f"clusters must be a static int of at least 1, got {clusters}")
  return _sampled(x, labels, index, clusters=int(clusters), axis_name=axis_name)


@rows("x", "labels", out=Silhouette(False, True))  # pyrefly: ignore
def simplified(
  x: jax.Array, labels: jax.Array, centers: jax.Array, *, axis_name: AxisName = None
) -> Silhouette:
  r"""Silhouette of all rows by their distances to centers, for n k d instead of n^2 d.

  As `sampled`, with a the distance to the center of the row's own cluster and b that to the
  nearest other center that has rows. A row that is alone in its cluster has 0, without which as
  many clusters as rows would be the best of all.

  Sharding: rows may be split over ``axis_name``; costs k counts over it. Bitwise the same on any
  device count, for n a multiple of 512.

  Args:
    x: ``[n, d]`` rows of any real dtype.
    labels: ``[n]`` int32 as of `jsel.kernels.kmeans.assign`; rows labelled outside of [0, k) are
      left out, and so are those with a NaN or an infinity.
    centers: ``[k, d]``.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    `Silhouette`, ``values`` split as the rows are. NaN for a row that is left out, and for all
    where fewer than two clusters have rows.

  Raises:
    ValueError: if a shape or a dtype is another.

  Example:
    >>> x, labels = jnp.array([[0.0], [2.0], [4.0], [4.0]]), jnp.array([0, 0, 1, 1])
    >>> simplified(x, labels, jnp.array([[1.0], [4.0]])).values.tolist()
    [0.75, 0.5, 1.0, 1.0]

  References:
    Hruschka, de Castro and Campello, *Evolutionary algorithms for clustering gene-expression
    data*, 2004.
  """
  _check(x, labels)
  if centers.ndim != 2 or centers.shape[1] != x.shape[1] or not centers.shape[0]:
    raise ValueError(f"centers must be [k, {x.shape[1]}] as x has it, got shape {centers.shape}")
  return _simplified(x, labels, centers, axis_name=axis_name)


@functools.partial(jax.jit, static_argnames=("clusters", "axis_name"))
def _sampled(x, labels, index, *, clusters, axis_name):
  n, m = x.shape[0], index.shape[0]
  picked = gather(x, index, axis_name=axis_name).astype(jnp.float32)
  # What is gathered from outside of the rows is 0.
  label_of_picked = lambda labels: gather(labels + 1, index, axis_name=axis_name) - 1
  there = jnp.isfinite(jnp.sum(picked * picked, axis=1)) & (label_of_picked(labels) >= 0)
  shift = mean_of(picked, there)
  centred = lambda x: x.astype(jnp.float32) - shift[None]
  square = map_tiles(
    lambda x: jnp.sum(jnp.square(centred(x)), axis=1), x, width=x.shape[1], axis_name=axis_name
  )
  labels = _of_clusters(labels, square, clusters)
  sizes = _sizes(labels, clusters, axis_name)
  own = label_of_picked(labels)
  longest = jnp.max(jnp.where(labels >= 0, square, 0))
  longest = longest if axis_name is None else lax.pmax(longest, axis_name)
  # No two rows are farther apart than twice the longest; tiny ones would leave no normal number.
  exponent = jnp.maximum(jnp.frexp(2 * jnp.sqrt(longest))[1].astype(jnp.int32), -110)

  parts = -(-m // max(min(m, SAMPLED, TILE // clusters), 1))
  part = -(-m // parts)
  size = max(min(TILE // (2 * (x.shape[1] + part)), LIMB_ROWS), 1)
  cut = blocks(n, size, axis_name)
  first = first_row(n, axis_name)

  def of_part(arrays):
    rows, ids, own = arrays
    rows = jnp.where((own >= 0)[:, None], centred(rows), 0)
    lengths = jnp.sum(rows * rows, axis=1)

    def tile(i):
      start, fresh = cut.span(i)
      take = lambda array: lax.dynamic_slice_in_dim(array, start, cut.size)
      place = start + jnp.arange(cut.size, dtype=jnp.int32)
      label = jnp.where(place >= fresh, take(labels), -1)
      block = jnp.where((label >= 0)[:, None], centred(take(x)), 0)
      both = take(square)[:, None] + lengths[None]
      apart = both - 2 * products.matmul(block, rows, transpose_b=True)
      same = (first + place)[:, None] == ids[None]
      return label, jnp.where(same | ~(apart > EQUAL * both), 0, jnp.sqrt(jnp.abs(apart)))

    exponents = jnp.broadcast_to(exponent, own.shape)
    return _values(sum_of_tiles(tile, cut.count, clusters, exponents, axis_name), own, sizes)

  pad = lambda array, fill: jnp.pad(
    array, [(0, parts * part - m)] + [(0, 0)] * (array.ndim - 1), constant_values=fill
  ).reshape(parts, part, *array.shape[1:])
  values = lax.map(of_part, (pad(picked, 0), pad(index, -1), pad(own, -1))).reshape(-1)[:m]
  return Silhouette(_mean(values, None), values)


def _values(totals: jax.Array, own: jax.Array, sizes: jax.Array) -> jax.Array:
  """``[m]`` of the sums ``[clusters, m]`` of distances."""
  ids = jnp.arange(sizes.shape[0], dtype=jnp.int32)[:, None]
  is_own, at = ids == own[None], jnp.maximum(own, 0)
  others = (sizes[at] - 1).astype(jnp.float32)
  inside = jnp.sum(jnp.where(is_own, totals, 0), axis=0) / jnp.maximum(others, 1)
  mean = totals / jnp.maximum(sizes, 1).astype(jnp.float32)[:, None]
  outside = jnp.min(jnp.where(is_own | (sizes == 0)[:, None], jnp.inf, mean), axis=0)
  return _score(inside, outside, own, others < 1)


@functools.partial(jax.jit, static_argnames="axis_name")
def _simplified(x, labels, centers, *, axis_name):
  k, d = centers.shape
  centers = centers.astype(jnp.float32)
  labels = _of_clusters(labels, square_lengths(x, axis_name), k)
  sizes = _sizes(labels, k, axis_name)
  there = (sizes > 0) & jnp.isfinite(centers).all(axis=1)
  shift = mean_of(centers, there)
  shifted = jnp.where(there[:, None], centers - shift[None], 0)
  half = jnp.where(there, 0.5 * jnp.sum(shifted * shifted, axis=1), jnp.inf)
  ids = jnp.arange(k, dtype=jnp.int32)[None]

  def second(arrays):
    """The nearest of the other centers; -1 where there is none."""
    x, label = arrays
    rows = x.astype(jnp.float32) - shift[None]
    score = half[None] - products.matmul(rows, shifted, transpose_b=True)
    score = jnp.where(ids == label[:, None], jnp.inf, score)
    least = jnp.min(score, axis=1)
    nearest = jnp.argmin(score, axis=1).astype(jnp.int32)
    return jnp.where((least < jnp.inf) & (label >= 0), nearest, -1)

  other = map_tiles(second, (x, labels), width=2 * (k + d), axis_name=axis_name)
  inside = jnp.sqrt(distance2(x, centers, labels, axis_name=axis_name))
  outside = jnp.sqrt(distance2(x, centers, other, axis_name=axis_name))
  outside = jnp.where(other < 0, jnp.inf, outside)
  values = _score(inside, outside, labels, sizes[jnp.maximum(labels, 0)] <= 1)
  return Silhouette(_mean(values, axis_name), values)


def _score(inside, outside, own, alone):
  largest = jnp.maximum(inside, outside)
  score = (outside - inside) / jnp.where(largest > 0, largest, 1)
  return jnp.where((own < 0) | (outside == jnp.inf), jnp.nan, jnp.where(alone, 0, score))


def _mean(values: jax.Array, axis_name: AxisName) -> jax.Array:
  seen = ~jnp.isnan(values)
  total = fixed_tree_sum(values, valid=seen, axis_name=axis_name)
  many = count_rows(seen, axis_name=axis_name).astype(jnp.float32)
  return jnp.where(many > 0, total / jnp.maximum(many, 1), jnp.nan)


def _of_clusters(labels: jax.Array, square: jax.Array, clusters: int) -> jax.Array:
  return jnp.where(jnp.isfinite(square) & (labels >= 0) & (labels < clusters), labels, -1)


def _sizes(labels: jax.Array, clusters: int, axis_name: AxisName) -> jax.Array:
  at = jnp.where(labels >= 0, labels, clusters)
  sizes = jnp.zeros(clusters, jnp.int32).at[at].add(jnp.ones_like(at), mode="drop")
  return sizes if axis_name is None else lax.psum(sizes, axis_name)


def _check(x: jax.Array, labels: jax.Array) -> None:
  check_rows(x, None, None)
  if not x.shape[0]:
    raise ValueError(f"x must have rows to compare, got shape {x.shape}")
  if labels.shape != x.shape[:1] or labels.dtype != jnp.int32:
    raise ValueError(f"labels must be int32 [{x.shape[0]}], got {labels.dtype} {labels.shape}")
