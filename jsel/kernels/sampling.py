"""Samples of rows in proportion to weights, and the weights that make their sums unbiased."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jsel.kernels import topk
from jsel.kernels.gather import gather
from jsel.kernels.integers import (
  divide,
  first_above,
  multiply,
  multiply_divide,
  multiply_high,
  prefix_sum,
)
from jsel.kernels.reduce import (
  TwoLimb,
  count,
  fixed_point_sum,
  fixed_tree_sum,
  two_limb_add,
  two_limb_to_float,
)
from jsel.kernels.rows import AxisName, check_valid, rows

UNIT = 2**30  # of a probability, or of the largest weight


class Sample(NamedTuple):
  """Result of `with_replacement` and `systematic`."""

  indices: jax.Array  # [k] int32 global row ids, -1 where there was no row to draw
  weights: jax.Array  # [k] float32, sum(weights * y[indices]) is unbiased for sum(y); 0 for -1
  probabilities: jax.Array  # [k] float32, of a draw or of inclusion


@rows("weights", "valid", out=True)
def inclusion_probabilities(
  weights: jax.Array, k: int, *, valid: jax.Array | None = None, axis_name: AxisName = None
) -> jax.Array:
  r"""Probabilities in proportion to ``weights``, at most 1, of sum ``k``.

  .. math:: \pi_i = \min(1, c \, w_i), \quad \sum_i \pi_i = k

  Rows that would pass 1 are certain; the rest shares what is left, again and
  again until none passes. As integers of 2**-30, so that the sum is exact before
  they are floats, and no row of positive weight gets 0 unless the certain ones
  are k already.

  Sharding: rows may be split over ``axis_name``; costs a few sums of one number a
  round. Bitwise the same on any device count.

  Args:
    weights: ``[n]`` of any real dtype; below 1.2e-38 or not finite in float32 as 0.
    k: size of the sample, static, ``1 <= k <= n``.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    ``float32[n]``, 0 for rows without weight; all others 1 where they are k or fewer.

  Raises:
    ValueError: if a shape or ``k`` is out of range.

  Example:
    >>> inclusion_probabilities(jnp.array([8.0, 1.0, 1.0]), 2).tolist()
    [1.0, 0.5, 0.5]

  References:
    Tillé, *Sampling Algorithms*, 2006, chapter 2.
  """
  weights = _check(weights, valid, k, axis_name)
  design = _design(weights, jnp.int32(k), axis_name)
  return _inclusion(design)


@rows("weights", "valid", out=Sample(False, False, False))  # pyrefly: ignore
def systematic(
  key: jax.Array,
  weights: jax.Array,
  k: int,
  *,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> Sample:
  """``k`` different rows with exactly their `inclusion_probabilities`, by equal strides.

  One random start, then a row at every stride of the summed probabilities, in the
  order of ids: neighbours rarely come together, so an order with a meaning is a
  stratification.

  Sharding: as `inclusion_probabilities`, and sums of arrays of ``k`` integers.
  Bitwise the same on any device count.

  Args:
    key: typed PRNG key.
    weights: ``[n]`` of any real dtype; below 1.2e-38 or not finite in float32 as 0.
    k: rows to draw, static, ``1 <= k <= n``.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    `Sample` of ascending ids with Horvitz-Thompson weights, 1 / probability.

  Raises:
    ValueError: if a shape or ``k`` is out of range.

  Example:
    >>> systematic(jax.random.key(0), jnp.array([9.0, 1.0, 1.0, 0.0]), 3).indices.tolist()
    [0, 1, 2]

  References:
    Madow, *On the theory of systematic sampling, II*, 1949; Horvitz and Thompson, 1952.
  """
  weights = _check(weights, valid, k, axis_name)
  return _systematic(key, weights, k=int(k), axis_name=axis_name)


@rows("weights", "valid", out=Sample(False, False, False))  # pyrefly: ignore
def with_replacement(
  key: jax.Array,
  weights: jax.Array,
  k: int,
  *,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> Sample:
  r"""``k`` independent draws with :math:`p_i = w_i / W`; a row may come many times.

  The inverse of an integer prefix sum, which loses no mass however many rows
  there are; weights are rounded to 2**-30 of the largest.

  Sharding: rows may be split over ``axis_name``; costs a maximum, one integer a
  device and sums of arrays of ``k``. Bitwise the same on any device count.

  Args:
    key: typed PRNG key.
    weights: ``[n]`` of any real dtype; below 1.2e-38 or not finite in float32 as 0.
    k: draws, static, ``1 <= k <= n``.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    `Sample` in the order drawn with Hansen-Hurwitz weights, ``1 / (k p)``.

  Raises:
    ValueError: if a shape or ``k`` is out of range.

  Example:
    >>> with_replacement(jax.random.key(0), jnp.array([0.0, 2.0, 0.0]), 2).weights.tolist()
    [0.5, 0.5]

  References:
    Hansen and Hurwitz, *On the theory of sampling from finite populations*, 1943.
  """
  weights = _check(weights, valid, k, axis_name)
  return _with_replacement(key, weights, k=int(k), axis_name=axis_name)


class _Design(NamedTuple):
  units: jax.Array  # [n] int32, 0 where certain
  certain: jax.Array  # [n] bool
  left: jax.Array  # [] int32, rows that are not certain in the sample
  stride: jax.Array  # [] uint32
  rest: jax.Array  # [] uint32, of the division that gave the stride


def _check(weights, valid, k, axis_name):
  if weights.ndim != 1 or (valid is not None and valid.shape != weights.shape):
    shape = None if valid is None else valid.shape
    raise ValueError(f"weights and valid must be [n], got shapes {weights.shape} and {shape}")
  check_valid(valid, weights.shape[0], "weights have")
  topk._check_count("k", k, weights.shape[0], axis_name, 1)
  weights = weights.astype(jnp.float32)
  counts = jnp.isfinite(weights) & (weights >= jnp.finfo(jnp.float32).tiny)
  return jnp.where(counts if valid is None else counts & valid, weights, 0)


def _relative(weights: jax.Array, axis_name: AxisName) -> jax.Array:
  """Weights by the largest of them."""
  largest = jnp.max(weights)
  largest = largest if axis_name is None else jax.lax.pmax(largest, axis_name)
  # XLA multiplies by the reciprocal, which of the largest floats is 0.
  unit = jnp.where(largest > 2.0**64, jnp.float32(2.0**-64), jnp.float32(1))
  return weights * unit / jnp.maximum(largest * unit, jnp.finfo(jnp.float32).tiny)


@functools.partial(jax.jit, static_argnames="axis_name")
def _design(weights: jax.Array, k: jax.Array, axis_name: AxisName) -> _Design:
  positive = weights > 0  # before the least of them may become 0
  weights = _relative(weights, axis_name)

  def scaled(certain):
    total = fixed_tree_sum(weights, valid=~certain, axis_name=axis_name)
    left = jnp.maximum(k - count(certain, axis_name=axis_name), 0).astype(jnp.float32)
    return weights * (left / jnp.where(total > 0, total, 1))

  def grow(state):
    certain, _ = state
    new = certain | (positive & (scaled(certain) >= 1))
    return new, count(new & ~certain, axis_name=axis_name) > 0

  none = weights < 0
  certain, _ = jax.lax.while_loop(lambda state: state[1], grow, (none, jnp.bool_(True)))
  units = jnp.round(jnp.minimum(scaled(certain), 1) * UNIT).astype(jnp.int32)
  units = jnp.where(positive, jnp.maximum(units, 1), 0)

  def stride_of(certain):
    left = jnp.maximum(k - count(certain, axis_name=axis_name), 0)
    total = fixed_point_sum(units, valid=~certain, axis_name=axis_name)
    return left, *divide(total, jnp.maximum(left, 1).astype(jnp.uint32))

  def settle(state):
    # What the float sum left undecided: no row may be longer than the stride.
    certain, _ = state
    left, stride, _ = stride_of(certain)
    long = (units > 0) & (left > 0) & (units.astype(jnp.uint32) > stride)
    new = certain | long
    return new, count(new & ~certain, axis_name=axis_name) > 0

  certain, _ = jax.lax.while_loop(lambda state: state[1], settle, (certain, jnp.bool_(True)))
  left, stride, rest = stride_of(certain)
  return _Design(jnp.where(certain, 0, units), certain, left, stride, rest)


def _inclusion(design: _Design) -> jax.Array:
  whole = design.stride.astype(jnp.float32)
  part = design.rest.astype(jnp.float32) / jnp.maximum(design.left, 1).astype(jnp.float32)
  share = design.units.astype(jnp.float32) / jnp.maximum(whole + part, 1)
  share = jnp.where(design.left > 0, jnp.minimum(share, 1), 0)
  return jnp.where(design.certain, 1, share)


@functools.partial(jax.jit, static_argnames=("k", "axis_name"))
def _systematic(key, weights, *, k, axis_name):
  n = weights.shape[0]
  design = _design(weights, jnp.int32(k), axis_name)
  bits = jax.random.bits(key, (), jnp.uint32)
  start = multiply(bits, design.stride).high.astype(jnp.uint32)  # uniform in [0, stride)
  j = jnp.arange(k, dtype=jnp.uint32)
  # Strides of the quotient or one more, so that the last ends with the rows.
  extra, _ = multiply_divide(j, design.rest, jnp.maximum(design.left, 1).astype(jnp.uint32))
  position = two_limb_add(
    multiply(j, jnp.broadcast_to(design.stride, j.shape)),
    two_limb_add(_wide(extra), _wide(jnp.broadcast_to(start, j.shape))),
  )
  ends = prefix_sum(design.units.astype(jnp.uint32), axis_name)
  row = first_above(ends, position)
  here = (row < n) & (j < design.left.astype(jnp.uint32))
  if axis_name is not None:
    here &= first_above(_before(ends, design.units), position) == 1
  row = jnp.where(here, row, n)
  mask = design.certain.at[row].set(True, mode="drop")
  indices, found = topk.compact(mask, k, axis_name=axis_name)
  drawn = jnp.arange(k, dtype=jnp.int32) < found
  indices = jnp.where(drawn, indices, -1)
  probability = gather(_inclusion(design), indices, axis_name=axis_name)
  weight = jnp.where(drawn, 1 / jnp.where(drawn, probability, 1), 0)
  return Sample(indices, weight, probability)


@functools.partial(jax.jit, static_argnames=("k", "axis_name"))
def _with_replacement(key, weights, *, k, axis_name):
  n = weights.shape[0]
  units = jnp.round(_relative(weights, axis_name) * UNIT).astype(jnp.int32)
  units = jnp.where(weights > 0, jnp.maximum(units, 1), 0)
  total = fixed_point_sum(units, axis_name=axis_name)
  bits = jax.random.bits(key, (2, k), jnp.uint32)
  everywhere = lambda limb: jnp.broadcast_to(limb, (k,))
  position = multiply_high(
    TwoLimb(bits[0].astype(jnp.int32), bits[1]), jax.tree.map(everywhere, total)
  )
  ends = prefix_sum(units.astype(jnp.uint32), axis_name)
  row = first_above(ends, position)
  here = row < n
  if axis_name is not None:
    here &= first_above(_before(ends, units), position) == 1
    first = jax.lax.axis_index(axis_name) * n
    indices = jax.lax.psum(jnp.where(here, first + row + 1, 0), axis_name) - 1
  else:
    indices = jnp.where(here, row, -1)
  drawn = indices >= 0
  share = gather(units, indices, axis_name=axis_name).astype(jnp.float32)
  probability = jnp.where(drawn, share / jnp.maximum(two_limb_to_float(total), 1), 0)
  weight = jnp.where(drawn, 1 / (k * jnp.where(drawn, probability, 1)), 0)
  return Sample(indices, weight, probability)


def _before(ends: TwoLimb, units: jax.Array) -> TwoLimb:
  """The sum before this device's first row, as one entry."""
  low = ends.low[:1] - units[:1].astype(jnp.uint32)
  return TwoLimb(ends.high[:1] - (low > ends.low[:1]).astype(jnp.int32), low)


def _wide(x: jax.Array) -> TwoLimb:
  return TwoLimb(jnp.zeros_like(x, jnp.int32), x)
