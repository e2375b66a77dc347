"""Sums of rows by label, exact and so in any order: clusters, classes, sources."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jsel import native
from jsel.kernels.rows import AxisName, rows, varying

LIMB = 16  # bits; LIMB_ROWS of them add up within 31 bits
LIMB_ROWS = 2**14
TILE_SIZE = 2**18  # elements, 1 MB: larger ones leave the cache

Limbs = tuple[jax.Array, jax.Array, jax.Array]  # of 16, 16 and 32 bits, from the lowest


@rows("x", "labels", "weights", out=False)
def segment_sum(
  x: jax.Array,
  labels: jax.Array,
  count: int,
  *,
  weights: jax.Array | None = None,
  axis_name: AxisName = None,
) -> jax.Array:
  r"""Sums of rows by label.

  .. math:: s_c = \sum_{i:\, l_i = c} w_i x_i

  Each number is rounded once, to 2**-33 of the power of two above the largest
  of its column; those integers are added exactly, in two limbs.

  Sharding: rows may be split over ``axis_name``; costs one maximum of ``[d]`` and
  one sum of three ``[count, d]`` integers over it. No order of summation
  matters, so the result is bitwise the same on any device count.

  Args:
    x: ``[n, d]`` rows of any real dtype, taken in float32, where on CPU what is below 1.2e-38 is 0.
    labels: ``[n]`` int32; rows labelled outside of [0, count) are left out.
    count: how many labels there are, static.
    weights: ``[n]`` of any real dtype, likewise; all 1 if None.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    ``float32[count, d]``, rounded from the exact sum; 0 where a label has no
    row. A NaN or infinity in a row that counts makes its column NaN.

  Raises:
    ValueError: if shapes or dtypes are others.

  Example:
    >>> segment_sum(jnp.array([[1.0], [2.0], [4.0]]), jnp.array([1, 0, 1]), 2).tolist()
    [[2.0], [5.0]]
  """
  if x.ndim != 2:
    raise ValueError(f"x must be a matrix [n, d], got shape {x.shape}")
  if labels.shape != x.shape[:1] or labels.dtype != jnp.int32:
    raise ValueError(f"labels must be int32 [{x.shape[0]}], got {labels.dtype} {labels.shape}")
  if weights is None:
    weights = jnp.ones_like(labels, jnp.float32)
  if weights.shape != labels.shape:
    raise ValueError(f"weights has shape {weights.shape}, x has {x.shape[0]} rows")
  return _segment_sum(x, labels, weights, count=count, axis_name=axis_name)


# One program: eagerly, every call would compile the loops over tiles again.
@functools.partial(jax.jit, static_argnames=("count", "axis_name"))
def _segment_sum(x, labels, weights, *, count, axis_name):
  weights = weights.astype(jnp.float32)
  counts = (labels >= 0) & (labels < count)
  return sum_by_label(
    x, labels, count, weights, exponents(x, weights, counts, axis_name), axis_name
  )


def exponents(
  x: jax.Array, weights: jax.Array, counts: jax.Array, axis_name: AxisName = None
) -> jax.Array:
  """``int32[d]`` e with all ``|weights * x| < 2**e`` where ``counts``; 2**30 for a column with NaN.

  >>> exponents(jnp.array([[3.0]]), jnp.ones(1), jnp.ones(1, bool)).tolist()
  [2]
  """
  n, d = x.shape
  size = min(max(TILE_SIZE // max(d, 1), 1), n)

  def of_tile(i: jax.Array, largest: jax.Array) -> jax.Array:
    # The last tile ends with the rows, some of which it has in common with the one before.
    start = jnp.minimum(i * size, n - size)
    cut = lambda array: lax.dynamic_slice_in_dim(array, start, size)
    value = jnp.abs(cut(weights)[:, None] * cut(x).astype(jnp.float32))
    # As infinity, since a maximum over devices need not pass NaN on.
    value = jnp.where(cut(counts)[:, None], jnp.where(jnp.isnan(value), jnp.inf, value), 0)
    return jnp.maximum(largest, jnp.max(value, axis=0, initial=0.0))

  largest = varying(jnp.zeros(d, jnp.float32), axis_name)
  largest = lax.fori_loop(0, -(-n // max(size, 1)), of_tile, largest)
  if axis_name is not None:
    largest = lax.pmax(largest, axis_name)
  exponent = jnp.frexp(largest)[1].astype(jnp.int32)
  # Below it the power of two that scales a sum back would not be a normal number.
  return jnp.where(jnp.isfinite(largest), jnp.maximum(exponent, -110), 2**30)


def sum_by_label(
  x: jax.Array,
  labels: jax.Array,
  count: int,
  weights: jax.Array,
  exponent: jax.Array,
  axis_name: AxisName = None,
) -> jax.Array:
  """`segment_sum` where the `exponents` are known, as they are from pass to pass."""
  n, d = x.shape
  if not n:
    return jnp.zeros((count, d), jnp.float32)
  by_tiles = functools.partial(_limbs_by_tiles, count=count, axis_name=axis_name)
  arrays = x, labels, weights, _scale(exponent)
  if x.dtype != jnp.float32:
    return _sum_of_limbs(by_tiles(*arrays), exponent, axis_name)
  by_columns = functools.partial(_limbs_by_columns, count=count)
  limbs = native.on_cpu("segment_sum", by_columns, by_tiles, *arrays)
  return _sum_of_limbs(limbs, exponent, axis_name)


def _limbs_by_columns(
  x: jax.Array, labels: jax.Array, weights: jax.Array, scale: jax.Array, *, count: int
) -> Limbs:
  shape = jax.ShapeDtypeStruct((count, x.shape[1]), jnp.int32)
  ones, middle, top = native.call("segment_sum", (shape, shape, shape), x, labels, weights, scale)
  return ones, middle, top


def _limbs_by_tiles(
  x: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  scale: jax.Array,
  *,
  count: int,
  axis_name: AxisName,
) -> Limbs:
  n, d = x.shape
  size = min(max(TILE_SIZE // max(d, 1), 1), LIMB_ROWS, n)

  def tile(i: jax.Array) -> tuple[jax.Array, jax.Array]:
    # The last tile ends with the rows, and leaves out what the one before has added.
    start = jnp.minimum(i * size, n - size)
    cut = lambda array: lax.dynamic_slice_in_dim(array, start, size)
    fresh = start + jnp.arange(size, dtype=jnp.int32) >= i * size
    values = cut(weights)[:, None] * cut(x).astype(jnp.float32)
    return jnp.where(fresh, cut(labels), -1), values

  return _limbs(tile, -(-n // size), count, scale, axis_name)


def sum_of_tiles(
  tile: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
  tiles: int,
  count: int,
  exponent: jax.Array,
  axis_name: AxisName = None,
) -> jax.Array:
  """`segment_sum` of values that are made tile by tile, and never held as one.

  Args:
    tile: of tile i its ``(labels[size], values[size, d])``, ``size`` at most ``LIMB_ROWS``; values
      labelled outside of [0, count) are left out.
    tiles: how many there are here.
    count: how many labels there are.
    exponent: ``int32[d]``, as of `exponents` for all values on all devices.
    axis_name: mesh axis (or axes) that tiles are split over.

  >>> tile = lambda i: (jnp.array([0, 1, 1]), jnp.ones((3, 1)))
  >>> sum_of_tiles(tile, 5, 2, jnp.array([1])).tolist()
  [[5.0], [10.0]]
  """
  limbs = _limbs(tile, tiles, count, _scale(exponent), axis_name)
  return _sum_of_limbs(limbs, exponent, axis_name)


def _limbs(
  tile: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
  tiles: int,
  count: int,
  scale: jax.Array,
  axis_name: AxisName,
) -> Limbs:
  group = LIMB_ROWS // jax.eval_shape(tile, jnp.int32(0))[0].shape[0]

  def add_tile(i: jax.Array, limbs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    label, values = tile(i)
    counts = (label >= 0) & (label < count)
    values = jnp.where(counts[:, None], values, 0) * scale[None]
    high = jnp.round(values)
    low = jnp.round((values - high) * 2.0**LIMB)
    label = jnp.where(counts, label, count)
    add = lambda limb, value: limb.at[label].add(value.astype(jnp.int32), mode="drop")
    return add(limbs[0], low), add(limbs[1], high)

  def add_group(g: jax.Array, total: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    last = jnp.minimum((g + 1) * group, tiles)
    low, high = lax.fori_loop(g * group, last, add_tile, (zeros, zeros))
    ones = total[0] + low
    middle = total[1] + high + (ones >> LIMB)
    top = total[2] + (middle >> LIMB)
    return ones & (2**LIMB - 1), middle & (2**LIMB - 1), top

  zeros = varying(jnp.zeros((count, scale.shape[0]), jnp.int32), axis_name)
  return lax.fori_loop(0, -(-tiles // group), add_group, (zeros, zeros, zeros))


def _sum_of_limbs(total: Limbs, exponent: jax.Array, axis_name: AxisName) -> jax.Array:
  if axis_name is not None:
    ones, middle, top = lax.psum(total, axis_name)
    middle = middle + (ones >> LIMB)
    # Carried again: the floats below round alike only if the limbs are the same.
    total = ones & (2**LIMB - 1), middle & (2**LIMB - 1), top + (middle >> LIMB)
  ones, middle, top = (limb.astype(jnp.float32) for limb in total)
  # Powers of two: nothing but the last addition rounds, whether or not it is fused.
  # A constant factor at the end would be merged with the power below, to less than float32 holds.
  result = (top * 2.0**LIMB + middle) + ones * 2.0**-LIMB
  bounded = _bounded(exponent)
  return jnp.where((exponent == 2**30)[None], jnp.nan, result * _power_of_two(bounded - LIMB)[None])


def _bounded(exponent: jax.Array) -> jax.Array:
  return jnp.where(exponent == 2**30, 0, exponent)


def _scale(exponent: jax.Array) -> jax.Array:
  """What values are multiplied by for their integers to fill the upper limb."""
  return _power_of_two(LIMB - _bounded(exponent))


def _power_of_two(exponent: jax.Array) -> jax.Array:
  """2**exponent exactly, for exponents of normal numbers."""
  return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)
