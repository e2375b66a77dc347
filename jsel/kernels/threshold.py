"""Exact selection of the highest among int32 keys: candidates, k-th key, mask, ids of a mask."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jsel.kernels import bits
from jsel.kernels.rows import AxisName, axis_size

LOWEST = np.int32(np.iinfo(np.int32).min)  # the key of rows that never win
# Rows a maximum, at most: XLA on CPU writes out what it takes the maximum of 64 and more of.
_BLOCK = 32
_TIE_BLOCK = 512
_SMALL = 1024  # rows up to which histograms cost more than they save
_LARGE = 2**16  # rows up to which three short histograms are faster than two of 65,536 bins
_MANY = 512  # highest rows from which XLA's partial sort on CPU is slower than histograms


def to_keys(scores: jax.Array, valid: jax.Array | None) -> jax.Array:
  """int32 keys in the order of the scores; NaN and invalid rows are `LOWEST`.

  All in integers: float comparisons flush subnormals on some backends.

  >>> to_keys(jnp.array([0.0, -0.0, jnp.nan]), None).tolist()
  [0, 0, -2147483648]
  """
  if scores.dtype == jnp.int32:
    return scores if valid is None else jnp.where(valid, scores, LOWEST)
  kind = jnp.int32 if scores.dtype == jnp.float32 else jnp.int16
  bits = lax.bitcast_convert_type(scores, kind).astype(jnp.int32)
  magnitude = bits & np.iinfo(kind).max
  infinity = int(np.asarray(jnp.inf, scores.dtype).view(np.dtype(kind)))
  eligible = magnitude <= infinity
  if valid is not None:
    eligible &= valid
  return jnp.where(eligible, jnp.where(bits < 0, -magnitude, magnitude), LOWEST)


def from_keys(keys: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """The scores of ``keys``; `LOWEST` becomes -inf, or the least int32."""
  if dtype == jnp.int32:
    return keys
  kind = jnp.int32 if dtype == jnp.float32 else jnp.int16
  magnitude = jnp.abs(jnp.where(keys == LOWEST, 0, keys))
  bits = jnp.where(keys < 0, magnitude | np.iinfo(kind).min, magnitude).astype(kind)
  return jnp.where(keys == LOWEST, -jnp.inf, lax.bitcast_convert_type(bits, dtype))


def highest_over(
  keys_of: Callable[[Any], jax.Array],
  arrays: Any,
  eligible: jax.Array | None,
  k: int,
  by_score: bool,
  axis_name: AxisName,
) -> tuple[jax.Array, jax.Array]:
  """The ``k`` highest eligible keys over all devices and their global ids.

  Keys are ``keys_of(arrays)``, elementwise in arrays of [n]. Ids ascend, or keys descend if
  ``by_score``; at the end, `LOWEST` and -1 where no row was left.
  """
  count, devices = jax.tree.leaves(arrays)[0].shape[0], axis_size(axis_name)
  total = count * devices
  few = k <= 4096 and (64 * k <= total or total <= _SMALL) and devices * min(k, count) <= 2**16
  if few and eligible is None:
    top, ids = highest(keys_of, arrays, min(k, count))
    if axis_name is not None:
      ids = ids + lax.axis_index(axis_name) * count
      gather = lambda x: lax.all_gather(x, axis_name, tiled=True, to="invarying")
      top, ids = gather(top), gather(ids)
    if devices > 1:
      # Candidates stand in the order of the devices, so position still breaks ties by id.
      top, position = highest(lambda keys: keys, top, k)
      ids = ids[position]
    if not by_score or k >= _MANY:
      # Stable, so that equal keys stay in the order of their ids.
      order = jnp.where(top != LOWEST, ~top if by_score else ids, np.iinfo(np.int32).max)
      _, ids, top = lax.sort((order, ids, top), num_keys=1)
    found = top != LOWEST
  else:
    # Several passes read the keys; made anew in each, they would cost more than to read.
    keys = lax.optimization_barrier(keys_of(arrays))
    mask = mask_of_highest(keys, eligible, jnp.int32(k), axis_name)
    ids, top, held = compact(mask, keys, k, axis_name)
    found = jnp.arange(k, dtype=jnp.int32) < held
    if by_score:
      # ~x falls as x rises, without overflow; the sort is stable, so what was not found stays last.
      order = jnp.where(found, ~top, np.iinfo(np.int32).max)  # pyrefly: ignore
      _, ids, top = lax.sort((order, ids, top), num_keys=1)  # pyrefly: ignore
  return jnp.where(found, top, LOWEST), jnp.where(found, ids, -1)


def highest(
  keys_of: Callable[[Any], jax.Array], arrays: Any, k: int
) -> tuple[jax.Array, jax.Array]:
  """The ``k`` highest keys and their positions, in any order; of equal keys the first."""
  count = jax.tree.leaves(arrays)[0].shape[0]
  if count < 128 * k or count < 2**14:
    return unsorted_top_k(keys_of(arrays), k)
  # The k highest rows lie in the k blocks of highest maxima. So do they with
  # ties: a row of another block is preceded by the maxima of all those k.
  # Keys of the chosen blocks are made anew: all of them are never written.
  block = min(1 << math.ceil(math.log2(count / k) / 2), _BLOCK)
  whole = count // block * block
  cut = lambda x: x[:whole].reshape(-1, block)
  blocks = jax.tree.map(cut, arrays)
  _, chosen = unsorted_top_k(keys_of(blocks).max(1), k)
  chosen = jnp.sort(chosen)  # so that position within the candidates is the order of the rows
  keys = keys_of(jax.tree.map(lambda x: x[chosen], blocks)).reshape(-1)
  rows = (chosen[:, None] * block + jnp.arange(block, dtype=jnp.int32)[None]).reshape(-1)
  if whole < count:
    keys = jnp.concatenate([keys, keys_of(jax.tree.map(lambda x: x[whole:], arrays))])
    rows = jnp.concatenate([rows, jnp.arange(whole, count, dtype=jnp.int32)])
  top, position = unsorted_top_k(keys, k)
  return top, rows[position]


def unsorted_top_k(keys: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """`sorted_top_k` of one axis, in any order."""
  if k < _MANY or keys.shape[0] > 128 * k:
    return sorted_top_k(keys, k)

  def by_histogram(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Every row can be taken, those of `LOWEST` too: exactly k are.
    kth, left = kth_by_histogram(keys, jnp.int32(k), None)
    mask = _up_to_kth(keys, keys == kth, kth, left, None)
    position, top, _ = compact(mask, keys, k, None)
    assert top is not None
    return top, position

  return lax.platform_dependent(keys, cpu=by_histogram, default=lambda keys: sorted_top_k(keys, k))


def sorted_top_k(keys: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """The ``k`` highest keys of the last axis, descending, and their positions; ties by position.

  >>> [part.tolist() for part in sorted_top_k(jnp.array([[1, 3, 3], [2, 0, 4]]), 2)]
  [[[3, 3], [4, 2]], [[1, 2], [2, 0]]]
  """

  def as_floats(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    # XLA's CPU top-k is fast for float32 alone (integers are sorted whole). It
    # compares by IEEE total order, in which these floats stand as the keys do.
    floats = lax.bitcast_convert_type(keys ^ ((keys >> 31) & 0x7FFFFFFF), jnp.float32)
    top, position = lax.top_k(floats, k)
    # Without barriers, XLA turns a slice of the result into a full sort (one
    # barrier round both crashes its compiler).
    bits = lax.bitcast_convert_type(lax.optimization_barrier(top), jnp.int32)
    position = lax.optimization_barrier(position)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF), position

  def as_integers(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    top, position = lax.top_k(keys, k)
    return lax.optimization_barrier(top), lax.optimization_barrier(position)

  return lax.platform_dependent(keys, cpu=as_floats, default=as_integers)


def mask_of_highest(
  keys: jax.Array,
  eligible: jax.Array | None,
  k: jax.Array,
  axis_name: AxisName,
  most: int | None = None,
) -> jax.Array:
  """bool[n]: the ``k`` highest eligible keys over all devices, ties to the lowest id.

  Ineligible rows have the key `LOWEST`; ``eligible`` tells them from rows whose
  own key it is (None where there are none such). ``k`` is at most ``most``, if given.
  """
  by_key = lambda keys, k: _mask_from_kth(keys, eligible, k, axis_name, most)
  if most is None or 128 * most > keys.shape[0] or eligible is not None or axis_size(axis_name) > 1:
    return by_key(keys, k)
  return lax.platform_dependent(
    keys, k, cpu=lambda keys, k: _mask_of_few(keys, k, most), default=by_key
  )


def _mask_of_few(keys: jax.Array, k: jax.Array, most: int) -> jax.Array:
  """`mask_of_highest` on one device: the few rows are found, and no pass looks for ties."""
  candidates, rows = _candidates(keys, most)
  if most < _MANY:
    top, position = sorted_top_k(candidates, most)
    taken, rows = (jnp.arange(most) < k) & (top != LOWEST), rows[position]
  else:
    kth, left = kth_by_histogram(candidates, k, None)
    taken = _up_to_kth(candidates, candidates == kth, kth, left, None) & (candidates != LOWEST)
  place = jnp.where(taken, rows, keys.shape[0])
  return jnp.zeros(keys.shape, bool).at[place].set(True, mode="drop")


def _mask_from_kth(
  keys: jax.Array,
  eligible: jax.Array | None,
  k: jax.Array,
  axis_name: AxisName,
  most: int | None,
) -> jax.Array:
  """`mask_of_highest` by the k-th highest key, and the first of the rows that have it."""
  histogram = lambda keys, k: kth_by_histogram(keys, k, axis_name)
  counting = lambda keys, k: kth_by_counting(keys, k, axis_name)
  on_cpu = counting if keys.shape[0] <= _SMALL else histogram
  if most is not None and 128 * most <= keys.shape[0]:
    on_cpu = lambda keys, k: kth_of_few(keys, k, most, axis_name)
  kth, left = lax.platform_dependent(keys, k, cpu=on_cpu, default=counting)
  tied = (keys == kth) & (keys != LOWEST if eligible is None else eligible)
  return _up_to_kth(keys, tied, kth, left, axis_name)


def _up_to_kth(
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
    counts = _sum_over(_histogram(digits, 2**width), axis_name).reshape(2 ** (width // 2), -1)
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


def kth_of_few(
  keys: jax.Array, k: jax.Array, most: int, axis_name: AxisName
) -> tuple[jax.Array, jax.Array]:
  """`kth_by_histogram` for a ``k`` of at most ``most``, far fewer than the keys."""
  candidates, _ = _candidates(keys, most)
  if axis_size(axis_name) > 1:
    return kth_by_counting(candidates, k, axis_name)
  top, _ = sorted_top_k(candidates, most)
  kth = _sum_over(top[jnp.clip(k, 1, most) - 1], axis_name)  # of one device: the same everywhere
  return kth, k - _sum_over((top > kth).sum(dtype=jnp.int32), axis_name)


def _candidates(keys: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
  """Keys and positions, ascending, among which the ``most`` highest of a device are.

  They lie in those ``most`` blocks that have the highest maxima, the first of them where maxima
  tie: a row of another block is preceded by the maxima of all those.
  """
  block = min(1 << max(math.ceil(math.log2(keys.shape[0] / most) / 2), 3), _BLOCK)
  padded = jnp.pad(keys, (0, -keys.shape[0] % block), constant_values=LOWEST)
  blocks = padded.reshape(-1, block)
  _, chosen = unsorted_top_k(blocks.max(1), most)
  chosen = jnp.sort(chosen)  # so that position breaks ties as the row does
  rows = chosen[:, None] * block + jnp.arange(block, dtype=jnp.int32)[None]
  return blocks[chosen].reshape(-1), rows.reshape(-1)


def kth_by_counting(
  keys: jax.Array, k: jax.Array, axis_name: AxisName
) -> tuple[jax.Array, jax.Array]:
  """`kth_by_histogram`, four bits a pass, by comparisons and no scatter."""
  digits = jnp.arange(1, 16, dtype=jnp.int32)[:, None]
  kth, above = jnp.int32(LOWEST), jnp.int32(0)
  for shift in range(28, -1, -4):
    bounds = kth + (digits << shift)  # wraps from the negative keys to the positive
    counts = _sum_over((keys[None, :] >= bounds).sum(1, dtype=jnp.int32), axis_name)
    digit = (counts >= k).sum(dtype=jnp.int32)
    kth = kth + (digit << shift)
    above = jnp.where(digit < 15, counts[jnp.minimum(digit, 14)], above)
  return kth, k - above


def compact(
  mask: jax.Array, keys: jax.Array | None, size: int, axis_name: AxisName
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
  """Global ids of the first ``size`` rows of ``mask``, their keys (0 past the count), the count."""
  rows = mask.shape[0]
  words = bits.pack(jnp.pad(mask, (0, -rows % bits.WORD)))
  lengths = bits.count(words)
  ends = jnp.cumsum(lengths)
  count = ends[-1]

  slots = min(size, rows)
  slot = jnp.arange(slots, dtype=jnp.int32)
  # The word of a slot: how many words end at or before it.
  word = jnp.cumsum(jnp.zeros(slots, jnp.int32).at[ends].add(1, mode="drop"))
  word = jnp.minimum(word, words.shape[0] - 1)
  ids = word * bits.WORD + bits.nth_set(words[word], slot - (ends[word] - lengths[word]))
  filled = slot < count
  columns = [jnp.where(filled, ids, 0)]
  if keys is not None:
    columns.append(jnp.where(filled, keys[columns[0]], 0))
  if axis_name is not None:
    columns[0] = jnp.where(filled, ids + lax.axis_index(axis_name) * rows, 0)
    start = jnp.minimum(count_before(count, axis_name), size)
    columns = [
      _sum_over(
        lax.dynamic_update_slice(jnp.zeros(size + slots, jnp.int32), column, (start,))[:size],
        axis_name,
      )
      for column in columns
    ]
  return columns[0], columns[1] if keys is not None else None, _sum_over(count, axis_name)


def _sum_over(x: jax.Array, axis_name: AxisName) -> jax.Array:
  return x if axis_name is None else lax.psum(x, axis_name)


def count_before(count: jax.Array, axis_name: AxisName) -> jax.Array:
  """The sum of ``count`` over the devices before this one."""
  if axis_name is None:
    return jnp.zeros_like(count)
  counts = lax.all_gather(count, axis_name)
  before = jnp.arange(counts.shape[0], dtype=jnp.int32) < lax.axis_index(axis_name)
  return jnp.where(before, counts, 0).sum(dtype=jnp.int32)
