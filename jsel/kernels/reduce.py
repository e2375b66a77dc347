"""Sums over rows that are bitwise the same on any number of devices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jsel.kernels.rows import AxisName, axis_size, check_valid, rows

LEAVES = 512  # leaves of every summation tree, and so the most devices that a mesh may have
LANES = 512  # columns that integers are added in, so that the compiler can use vectors
TILE = 2**15 * LANES  # integers whose 16-bit limbs add up within 31 bits in each column
GATHERED = 2**20  # floats; larger sets of partial sums are exchanged piecewise


@rows("x", "valid", out=False)
def fixed_tree_sum(
  x: jax.Array,
  *,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> jax.Array:
  """Sums ``x`` over its rows in one fixed binary tree.

  The rows form 512 leaves of n / 512 consecutive rows. A leaf is folded in
  halves, then the leaves are added in pairs, and so on up; every addition is
  elementwise, so the order is the program's and never the compiler's.

  Sharding: rows may be split over ``axis_name``; costs one all-gather of the
  devices' partial sums (or an all-to-all and an all-gather of pieces where
  those pass a million floats). Bitwise the same on 1, 2, 4, ... 512 devices.

  Args:
    x: ``[n, ...]`` rows of any real dtype, summed in float32. With
      ``axis_name`` the global n is a multiple of 512; without, any n.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over; None on one device.

  Returns:
    ``float32[...]``. A NaN in a valid row makes its own entry NaN.

  Raises:
    ValueError: if ``x`` has no rows axis, ``valid`` another length, or the rows
      do not split into 512 leaves over the axis.

  Example:
    >>> fixed_tree_sum(jnp.arange(1000.0)).item()
    499500.0

  References:
    Demmel and Nguyen, *Fast reproducible floating-point summation*, 2013.
  """
  x = rounded(_masked(x, valid).astype(jnp.float32))
  if axis_name is None:
    x = _pad(x, max(-(-x.shape[0] // LEAVES), 1) * LEAVES)
  leaves = _leaves(x.shape[0], axis_name)
  x = x.reshape(leaves, x.shape[0] // leaves, *x.shape[1:])
  return over_devices(_pairwise(_fold(x)), axis_name)


@rows("arrays", out=False)
def fixed_tree_map_sum(
  function: Callable[[Any, jax.Array], Any],
  arrays: Any,
  *,
  axis_name: AxisName = None,
) -> Any:
  """Sums ``function`` of 512 leaves of rows in one fixed binary tree.

  For statistics too big to hold once per leaf, as covariances and the sums of
  clusters: the tree is walked depth first, two results a level.

  Sharding: rows may be split over ``axis_name``; costs what `fixed_tree_sum`
  does for each result. ``function`` sees leaves of the same shape on any
  device count; as far as it computes the same, the sum is bitwise the same.

  Args:
    function: ``(leaf, leaf_index) -> result``: ``leaf`` as ``arrays`` with
      n / 512 consecutive rows, ``leaf_index`` ``int32[]`` in [0, 512), and
      the result a pytree of arrays, cast to float32.
    arrays: pytree of ``[n, ...]`` arrays; the global n is a multiple of 512.
    axis_name: mesh axis (or axes) that the rows are split over; None on one device.

  Returns:
    The sum, a pytree of float32 as ``function`` returns.

  Raises:
    ValueError: if arrays differ in rows, or those do not split into 512 leaves.

  Example:
    >>> x = jnp.ones((1024, 3))
    >>> fixed_tree_map_sum(lambda leaf, index: leaf.T @ leaf, x)[0].tolist()
    [1024.0, 1024.0, 1024.0]
  """
  counts = {array.shape[0] for array in jax.tree.leaves(arrays)}
  if len(counts) != 1:
    raise ValueError(f"arrays must have the same rows, got {sorted(counts)}")
  leaves = _leaves(counts.pop(), axis_name)
  first = jnp.int32(0) if axis_name is None else jax.lax.axis_index(axis_name) * leaves
  cut = lambda array: array.reshape(leaves, array.shape[0] // leaves, *array.shape[1:])
  split = jax.tree.map(cut, arrays)

  def subtree(size: int, index: jax.Array) -> Any:
    if size == 1:
      leaf = jax.tree.map(
        lambda array: jax.lax.dynamic_index_in_dim(array, index, keepdims=False), split
      )
      result = function(leaf, first + index)
      return jax.tree.map(lambda array: rounded(array.astype(jnp.float32)), result)
    halves = jnp.arange(2, dtype=jnp.int32)
    child = lambda _, half: (None, subtree(size // 2, 2 * index + half))
    _, pair = jax.lax.scan(child, None, halves)
    return jax.tree.map(lambda array: array[0] + array[1], pair)

  total = subtree(leaves, jnp.int32(0))
  return jax.tree.map(lambda array: over_devices(array, axis_name), total)


@rows("mask", out=False)
def count(mask: jax.Array, *, axis_name: AxisName = None) -> jax.Array:
  """How many rows ``mask`` holds for, as ``int32[]``; one integer all-reduce over ``axis_name``.

  Raises:
    ValueError: if ``mask`` is not bool.

  >>> count(jnp.array([True, False, True])).item()
  2
  """
  if mask.dtype != jnp.bool_:
    raise ValueError(f"mask must be bool, got {mask.dtype}: compare it with something")
  total = mask.sum(dtype=jnp.int32)
  return total if axis_name is None else jax.lax.psum(total, axis_name)


class TwoLimb(NamedTuple):
  """The integer ``high * 2**32 + low``."""

  high: jax.Array  # [] int32
  low: jax.Array  # [] uint32


@rows("x", "valid", out=False)
def fixed_point_sum(
  x: jax.Array,
  *,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> TwoLimb:
  """The exact sum of up to 2**31 integers of 32 bits, in any order.

  Sharding: rows may be split over ``axis_name``; costs a sum of four integers
  over it. Exact, hence the same on any device count.

  Args:
    x: ``[n]`` int32, negative or not; any n.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over; None on one device.

  Returns:
    A `TwoLimb`.

  Raises:
    ValueError: if ``x`` is not ``int32[n]``, or ``valid`` has another length.

  Example:
    >>> total = fixed_point_sum(jnp.full(8, 2**30, jnp.int32))
    >>> int(total.high) * 2**32 + int(total.low) == 2**33
    True
  """
  if x.ndim != 1 or x.dtype != jnp.int32:
    raise ValueError(f"x must be int32 [n], got {x.dtype} {x.shape}: scale and round it first")
  x = _masked(x, valid)
  tiles = max(-(-x.shape[0] // TILE), 1)
  x = _pad(x, -(-x.shape[0] // (tiles * LANES)) * tiles * LANES).reshape(tiles, -1, LANES)
  low = jnp.sum(x & 0xFFFF, axis=1, dtype=jnp.int32).ravel()
  high = jnp.sum(x >> 16, axis=1, dtype=jnp.int32).ravel()
  # At most 2**16 of each: sums of their 16-bit limbs stay below 2**32; the last is signed.
  limbs = jnp.stack([low & 0xFFFF, low >> 16, high & 0xFFFF, high >> 16])
  ones, *middle, top = jnp.sum(limbs.astype(jnp.uint32), axis=1, dtype=jnp.uint32)
  total = _carried(ones, middle, top)
  if axis_name is None:
    return total
  words = jnp.stack([total.low, total.high.astype(jnp.uint32)])
  halves = jax.lax.psum(jnp.stack([words & 0xFFFF, words >> 16]), axis_name)
  # The upper half of `high` is modulo 2**16, which is all that is left of it.
  return _carried(halves[0, 0], [halves[1, 0]], halves[0, 1] + (halves[1, 1] << 16))


def two_limb(x: jax.Array | int) -> TwoLimb:
  """An int32 or uint32 (or a Python int of up to 63 bits) as a `TwoLimb`.

  >>> two_limb(-1)
  TwoLimb(high=Array(-1, dtype=int32), low=Array(4294967295, dtype=uint32))
  """
  if isinstance(x, int):
    return TwoLimb(jnp.int32(x >> 32), jnp.uint32(x & 0xFFFFFFFF))
  if x.dtype == jnp.uint32:
    return TwoLimb(jnp.zeros_like(x, jnp.int32), x)
  if x.dtype != jnp.int32:
    raise ValueError(f"a two-limb integer is made of int32 or uint32, got {x.dtype}")
  return TwoLimb(x >> 31, x.astype(jnp.uint32))


def two_limb_add(a: TwoLimb, b: TwoLimb) -> TwoLimb:
  """``a + b``, modulo 2**64.

  >>> two_limb_add(two_limb(2**32 - 1), two_limb(1))
  TwoLimb(high=Array(1, dtype=int32), low=Array(0, dtype=uint32))
  """
  low = a.low + b.low
  return TwoLimb(a.high + b.high + (low < a.low).astype(jnp.int32), low)


def two_limb_less(a: TwoLimb, b: TwoLimb) -> jax.Array:
  """``a < b`` as a bool, as ``two_limb_less(two_limb(-1), two_limb(2**40))`` is."""
  return (a.high < b.high) | ((a.high == b.high) & (a.low < b.low))


def two_limb_to_float(a: TwoLimb) -> jax.Array:
  """The nearest float32, to one unit in the last place.

  >>> two_limb_to_float(two_limb(-3)).item()
  -3.0
  """
  negative = a.high < 0
  # Of the magnitude, as -2**32 + (2**32 - 3) would cancel.
  low = jnp.where(negative, ~a.low + 1, a.low)
  high = jnp.where(negative, ~a.high + (low == 0).astype(jnp.int32), a.high).astype(jnp.uint32)
  size = high.astype(jnp.float32) * 2.0**32 + low.astype(jnp.float32)
  return jnp.where(negative, -size, size)


def _carried(ones: jax.Array, sixteens: list[jax.Array], top: jax.Array) -> TwoLimb:
  """``ones + sum(sixteens) * 2**16 + top * 2**32``."""
  total = TwoLimb(top.astype(jnp.int32), ones)
  for limb in sixteens:
    total = two_limb_add(total, TwoLimb((limb >> 16).astype(jnp.int32), limb << 16))
  return total


def rounded(x: jax.Array) -> jax.Array:
  """float32 ``x``, never unrounded: the compiler cannot contract ``a * b + c`` through integers.

  It does on some shapes and not on others, so the sum of a product would depend
  on the device count. An optimization_barrier is gone by then on the CPU, and a
  test for NaN is decided in advance where the operands cannot be one.

  >>> rounded(jnp.float32(1.5)).item()
  1.5
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  # i**2 + i is even, which no compiler seems to know: the bits are as they were.
  bits = bits | ((bits * bits + bits) & 1)
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _masked(x: jax.Array, valid: jax.Array | None) -> jax.Array:
  if not x.ndim:
    raise ValueError("x must have rows, got a scalar")
  check_valid(valid, x.shape[0])
  x = jnp.asarray(x)  # in 32 bits, where JAX has no more
  if valid is None:
    return x
  return jnp.where(valid.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.zeros((), x.dtype))


