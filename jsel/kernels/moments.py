"""Count, mean and centred second moment of rows, in parts that merge."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jsel import native
from jsel.kernels import precision as products
from jsel.kernels.gather import gather
from jsel.kernels.precision import Precision
from jsel.kernels.reduce import (
  LEAVES,
  TwoLimb,
  fixed_tree_map_sum,
  two_limb,
  two_limb_add,
  two_limb_to_float,
)
from jsel.kernels.rows import AxisName, check_valid, row_ids, rows
from jsel.kernels.tiles import blocks

BLOCK = 2**20  # floats of a block of rows, 4 MB: larger ones leave the cache
STRIP = 256  # columns of the covariance that one product gives


class Moments(NamedTuple):
  """What is known of the rows seen so far; a monoid under `merge`."""

  count: TwoLimb  # valid rows, exact beyond 2**31
  mean: jax.Array  # [d] float32
  scatter: jax.Array  # sum of squared deviations [d], or of their outer products [d, d], float32


def init(d: int, *, covariance: bool = False) -> Moments:
  """The moments of no rows.

  Args:
    d: columns of the rows to come.
    covariance: whether to keep products of columns too, ``[d, d]`` floats.

  Raises:
    ValueError: if ``d`` is below 1.

  >>> init(3).mean.tolist()
  [0.0, 0.0, 0.0]
  """
  if d < 1:
    raise ValueError(f"rows need at least one column, got d = {d}")
  shape = (d, d) if covariance else (d,)
  return Moments(two_limb(0), jnp.zeros(d, jnp.float32), jnp.zeros(shape, jnp.float32))


@rows("x", "valid", out=False)
def update(
  moments: Moments,
  x: jax.Array,
  *,
  valid: jax.Array | None = None,
  precision: Precision = "float32",
  axis_name: AxisName = None,
) -> Moments:
  """Adds rows to ``moments``.

  Rows are taken relative to a valid one before they are averaged, and to a mean
  before they are squared: a mean of 1e4 does not cancel, and a constant column
  has a second moment of exactly 0.

  Sharding: rows may be split over ``axis_name``; costs four sums of ``[d]`` or
  less, and one of the scatter. Bitwise the same on any device count, for n a
  multiple of 512: n / 512 rows are cast at a time. Other n are cut into fewer
  and larger tiles. ``x`` is never held in float32 whole.

  Args:
    moments: what `init`, `update` or `merge` returned, the same on every device.
    x: ``[n, d]`` rows of any real dtype.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    precision: of the products of columns, where there is a covariance: with
      ``"bfloat16_3x"`` half of them, good to 2**-16 of a term.
    axis_name: mesh axis (or axes) that the rows are split over, inside
      ``jax.shard_map`` or ``jax.pmap``; None on one device.

  Returns:
    The `Moments` of both. A NaN or an infinity in a valid row leaves neither
    mean nor scatter of its column finite.

  Raises:
    ValueError: if ``x`` is not ``[n, d]``, ``valid`` has another length, or
      ``precision`` is unknown.

  Example:
    >>> mean, variance = finish(update(init(1), jnp.array([[1.0], [3.0]])))
    >>> mean.tolist(), variance.tolist()
    ([2.0], [1.0])

  References:
    Chan, Golub, LeVeque, *Updating formulae and a pairwise algorithm for
    computing sample variances*, 1979.
  """
  if x.ndim != 2 or x.shape[1] != moments.mean.shape[0]:
    raise ValueError(f"x must be [n, {moments.mean.shape[0]}] as the moments, got {x.shape}")
  check_valid(valid, x.shape[0])
  products.check(precision)
  if not x.shape[0]:
    return moments
  if valid is None:
    valid = jnp.ones(x.shape[0], bool)
  return merge(moments, _of_rows(x, valid, moments.scatter.ndim == 2, precision, axis_name))


def merge(a: Moments, b: Moments) -> Moments:
  """The moments of the rows of both.

  Associative up to float32 rounding: merge parts in a fixed order where the
  result is to be the same bit by bit.

  >>> x = jnp.arange(6.0)[:, None]
  >>> parts = update(init(1), x[:2]), update(init(1), x[2:])
  >>> finish(merge(*parts))[1].item() == finish(update(init(1), x))[1].item()
  True
  """
  if a.scatter.shape != b.scatter.shape:
    raise ValueError(f"moments of shapes {a.scatter.shape} and {b.scatter.shape} do not merge")
  count = two_limb_add(a.count, b.count)
  size_a, size_b, size = (two_limb_to_float(c) for c in (a.count, b.count, count))
  share_b = size_b / jnp.maximum(size, 1)
  delta = b.mean - a.mean
  square = jnp.outer(delta, delta) if a.scatter.ndim == 2 else delta**2
  # Barriers keep the additions unfused, hence the same in every program.
  step, between = jax.lax.optimization_barrier((delta * share_b, square * (size_a * share_b)))
  mean, scatter = a.mean + step, a.scatter + b.scatter + between
  # Exactly the other part where one is empty.
  choose = lambda merged, a, b: jnp.where(size_a == 0, b, jnp.where(size_b == 0, a, merged))
  return Moments(count, choose(mean, a.mean, b.mean), choose(scatter, a.scatter, b.scatter))


def finish(moments: Moments, *, ddof: int = 0) -> tuple[jax.Array, jax.Array]:
  """Mean ``[d]`` and variance ``[d]`` (or covariance ``[d, d]``) of the rows seen.

  Args:
    moments: what `update` or `merge` returned.
    ddof: subtracted from the count that divides: 0 of a population, 1 of a sample.

  Returns:
    ``(mean, variance)``, float32; the variance is NaN for ``ddof`` rows or fewer,
    the mean of no rows 0.

  >>> finish(update(init(1), jnp.array([[1.0], [3.0]])), ddof=1)[1].item()
  2.0
  """
  size = two_limb_to_float(two_limb_add(moments.count, two_limb(-ddof)))
  size = jax.lax.optimization_barrier(jnp.where(size > 0, size, jnp.nan))
  return moments.mean, moments.scatter / size


# One program: eagerly, every call would compile the loops of the trees again.
@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _of_rows(
  x: jax.Array, valid: jax.Array, covariance: bool, precision: Precision, axis_name: AxisName
) -> Moments:
  count = jnp.sum(valid, dtype=jnp.int32)
  count = count if axis_name is None else jax.lax.psum(count, axis_name)
  by_sums = functools.partial(
    _by_sums, covariance=covariance, precision=precision, axis_name=axis_name
  )
  # Rows that may be split are added in the tree that they would be added in if they were.
  in_tree = axis_name is not None or x.shape[0] % LEAVES == 0
  if not covariance or in_tree or x.dtype != jnp.float32:
    mean, scatter = by_sums(x, valid, count)
  else:
    at_once = functools.partial(_at_once, precision=precision)
    mean, scatter = native.on_cpu("gram", at_once, by_sums, x, valid, count)
  return Moments(two_limb(count), mean, scatter)


def _at_once(
  x: jax.Array, valid: jax.Array, count: jax.Array, *, precision: Precision
) -> tuple[jax.Array, jax.Array]:
  del count
  shape = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  shapes = shape(x.shape[1]), shape(x.shape[1], x.shape[1])
  parts = np.int64(products.PARTS[precision])
  mean, scatter = native.call("gram", shapes, x, valid, parts=parts)
  return mean, scatter


def _by_sums(
  x: jax.Array,
  valid: jax.Array,
  count: jax.Array,
  *,
  covariance: bool,
  precision: Precision,
  axis_name: AxisName,
) -> tuple[jax.Array, jax.Array]:
  """The mean, and the scatter of rows that are taken to it."""
  first = jnp.min(jnp.where(valid, row_ids(x.shape[0], axis_name), jnp.iinfo(jnp.int32).max))
  first = first if axis_name is None else jax.lax.pmin(first, axis_name)
  pivot = gather(x, first[None], axis_name=axis_name).astype(jnp.float32)  # [1, d]

  def sum_over_rows(
    function: Callable[[jax.Array], Any], x: jax.Array, valid: jax.Array, *centres: jax.Array
  ) -> Any:
    def of_leaf(leaf: tuple[jax.Array, jax.Array], _: jax.Array) -> Any:
      x, valid = leaf
      x = x.astype(jnp.float32)
      for centre in centres:
        x -= centre
      return function(jnp.where(valid[:, None], x, 0))

    if axis_name is None and x.shape[0] % LEAVES:
      return _sum_of_blocks(of_leaf, x, valid)
    return fixed_tree_map_sum(of_leaf, (x, valid), axis_name=axis_name)

  # Where no row is invalid, the count is a constant, and might be divided by in another way.
  size = jax.lax.optimization_barrier(jnp.maximum(count, 1).astype(jnp.float32))
  shift = sum_over_rows(lambda x: x.sum(0, keepdims=True), x, valid, pivot) / size
  function = functools.partial(_upper_products, precision=precision) if covariance else _squares
  scatter = sum_over_rows(function, x, valid, pivot, shift)
  return (pivot + shift)[0], _whole(scatter) if covariance else scatter


def _squares(x: jax.Array) -> jax.Array:
  # Unfused, as the compiler might contract product and sum on some shapes only.
  return jax.lax.optimization_barrier(x * x).sum(0)


def _sum_of_blocks(function: Callable[..., Any], x: jax.Array, valid: jax.Array) -> Any:
  """``function`` of blocks of rows, where they lie, added one after the other."""
  cut = blocks(x.shape[0], max(BLOCK // max(x.shape[1], 1), 1), None)

  def part(index: jax.Array) -> Any:
    row, first = cut.span(index)
    take = lambda array: jax.lax.dynamic_slice_in_dim(array, row, cut.size)
    # Rows that the block before has had, too.
    fresh = row + jnp.arange(cut.size, dtype=jnp.int32) >= first
    return function((take(x), take(valid) & fresh), index)

  add = lambda index, total: jax.tree.map(jnp.add, total, part(index))
  shapes = jax.eval_shape(part, jnp.int32(0))
  zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
  return jax.lax.fori_loop(0, cut.count, add, zeros)


def _upper_products(x: jax.Array, *, precision: Precision) -> list[jax.Array]:
  """Strips ``[width, d - start]`` of ``x.T @ x``, none left of its diagonal block."""
  product = functools.partial(products.matmul, precision=precision)
  starts = range(0, x.shape[1], STRIP)
  return [product(x[:, start : start + STRIP].T, x[:, start:]) for start in starts]


def _whole(strips: list[jax.Array]) -> jax.Array:
  """The symmetric matrix of its `_upper_products`."""

  def row_of_blocks(row: int) -> jax.Array:
    start, width = row * STRIP, strips[row].shape[0]
    offsets = [start - column * STRIP for column in range(row)]
    left = [strips[column][:, offset : offset + width].T for column, offset in enumerate(offsets)]
    # Its two halves are rounded apart.
    diagonal = strips[row][:, :width]
    return jnp.concatenate([*left, 0.5 * (diagonal + diagonal.T), strips[row][:, width:]], axis=1)

  return jnp.concatenate([row_of_blocks(row) for row in range(len(strips))])
