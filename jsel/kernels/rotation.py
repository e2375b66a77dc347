"""A rotation: everyone is taken as often as entitled to, whoever is owed most and by lot."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jsel import native
from jsel.kernels import random
from jsel.kernels.highest import mask_of_highest
from jsel.kernels.keys import LOWEST
from jsel.kernels.rows import AxisName, axis_size, check_valid, row_count, row_ids, rows

BITS = 24  # of a unit: to be taken once costs 2**24 of debt


class Turn(NamedTuple):
  """Result of `turn`."""

  mask: jax.Array  # [n] bool, who was taken
  debt: jax.Array  # [n] int32, what rows are owed now, in units of 2**-24
  taken: jax.Array  # [n] int32, how often each was taken


@rows("debt", "share", "taken", "valid", out=True)
def turn(
  key: jax.Array,
  debt: jax.Array,
  share: jax.Array,
  taken: jax.Array,
  k: int,
  *,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> Turn:
  """Adds a share to each row's debt and takes the ``k`` that are owed most, who pay a unit.

  To what is owed a number of [0, 1) is added for the choice, another for each
  row and ``key``: where debts differ by less than one unit it is drawn by lot.
  With shares that sum to ``k`` units debts stay within two units of 0.

  Sharding: integers, so bitwise the same anywhere; costs the exact top-k of
  `jsel.kernels.topk.top_k_mask`. On CPUs with AVX-512, on one device, it is one
  kernel in C++.

  Args:
    key: typed key of this turn.
    debt: ``[n]`` int32, in units of 2**-24; with the share within ``+-2**30``.
    share: ``[n]`` int32, what a turn entitles a row to, in the same units.
    taken: ``[n]`` int32, how often each was taken.
    k: rows to take, within ``[0, n]``. Fewer are taken where fewer are valid.
    valid: ``[n]`` bool, False for padded rows, which are never taken; all rows
      count if None.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    `Turn`. Of equal numbers the lowest id is taken.

  Raises:
    ValueError: if ``k`` is out of range, or a shape or dtype is wrong.

  Example:
    >>> half = jnp.full(4, 1 << 23)
    >>> one = turn(jax.random.key(0), jnp.zeros_like(half), half, jnp.zeros_like(half), 2)
    >>> two = turn(jax.random.key(1), one.debt, half, one.taken, 2)
    >>> int(one.mask.sum()), two.taken.sum().item(), two.debt.sum().item()
    (2, 4, 0)
  """
  for name, x in (("debt", debt), ("share", share), ("taken", taken)):
    if x.dtype != jnp.int32 or x.shape != (debt.shape[0],):
      raise ValueError(f"{name} must be int32 [{debt.shape[0]}], got {x.dtype} {x.shape}")
  check_valid(valid, debt.shape[0], "debt has")
  total = row_count(debt.shape[0], axis_name)
  if not 0 <= k <= total:
    raise ValueError(f"k must be within [0, {total}], got {k}")
  if not debt.shape[0]:
    return Turn(jnp.zeros(0, bool), debt, taken)
  return _turn(key, debt, share, taken, valid, k=int(k), axis_name=axis_name)


def priority(key: jax.Array, debt: jax.Array, ids: jax.Array) -> jax.Array:
  """What `turn` chooses by: the debt of the rows ``ids`` and a lot of less than a unit, int32.

  >>> priority(jax.random.key(0), jnp.array([1 << 24]), jnp.array([5])).dtype
  dtype('int32')
  """
  return debt + (random.row_lot(key, ids) >> (32 - BITS)).astype(jnp.int32)


# Compiled even when called eagerly: one dispatch.
@functools.partial(jax.jit, static_argnames=("k", "axis_name"))
def _turn(key, debt, share, taken, valid, *, k: int, axis_name: AxisName) -> Turn:
  valid = jnp.ones(debt.shape, bool) if valid is None else valid
  arrays = key, debt, share, taken, valid
  in_parts = functools.partial(_in_parts, k=k, axis_name=axis_name)
  if axis_size(axis_name) > 1 or not native.available("rotate"):
    return in_parts(*arrays)
  return jax.lax.platform_dependent(*arrays, cpu=functools.partial(_at_once, k=k), default=in_parts)


def _in_parts(key, debt, share, taken, valid, *, k: int, axis_name: AxisName) -> Turn:
  """A turn by XLA, on any number of devices."""
  debt = debt + share
  keys = jnp.where(valid, priority(key, debt, row_ids(debt.shape[0], axis_name)), LOWEST)
  most = 1 << max(k - 1, 0).bit_length()
  mask = mask_of_highest(keys, None, jnp.int32(k), axis_name, most)
  return Turn(mask, debt - jnp.where(mask, 1 << BITS, 0), taken + mask.astype(jnp.int32))


def _at_once(key, debt, share, taken, valid, *, k: int) -> Turn:
  """A turn of one device by the kernel for CPUs."""
  of = lambda dtype: jax.ShapeDtypeStruct(debt.shape, dtype)
  words = jax.random.bits(key, (2,), jnp.uint32)
  shapes = Turn(of(jnp.bool_), of(jnp.int32), of(jnp.int32))
  return Turn(
    *native.call(
      "rotate",
      tuple(shapes),
      debt,
      share,
      taken,
      valid,
      words,
      jnp.int32(k),
      aliases={0: 1, 2: 2},
      bits=np.int64(BITS),
    )
  )