def _pad(x: jax.Array, count: int, axis: int = 0) -> jax.Array:
  """``x`` with zeros up to ``count`` along ``axis``."""
  extra = count - x.shape[axis]
  return jnp.pad(x, [(0, extra if i == axis else 0) for i in range(x.ndim)]) if extra else x


def _leaves(count: int, axis_name: AxisName) -> int:
  """How many leaves this device's ``count`` rows are."""
  devices = axis_size(axis_name)
  if devices > LEAVES or devices & (devices - 1):
    raise ValueError(f"rows split over a power of two of devices up to {LEAVES}, got {devices}")
  if (count * devices) % LEAVES:
    raise ValueError(
      f"{count * devices} rows do not split into {LEAVES} leaves: pad them with jsel.pad_rows"
    )
  return LEAVES // devices


def _fold(x: jax.Array) -> jax.Array:
  """Sum over axis 1 of any length, by adding its second half to its first."""
  half = 1 << (x.shape[1] - 1).bit_length()
  while half > 1:
    half //= 2
    x = x[:, :half] + _pad(x[:, half:], half, axis=1)
  return x[:, 0]


def _pairwise(x: jax.Array) -> jax.Array:
  """Sum over axis 0, a power of two long, by adding neighbours."""
  while x.shape[0] > 1:
    x = x.reshape(x.shape[0] // 2, 2, *x.shape[1:])
    x = x[:, 0] + x[:, 1]
  return x[0]


def over_devices(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """The upper levels of the tree: one partial sum a device."""
  devices = axis_size(axis_name)
  if axis_name is None:
    return x
  gather = lambda part: jax.lax.all_gather(part, axis_name, tiled=True, to="invarying")
  if x.size * devices <= GATHERED:
    return _pairwise(gather(x[None]))
  pieces = _pad(x.reshape(-1), -(-x.size // devices) * devices).reshape(devices, -1)
  pieces = jax.lax.all_to_all(pieces, axis_name, 0, 0, tiled=True)
  return gather(_pairwise(pieces))[: x.size].reshape(x.shape)
