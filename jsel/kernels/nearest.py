"""The nearest of some centers for every row, and how far it is."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jsel import native
from jsel.kernels import precision as products
from jsel.kernels.precision import Precision
from jsel.kernels.rows import AxisName
from jsel.kernels.tiles import map_tiles

SAMPLED = 64  # centers whose median the others are taken relative to
MOST = 2**24  # centers: their ids are compared as float32
EIGHTHS = (1, 2, 3, 4)  # of the rows of a tile, that are decided anew; all where more are in doubt
UNIT = 2.0**-24  # rounding of float32


def nearest(
  x: jax.Array,
  centers: jax.Array,
  usable: jax.Array,
  *,
  precision: Precision,
  axis_name: AxisName,
) -> jax.Array:
  """``int32[n]``, ties to the lowest center; -1 where not ``usable`` or no center is finite.

  With ``"bfloat16_3x"`` one bfloat16 product finds the two nearest. Where what it rounded off
  could have exchanged them, a float32 product decides: labels are those of float32, for a
  product at the speed of bfloat16 and another of few rows. A CPU that multiplies bfloat16 does so
  for ``"float32"``, too, and compares in float32 those centers alone that could be nearest.
  """
  finite = jnp.isfinite(centers).all(axis=1)
  # Relative to their middle: a common offset would cancel in |c|^2 / 2 - x.c, digits and all. Their
  # mean would follow a single center that is far away, and digits of the others be lost to it.
  shift = median_of(centers, finite)
  shifted = jnp.where(finite[:, None], centers - shift[None], 0)
  half_norm = jnp.where(finite, 0.5 * jnp.sum(shifted * shifted, axis=1), jnp.inf)
  tiled = functools.partial(_tiled, precision=precision, axis_name=axis_name)
  if x.dtype != jnp.float32:
    return tiled(x, usable, shift, shifted, half_norm)
  at_once = functools.partial(_at_once, exact=precision != "bfloat16")
  return native.on_cpu("nearest", at_once, tiled, x, usable, shift, shifted, half_norm)


def _at_once(
  x: jax.Array,
  usable: jax.Array,
  shift: jax.Array,
  shifted: jax.Array,
  half_norm: jax.Array,
  *,
  exact: bool,
) -> jax.Array:
  shape = jax.ShapeDtypeStruct(usable.shape, jnp.int32)
  label = native.call("nearest", shape, x, shift, shifted, half_norm, exact=exact)
  return jnp.where(usable, label, -1)


def _tiled(
  x: jax.Array,
  usable: jax.Array,
  shift: jax.Array,
  shifted: jax.Array,
  half_norm: jax.Array,
  *,
  precision: Precision,
  axis_name: AxisName,
) -> jax.Array:
  k, d = shifted.shape
  length = lambda rows: jnp.sqrt(jnp.sum(rows * rows, axis=1))
  center_length, center_off = length(shifted), length(shifted - _as_bfloat16(shifted))

  def scores(rows: jax.Array, precision: Precision) -> jax.Array:
    product = products.matmul(rows, shifted, precision=precision, transpose_b=True)
    return half_norm[None] - product

  def decide(rows: jax.Array) -> jax.Array:
    return _lowest(scores(rows, "float32"))[0]

  def in_doubt(rows: jax.Array, score: jax.Array, label: jax.Array, low: jax.Array) -> jax.Array:
    """Whether float32 could have another order than the bfloat16 product, by Cauchy-Schwarz."""
    rough = _as_bfloat16(rows)
    own = (length(rows - rough) + UNIT * (d + 4) * length(rows))[:, None]
    sums = UNIT * (d + 4) * jnp.max(center_length) ** 2
    off = own * center_length[None] + length(rough)[:, None] * center_off[None] + sums
    ids = jnp.arange(k, dtype=jnp.int32)[None]
    others = jnp.min(jnp.where(ids == label[:, None], jnp.inf, score - 1.001 * off), axis=1)
    longest = own[:, 0] * jnp.max(center_length) + length(rough) * jnp.max(center_off) + sums
    return ~(others > low + 1.001 * longest)

  def tile(arrays: tuple[jax.Array, jax.Array]) -> jax.Array:
    x, usable = arrays
    rows = x.astype(jnp.float32) - shift[None]
    if precision != "bfloat16_3x":
      label, _ = _lowest(scores(rows, precision))
    else:
      score = scores(rows, "bfloat16")
      label, low = _lowest(score)
      label = _where_few(usable & in_doubt(rows, score, label, low), label, rows, decide)
    return jnp.where(usable, label, -1)

  # A row takes itself, shifted and as bfloat16, and its scores.
  return map_tiles(tile, (x, usable), width=2 * (k + d), axis_name=axis_name)


def distance2(
  x: jax.Array, centers: jax.Array, labels: jax.Array, *, axis_name: AxisName
) -> jax.Array:
  """``float32[n]``, squared, of the differences and so exact at 0; NaN where labelled -1."""

  def tile(arrays: tuple[jax.Array, jax.Array]) -> jax.Array:
    x, label = arrays
    difference = x.astype(jnp.float32) - centers.at[label].get(mode="clip")
    return jnp.where(label < 0, jnp.nan, jnp.sum(difference * difference, axis=1))

  return map_tiles(tile, (x, labels), width=2 * x.shape[1], axis_name=axis_name)


def median_of(centers: jax.Array, finite: jax.Array) -> jax.Array:
  """``[d]``: the lower median of the finite ones of up to 64 centers; zeros if none is.

  >>> median_of(jnp.array([[9.0], [1.0], [jnp.nan], [1e9]]), jnp.array([1, 1, 0, 1], bool)).tolist()
  [9.0]
  """
  sample = slice(None, None, -(-centers.shape[0] // SAMPLED))
  values = jnp.sort(jnp.where(finite[sample, None], centers[sample], jnp.inf), axis=0)
  middle = values[jnp.maximum(jnp.sum(finite[sample], dtype=jnp.int32) - 1, 0) // 2]
  return jnp.where(jnp.isfinite(middle), middle, 0)


def mean_of(centers: jax.Array, finite: jax.Array) -> jax.Array:
  """``[d]``: the mean of the centers that are finite; zeros if none is."""
  total = jnp.sum(jnp.where(finite[:, None], centers, 0), axis=0)
  return total / jnp.maximum(jnp.sum(finite, dtype=jnp.float32), 1)


def _lowest(score: jax.Array) -> tuple[jax.Array, jax.Array]:
  """``int32[b]``: where ``score[b, k]`` is lowest, -1 if nowhere; and what it is there."""
  # Minima of float32 over a row vectorise; argmin and minima of integers do not.
  ids = jnp.arange(score.shape[1], dtype=jnp.float32)[None]
  low = jnp.min(score, axis=1, keepdims=True)
  label = jnp.min(jnp.where(score <= low, ids, jnp.inf), axis=1)
  return jnp.where(low[:, 0] < jnp.inf, label, -1).astype(jnp.int32), low[:, 0]


def _where_few(
  doubt: jax.Array, label: jax.Array, rows: jax.Array, decide: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """``label``, replaced by ``decide(rows)`` where in doubt; of no more rows than have to be."""
  size = rows.shape[0]
  position = jnp.cumsum(doubt, dtype=jnp.int32) - 1

  def some(capacity: int) -> jax.Array:
    ids = jnp.full(capacity, size, jnp.int32)
    ids = ids.at[jnp.where(doubt, position, capacity)].set(
      jnp.arange(size, dtype=jnp.int32), mode="drop"
    )
    return label.at[ids].set(decide(rows.at[ids].get(mode="clip")), mode="drop")

  capacities = [-(-size * eighths // 8) for eighths in EIGHTHS]
  choices = [functools.partial(some, capacity) for capacity in capacities]
  enough = jnp.sum(jnp.array(capacities) < position[-1] + 1)
  return lax.switch(enough, [*choices, lambda: jnp.where(doubt, decide(rows), label)])


def _as_bfloat16(x: jax.Array) -> jax.Array:
  # A cast there and back may be simplified away.
  return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
