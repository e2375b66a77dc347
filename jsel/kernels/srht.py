"""The subsampled randomized Hadamard transform: a random projection without a matrix of signs."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jsel import native
from jsel.kernels import precision as products
from jsel.kernels.permutation import permute
from jsel.kernels.precision import Precision
from jsel.kernels.projection import signs
from jsel.kernels.rows import AxisName, rows, varying
from jsel.kernels.tiles import blocks

BLOCK = 2**20  # floats of transformed rows at a time: more would not stay in cache


@rows("x", out=True)
def srht(
  key: jax.Array,
  x: jax.Array,
  dim: int,
  *,
  precision: Precision = "float32",
  axis_name: AxisName = None,
) -> jax.Array:
  r"""Projects the rows of ``x`` to ``dim`` coordinates of a random rotation.

  .. math:: y = x D H S / \sqrt{\mathrm{dim}}

  with random signs D on the columns, H the Hadamard matrix of the least power of
  two p >= d (rows are continued by zeros), and S that takes ``dim`` of the p
  coordinates, drawn without replacement. Lengths and inner products are kept in
  expectation, as by `jsel.kernels.projection.rademacher`; with ``dim = p``, exactly.
  H is the Kronecker product of two Hadamard matrices of size near sqrt(p): two
  small products a row whatever ``dim`` is, where `rademacher` takes d * dim.

  Fewer coordinates are a prefix of more, up to the scale.

  Sharding: rows may be split over ``axis_name``; costs nothing over it. Then
  rows are multiplied n / 512 or fewer at a time, so that they are bitwise the
  same on any device count. With None they are cut otherwise, and agree with
  those to float32 rounding. Beside ``x`` and the result, some 4 MB are held a few
  times over (one row, where that is more).

  Args:
    key: typed PRNG key; it alone gives signs and coordinates.
    x: ``[n, d]`` rows of any real dtype.
    dim: columns of the result, static, at most p.
    precision: of the products. H is exact in any, so that ``"bfloat16_3x"``
      costs two products each, not three. The kernel in C++ (`jsel.native`)
      multiplies nothing and adds in float32, whatever is said.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    ``float32[n, dim]``. A NaN makes its own row NaN, and so may an infinity.

  Raises:
    ValueError: if ``x`` is not a matrix with columns, ``dim`` or ``precision`` out
      of range, or rows that are split no multiple of 512.

  Example:
    >>> x = jnp.array([[3.0, 0.0, 4.0], [0.0, 1.0, 0.0]])
    >>> jnp.linalg.norm(srht(jax.random.key(0), x, 4), axis=1).tolist()
    [5.0, 1.0]

  References:
    Ailon and Chazelle, *The fast Johnson-Lindenstrauss transform and approximate
    nearest neighbors*, 2009; Tropp, *Improved analysis of the subsampled
    randomized Hadamard transform*, 2011, arXiv 1011.1595.
  """
  if x.ndim != 2 or not x.shape[1]:
    raise ValueError(f"x must be a matrix [n, d] with columns, got shape {x.shape}")
  most = _power_of_two(x.shape[1])
  if not isinstance(dim, (int, np.integer)) or not 1 <= dim <= most:
    raise ValueError(
      f"dim must be a static int within [1, {most}] for {x.shape[1]} columns, got {dim}: "
      "projection.rademacher takes any"
    )
  products.check(precision)
  return _srht(key, x, dim=int(dim), precision=precision, axis_name=axis_name)


@functools.partial(jax.jit, static_argnames=("dim", "precision", "axis_name"))
def _srht(key, x, *, dim, precision, axis_name):
  d = x.shape[1]
  size = _power_of_two(d)
  sign_key, coordinate_key = jax.random.split(key)
  column_signs = signs(sign_key, jnp.arange(d, dtype=jnp.int32), 1)[:, 0]
  coordinates = permute(coordinate_key, jnp.arange(dim, dtype=jnp.int32), size)
  by_products = functools.partial(_by_products, size=size, precision=precision, axis_name=axis_name)
  if x.dtype != jnp.float32 or size < native.LANES:
    return by_products(x, column_signs, coordinates)
  in_cache = functools.partial(_in_cache, size=size)
  return native.on_cpu("srht", in_cache, by_products, x, column_signs, coordinates)


def _in_cache(
  x: jax.Array, column_signs: jax.Array, coordinates: jax.Array, *, size: int
) -> jax.Array:
  shape = jax.ShapeDtypeStruct((x.shape[0], coordinates.shape[0]), jnp.float32)
  return native.call("srht", shape, x, column_signs, coordinates, size=size)


def _by_products(
  x: jax.Array,
  column_signs: jax.Array,
  coordinates: jax.Array,
  *,
  size: int,
  precision: Precision,
  axis_name: AxisName,
) -> jax.Array:
  d, dim = x.shape[1], coordinates.shape[0]
  left = 1 << (size.bit_length() - 1) // 2
  right = size // left
  dtype = jnp.float32 if precision == "float32" else jnp.bfloat16
  left_matrix, right_matrix = (jnp.asarray(_hadamard(part), dtype) for part in (left, right))

  def transform(row: jax.Array) -> jax.Array:
    row = jnp.pad(row.astype(jnp.float32) * column_signs, (0, size - d)).reshape(left, right)
    row = products.matmul(row, right_matrix, precision=precision)
    row = products.matmul(row.T, left_matrix, precision=precision)
    # The entry (i, j) of the rotated row now lies at (j, i).
    return row.reshape(-1)[(coordinates % right) * left + coordinates // right]

  cut = blocks(x.shape[0], max(BLOCK // size, 1), axis_name)

  def add_block(index: jax.Array, y: jax.Array) -> jax.Array:
    start, _ = cut.span(index)
    block = jax.vmap(transform)(lax.dynamic_slice_in_dim(x, start, cut.size))
    return lax.dynamic_update_slice_in_dim(y, block / math.sqrt(dim), start, axis=0)

  y = varying(jnp.zeros((x.shape[0], dim), jnp.float32), axis_name)
  return lax.fori_loop(0, cut.count, add_block, y)


def _hadamard(size: int) -> np.ndarray:
  """The Hadamard matrix of a power of two (Sylvester's)."""
  ids = np.arange(size, dtype=np.uint32)
  return 1 - 2 * (np.bitwise_count(ids[:, None] & ids[None]) & 1).astype(np.float32)


def _power_of_two(size: int) -> int:
  return 1 << (size - 1).bit_length()
