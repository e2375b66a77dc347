"""The k-th highest of int32 keys, the rows up to it, and the ids of a mask."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jsel.kernels import bits
from jsel.kernels.keys import LOWEST
from jsel.kernels.rows import AxisName

_TIE_BLOCK = 512
_LARGE = 2**16  # rows up to which three short histograms are faster than two of 65,536 bins


def kth_by_histogram(
  keys: jax.Array, k: jax.Array, axis_name: AxisName
) -> tuple[jax.Array, jax.Array]:
  """The k-th highest key, and how many of that key belong to the ``k``.

  By histograms of the upper and then the lower bits, of those that the upper ones leave.
  """
  ordered = lax.bitcast_convert_type(keys, jnp.uint32) ^ jnp.uint32(2**31)
  found, below = jnp.uint32(0), 32
  for width in (12, 10, 10) if keys.shape[0] <= _LARGE else (16, 16):
    below -= width
    digits = ((ordered >> below) & (2**width - 1)).astype(jnp.int32)
    if below + width < 32:
      # Digits of rows that are out already fall outside of the histogram.
      digits = jnp.where(ordered >> (below + width) == found, digits, 2**width)
    counts = sum_over(_histogram(digits, 2**width), axis_name).reshape(2 ** (width // 2), -1)
    coarse, k = _bin_of_kth(counts.sum(1, dtype=jnp.int32), k)
    fine, k = _bin_of_kth(counts[coarse], k)
    digit = coarse * counts.shape[1] + fine
    found = (found << width) | digit.astype(jnp.uint32)
  return lax.bitcast_convert_type(found ^ jnp.uint32(2**31), jnp.int32), k


def _histogram(digits: jax.Array, bins: int) -> jax.Array:
  """How many there are of each digit below ``bins``; others are not counted."""
  # XLA on CPU counts by one thread, but several parts at once.
  parts = jnp.array_split(digits, 8 if digits.shape[0] >= 2**22 else 1)
  counts = [jnp.zeros(bins, jnp.int32).at[part].add(1, mode="drop") for part in parts]
  return functools.reduce(jnp.add, counts)


def _bin_of_kth(counts: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The bin of the k-th from above, and what k is within that bin."""
  bins = jnp.arange(counts.shape[0])
  at_least = jnp.where(bins[None, :] >= bins[:, None], counts[None, :], 0).sum(1, dtype=jnp.int32)
  found = jnp.maximum((at_least >= k).sum(dtype=jnp.int32) - 1, 0)
  return found, k - (at_least[found] - counts[found])


def kth_by_counting(
  keys: jax.Array, k: jax.Array, axis_name: AxisName
) -> tuple[jax.Array, jax.Array]:
  """`kth_by_histogram`, four bits a pass, by comparisons and no scatter."""
  digits = jnp.arange(1, 16, dtype=jnp.int32)[:, None]
  kth, above = jnp.int32(LOWEST), jnp.int32(0)
  for shift in range(28, -1, -4):
    bounds = kth + (digits << shift)  # wraps from the negative keys to the positive
    counts = sum_over((keys[None, :] >= bounds).sum(1, dtype=jnp.int32), axis_name)
    digit = (counts >= k).sum(dtype=jnp.int32)
    kth = kth + (digit << shift)
    above = jnp.where(digit < 15, counts[jnp.minimum(digit, 14)], above)
  return kth, k - above


def up_to_kth(
  keys: jax.Array, tied: jax.Array, kth: jax.Array, left: jax.Array, axis_name: AxisName
) -> jax.Array:
  """bool[n]: the keys above the ``kth``, and of those ``tied`` with it the first ``left``."""
  # The first rows of the tied take what is left: find the row that is the last
  # of them, through counts of blocks, so that no prefix sum has length n.
  blocks = jnp.pad(tied, (0, -tied.shape[0] % _TIE_BLOCK)).reshape(-1, _TIE_BLOCK)
  ends = jnp.cumsum(blocks.sum(1, dtype=jnp.int32))
  left = jnp.clip(left - count_before(ends[-1], axis_name), 0, ends[-1])
  block = jnp.minimum((ends < left).sum(dtype=jnp.int32), ends.shape[0] - 1)
  last_block = blocks[block]
  before = ends[block] - last_block.sum(dtype=jnp.int32)
  within = (jnp.cumsum(last_block.astype(jnp.int32)) < left - before).sum(dtype=jnp.int32)
  end = jnp.where(left > 0, block * _TIE_BLOCK + within + 1, 0)
  return (keys > kth) | (tied & (jnp.arange(keys.shape[0], dtype=jnp.int32) < end))


def compact(
  mask: jax.Array, keys: jax.Array | None, size: int, axis_name: AxisName
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
  """Global ids of the first ``size`` rows of ``mask``, their keys (0 past the count), the count."""
  rows = mask.shape[0]
  slots = min(size, rows)
  ids, count = bits.places(bits.pack(jnp.pad(mask, (0, -rows % bits.WORD))), slots)
  filled = jnp.arange(slots, dtype=jnp.int32) < count
  columns = [jnp.where(filled, ids, 0)]
  if keys is not None:
    columns.append(jnp.where(filled, keys[columns[0]], 0))
  if axis_name is not None:
    columns[0] = jnp.where(filled, ids + lax.axis_index(axis_name) * rows, 0)
    start = jnp.minimum(count_before(count, axis_name), size)
    columns = [
      sum_over(
        lax.dynamic_update_slice(jnp.zeros(size + slots, jnp.int32), column, (start,))[:size],
        axis_name,
      )
      for column in columns
    ]
  return columns[0], columns[1] if keys is not None else None, sum_over(count, axis_name)


def sum_over(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """The sum of ``x`` over the devices of the axis; ``x`` where there is none."""
  return x if axis_name is None else lax.psum(x, axis_name)


def count_before(count: jax.Array, axis_name: AxisName) -> jax.Array:
  """The sum of ``count`` over the devices before this one."""
  if axis_name is None:
    return jnp.zeros_like(count)
  counts = lax.all_gather(count, axis_name)
  before = jnp.arange(counts.shape[0], dtype=jnp.int32) < lax.axis_index(axis_name)
  return jnp.where(before, counts, 0).sum(dtype=jnp.int32)
