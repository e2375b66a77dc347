"""Random projections to fewer columns that keep lengths and inner products."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jsel import native
from jsel.kernels import precision as products
from jsel.kernels.precision import Precision
from jsel.kernels.random import row_bits
from jsel.kernels.rows import AxisName, rows, varying
from jsel.kernels.tiles import blocks, map_tiles

BLOCK = 2**22  # signs held at a time, 16 MB of them
WORD = 64  # signs that one call of the cipher gives
TILE_ROWS = 2048


@rows("x", out=True)
def rademacher(
  key: jax.Array,
  x: jax.Array,
  dim: int,
  *,
  column_offset: int | jax.Array = 0,
  precision: Precision = "float32",
  axis_name: AxisName = None,
) -> jax.Array:
  r"""Projects the rows of ``x`` to ``dim`` columns by random signs.

  .. math:: y = x R / \sqrt{\mathrm{dim}}, \quad R_{ij} = \pm 1

  Lengths and inner products are kept in expectation; those of n rows all to
  1 +- eps with high probability once ``dim`` is some 8 log(n) / eps^2. R is made
  from the key as it is used, 16 MB at a time: see `signs`.

  Columns may come in chunks, from a model's parameters one by one say: the
  projections of ``x[:, a:b]`` with ``column_offset=a`` add up to that of ``x``.

  Sharding: rows may be split over ``axis_name``; costs nothing over it. Then
  rows are multiplied n / 512 at a time, so that they are bitwise the same on any
  device count. With None they are taken 2048 at a time, and agree with those to
  float32 rounding.

  Args:
    key: typed PRNG key; the same for all chunks.
    x: ``[n, d]`` rows of any real dtype.
    dim: columns of the result, static.
    column_offset: the row of R that the first column of ``x`` meets.
    precision: of the products. The signs are exact in any, so that
      ``"bfloat16_3x"`` costs two products, not three. The kernel in C++
      (`jsel.native`) for CPUs without tiles (AMX) multiplies nothing and adds in
      float32, whatever is said; with them ``"float32"`` costs three products.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    ``float32[n, dim]``. A NaN stays in its row.

  Raises:
    ValueError: if ``x`` is not a matrix, ``dim`` or ``precision`` out of range, or
      rows that are split no multiple of 512.

  Example:
    >>> x = jnp.ones((3, 10))
    >>> y = rademacher(jax.random.key(0), x, 4)
    >>> parts = [rademacher(jax.random.key(0), x[:, i : i + 5], 4, column_offset=i) for i in (0, 5)]
    >>> bool(jnp.allclose(parts[0] + parts[1], y, atol=1e-6))
    True

  References:
    Johnson and Lindenstrauss, *Extensions of Lipschitz mappings into a Hilbert
    space*, 1984; Achlioptas, *Database-friendly random projections*, 2003.
  """
  if x.ndim != 2:
    raise ValueError(f"x must be a matrix [n, d], got shape {x.shape}")
  check_dim(dim)
  products.check(precision)
  known = isinstance(column_offset, (int, np.integer))
  if known and not 0 <= column_offset <= 2**32 - x.shape[1]:
    raise ValueError(
      f"column_offset must be within [0, {2**32 - x.shape[1]}] for {x.shape[1]} columns, "
      f"got {column_offset}: give each of so many columns a key of its own"
    )
  offset = jnp.asarray(column_offset, jnp.uint32)
  return _rademacher(key, x, offset, dim=int(dim), precision=precision, axis_name=axis_name)


def signs(key: jax.Array, ids: jax.Array, dim: int, *, dtype: jnp.dtype = jnp.float32) -> jax.Array:
  """Rows ``ids`` of the matrix R of `rademacher`, before the division by sqrt(dim).

  The sign at (i, j) is a bit of the cipher's word at (i, j // 64): a function of
  key, i and j, whatever else is asked for, ``dim`` included.

  Args:
    key: typed PRNG key.
    ids: ``[r]`` int32 or uint32, the columns of ``x`` that they meet.
    dim: how many columns, static.
    dtype: of the result; every float holds a sign exactly.

  Returns:
    ``[r, dim]`` of -1 and 1.

  Raises:
    ValueError: if ``ids`` are not 32-bit integers of one axis, or ``dim < 1``.

  Example:
    >>> key = jax.random.key(0)
    >>> bool((signs(key, jnp.arange(8), 100)[5:, :70] == signs(key, jnp.arange(5, 8), 70)).all())
    True
  """
  check_dim(dim)
  if ids.ndim != 1:
    raise ValueError(f"ids must be [r], got shape {ids.shape}")
  return _signs(_words(key, ids, dim), dim, dtype)


def _words(key: jax.Array, ids: jax.Array, dim: int) -> jax.Array:
  """The bits of `signs`, 32 columns in each ``uint32``."""
  streams = jnp.arange(-(-dim // WORD), dtype=jnp.uint32)
  words = jax.vmap(lambda stream: row_bits(key, ids, stream=stream), out_axes=1)(streams)
  return words.reshape(ids.shape[0], streams.shape[0] * WORD // 32)  # there may be no rows


def _signs(words: jax.Array, dim: int, dtype: jnp.dtype | type) -> jax.Array:
  bits = words[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)[None, None]
  bits = bits.reshape(words.shape[0], words.shape[1] * 32)[:, :dim] & 1
  return jnp.where(bits == 1, -1, 1).astype(dtype)


@functools.partial(jax.jit, static_argnames=("dim", "precision", "axis_name"))
def _rademacher(key, x, offset, *, dim, precision, axis_name):
  n, d = x.shape
  block = min(max(BLOCK // dim, 1), max(d, 1))
  by_products = functools.partial(_by_products, precision=precision, axis_name=axis_name)

  def add(total: jax.Array, start: jax.Array, size: int) -> jax.Array:
    """``total`` plus the part of columns [start, start + size)."""
    words = _words(key, offset + start + jnp.arange(size, dtype=jnp.uint32), dim)
    arrays = x, total, words, start.astype(jnp.int32)
    if x.dtype != jnp.float32:
      return by_products(*arrays)
    by_sums = functools.partial(_by_sums, parts=products.PARTS[precision])
    return native.on_cpu("rademacher", by_sums, by_products, *arrays)

  total = varying(jnp.zeros((n, dim), jnp.float32), axis_name)
  whole = d // block if d else 0
  if whole > 1:
    starts = jnp.arange(whole, dtype=jnp.uint32) * block
    total, _ = lax.scan(lambda total, start: (add(total, start, block), None), total, starts)
  elif whole:
    total = add(total, jnp.uint32(0), block)
  if d > whole * block:
    total = add(total, jnp.uint32(whole * block), d - whole * block)
  return total / math.sqrt(dim)


def _by_sums(
  x: jax.Array, total: jax.Array, words: jax.Array, column: jax.Array, *, parts: int
) -> jax.Array:
  shape = jax.ShapeDtypeStruct(total.shape, total.dtype)
  arrays = x, total, words, column
  return native.call("rademacher", shape, *arrays, aliases={1: 0}, parts=np.int64(parts))


def _by_products(
  x: jax.Array,
  total: jax.Array,
  words: jax.Array,
  column: jax.Array,
  *,
  precision: Precision,
  axis_name: AxisName,
) -> jax.Array:
  size, dim = words.shape[0], total.shape[1]
  block_signs = _signs(words, dim, jnp.float32 if precision == "float32" else jnp.bfloat16)
  if axis_name is not None:

    def tile(arrays):
      x, total = arrays
      x = lax.dynamic_slice_in_dim(x, column, size, axis=1)
      return total + products.matmul(x, block_signs, precision=precision)

    return map_tiles(tile, (x, total), width=size + dim, axis_name=axis_name)
  # Sliced where they lie: rows cut into an array of tiles would be a copy of x.
  cut = blocks(x.shape[0], TILE_ROWS, None)

  def rows_of(index, total):
    row, first = cut.span(index)
    part = lax.dynamic_slice(x, (row, column), (cut.size, size))
    product = products.matmul(part, block_signs, precision=precision)
    again = row + jnp.arange(cut.size, dtype=jnp.int32) < first  # of the block before
    old = lax.dynamic_slice_in_dim(total, row, cut.size)
    new = old + jnp.where(again[:, None], 0, product)
    return lax.dynamic_update_slice_in_dim(total, new, row, axis=0)

  return lax.fori_loop(0, cut.count, rows_of, total)


def check_dim(dim: int) -> None:
  """Raises ValueError if ``dim`` is no number of columns.

  >>> check_dim(1)
  """
  if not isinstance(dim, (int, np.integer)) or dim < 1:
    raise ValueError(f"dim must be a static int of at least 1, got {dim}")
