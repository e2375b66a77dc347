"""Seeds of k-means, and what its parts share about rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jsel import native
from jsel.kernels.gather import gather
from jsel.kernels.random import row_gumbel
from jsel.kernels.rows import AxisName, axis_size, check_valid, row_ids, rows, varying
from jsel.kernels.tiles import map_tiles

LONGEST = 2.0**125  # the square of a row's length
CHOSEN = 1e3  # taken off the log-weight of a copy of a seed; no draw makes up for it


@rows("x", "weights", "valid", out=False)
def plus_plus(
  key: jax.Array,
  x: jax.Array,
  k: int,
  *,
  weights: jax.Array | None = None,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> jax.Array:
  r"""Draws ``k`` rows of ``x``, far from each other, to start k-means from.

  .. math:: P(i) \propto w_i \min_{c \text{ drawn}} \lVert x_i - c \rVert^2

  Drawn as the highest of log-probability plus Gumbel noise, the noise of row i
  being a function of the key and i. One pass over ``x`` a center.

  Sharding: rows may be split over ``axis_name``; costs two integers and one row
  over it a center. Bitwise the same on any device count.

  Args:
    key: typed PRNG key.
    x: ``[n, d]`` rows of any real dtype.
    k: how many, static, ``1 <= k <= n``.
    weights: ``[n]``; a row of weight 2 is drawn as two equal rows are, one
      whose weight is below 1.2e-38 or not finite never. All 1 if None.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    ``float32[k, d]`` in the order drawn. No row comes twice, nor does a copy of
    it, while others are left; after that, rows repeat. Rows with a NaN, an
    infinity or a squared length of 2**125 and more are never drawn; with no row to
    draw, all is NaN.

  Raises:
    ValueError: if ``k`` is out of range, or a shape is another.

  Example:
    >>> x = jnp.array([[0.0], [0.0], [9.0]])
    >>> sorted(plus_plus(jax.random.key(0), x, 2).ravel().tolist())
    [0.0, 9.0]

  References:
    Arthur and Vassilvitskii, *k-means++: the advantages of careful seeding*, 2007.
  """
  check_rows(x, weights, valid)
  check_k(k, x.shape[0] * axis_size(axis_name))
  return _plus_plus(key, x, weights, valid, k=int(k), axis_name=axis_name)


@functools.partial(jax.jit, static_argnames=("k", "axis_name"))
def _plus_plus(key, x, weights, valid, *, k, axis_name):
  n, d = x.shape
  usable = jnp.isfinite(square_lengths(x, axis_name))
  log_weights = jnp.log(influence(usable if valid is None else usable & valid, weights))
  ids = row_ids(n, axis_name)

  def draw(j, carry):
    nearest, drawn, centers = carry
    noise_key = jax.random.fold_in(key, j)
    nearest = _closer(x, drawn, nearest, j % 2, axis_name)

    def tile(arrays):
      log_weights, ids, nearest = arrays
      # The first draw goes by weight alone: its `drawn` is infinitely far.
      factor = jnp.where(nearest < jnp.inf, nearest, 1)
      log_factor = jnp.where(factor > 0, jnp.log(factor), -CHOSEN)
      score = log_weights + log_factor + row_gumbel(noise_key, ids)
      return jnp.where(log_weights > -jnp.inf, score, -jnp.inf)

    score = map_tiles(tile, (log_weights, ids, nearest), width=d, axis_name=axis_name)
    best = jnp.max(score)
    best = best if axis_name is None else lax.pmax(best, axis_name)
    index = jnp.min(jnp.where(score == best, ids, np.iinfo(np.int32).max))
    index = index if axis_name is None else lax.pmin(index, axis_name)
    drawn = gather(x, index[None], axis_name=axis_name)[0].astype(jnp.float32)
    drawn = jnp.where(best > -jnp.inf, drawn, jnp.nan)
    return nearest, drawn, centers.at[j].set(drawn)

  nearest = varying(jnp.full(n, jnp.inf, jnp.float32), axis_name)
  start = (nearest, jnp.full(d, jnp.inf, jnp.float32), jnp.zeros((k, d), jnp.float32))
  return lax.fori_loop(0, k, draw, start)[2]


def _closer(
  x: jax.Array, center: jax.Array, nearest: jax.Array, backward: jax.Array, axis_name: AxisName
) -> jax.Array:
  """The lesser of ``nearest[n]`` and the squared distance of each row to ``center``."""
  by_tiles = functools.partial(_closer_by_tiles, axis_name=axis_name)
  if x.dtype != jnp.float32:
    return by_tiles(x, center, nearest, backward)
  return native.on_cpu("closer", _closer_at_once, by_tiles, x, center, nearest, backward)


def _closer_at_once(
  x: jax.Array, center: jax.Array, nearest: jax.Array, backward: jax.Array
) -> jax.Array:
  shape = jax.ShapeDtypeStruct(nearest.shape, jnp.float32)
  return native.call("closer", shape, x, center, nearest, backward, aliases={2: 0})


def _closer_by_tiles(
  x: jax.Array, center: jax.Array, nearest: jax.Array, backward: jax.Array, *, axis_name: AxisName
) -> jax.Array:
  del backward  # tiles of 16 MB leave a cache little of one pass for the next

  def tile(arrays: tuple[jax.Array, jax.Array]) -> jax.Array:
    x, nearest = arrays
    difference = x.astype(jnp.float32) - center[None]
    return jnp.minimum(nearest, jnp.sum(difference * difference, axis=1))

  return map_tiles(tile, (x, nearest), width=x.shape[1], axis_name=axis_name)


def influence(usable: jax.Array, weights: jax.Array | None) -> jax.Array:
  """``float32[n]``: the weight of a row that may move a center, else 0."""
  if weights is None:
    return usable.astype(jnp.float32)
  weights = weights.astype(jnp.float32)
  # What is below the least normal number, some devices take for 0 and some do not.
  counts = (weights >= jnp.finfo(jnp.float32).tiny) & jnp.isfinite(weights)
  return jnp.where(usable & counts, weights, 0)


def in_units(
  weights: jax.Array, labels: jax.Array, k: int, axis_name: AxisName
) -> tuple[jax.Array, jax.Array]:
  """Weights in a unit of their cluster's own, a power of two, all below 1; its exponent, ``[k]``.

  A sum by label keeps 33 bits below the largest of all weights, which one huge weight would leave
  nothing of for the clusters that it is not in.

  >>> weights, labels = jnp.array([3e38, 1.0, 0.0]), jnp.array([0, 1, -1])
  >>> unit, exponent = in_units(weights, labels, 2, None)
  >>> unit.round(2).tolist(), exponent.tolist()
  ([0.8799999952316284, 0.5, 0.0], [128, 1])
  """
  at = jnp.where(labels >= 0, labels, k)
  largest = jnp.zeros(k, jnp.float32).at[at].max(weights, mode="drop")
  largest = largest if axis_name is None else lax.pmax(largest, axis_name)
  exponent = jnp.frexp(jnp.maximum(largest, jnp.finfo(jnp.float32).tiny))[1].astype(jnp.int32)
  return jnp.ldexp(weights, -exponent.at[at].get(mode="fill", fill_value=0)), exponent


def square_lengths(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """``float32[n]``; infinite or NaN for a row that nothing can be computed of."""

  def square(x: jax.Array) -> jax.Array:
    square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=1)
    # Of two others, the square of the distance is finite.
    return jnp.where(square >= LONGEST, jnp.inf, square)

  return map_tiles(square, x, width=x.shape[1], axis_name=axis_name)


def check_rows(x: jax.Array, weights: jax.Array | None, valid: jax.Array | None) -> None:
  """Raises a ValueError unless ``x`` is a matrix and the others have its rows."""
  if x.ndim != 2 or not x.shape[1]:
    raise ValueError(f"x must be a matrix [n, d], got shape {x.shape}")
  if weights is not None and weights.shape != x.shape[:1]:
    raise ValueError(f"weights has shape {weights.shape}, x has {x.shape[0]} rows")
  check_valid(valid, x.shape[0])


def check_k(k: int, count: int) -> None:
  """Raises a ValueError unless ``k`` centers can be had from ``count`` rows."""
  if not isinstance(k, (int, np.integer)) or not 1 <= k <= count:
    raise ValueError(f"k must be a static int within [1, {count}] for {count} rows, got {k}")
