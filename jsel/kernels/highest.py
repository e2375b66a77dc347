"""The highest among int32 keys, exactly, of one device and of many: ids and masks."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jsel import native
from jsel.kernels.keys import LOWEST
from jsel.kernels.rows import AxisName, axis_size
from jsel.kernels.threshold import (
  compact,
  kth_by_counting,
  kth_by_histogram,
  sum_over,
  up_to_kth,
)

# Rows a maximum, at most: XLA on CPU writes out what it takes the maximum of 64 and more of.
_BLOCK = 32
_WRITTEN = 2**22  # rows up to which keys are written, for the CPU's kernel: they stay in the cache
_SMALL = 1024  # rows up to which histograms cost more than they save
_MANY = 512  # highest rows from which XLA's partial sort on CPU is slower than histograms
_SAMPLE = 2**14  # rows that say from which key on candidates are taken
_SIGMAS = 6  # by which the sample may be off before all rows are searched after all


def highest_over(
  keys_of: Callable[[Any], jax.Array],
  arrays: Any,
  eligible: jax.Array | None,
  k: int,
  by_score: bool,
  axis_name: AxisName,
  at_once: Callable[[], tuple[jax.Array, jax.Array]] | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The ``k`` highest eligible keys over all devices and their global ids.

  Keys are ``keys_of(arrays)``, elementwise in arrays of [n]. Ids ascend, or keys descend if
  ``by_score``; at the end, `LOWEST` and -1 where no row was left. ``at_once`` finds the same with
  ids ascending on one device by a kernel for CPUs, which there is if ``highest`` is available.
  """
  count, devices = jax.tree.leaves(arrays)[0].shape[0], axis_size(axis_name)
  of_all = lambda arrays: _of_all(keys_of, arrays, eligible, k, by_score, axis_name)
  if devices > 1 or eligible is not None:
    return of_all(arrays)
  if native.available("highest") and count <= _WRITTEN:
    at_once = at_once or (lambda: _at_once(keys_of(arrays), k))
    on_cpu = lambda arrays: _in_order(*at_once(), by_score, axis_name)
    return lax.platform_dependent(arrays, cpu=on_cpu, default=of_all)
  by_blocks = k < _MANY or count > 4096 * k
  if by_blocks or count < 8 * max(k, _SAMPLE):
    return of_all(arrays)
  on_cpu = lambda arrays: _by_sample(keys_of, arrays, k, by_score, axis_name)
  return lax.platform_dependent(arrays, cpu=on_cpu, default=of_all)


def at_once_of_scores(
  scores: jax.Array,
  usage: jax.Array | None,
  penalty: jax.Array,
  valid: jax.Array | None,
  k: int,
) -> Callable[[], tuple[jax.Array, jax.Array]] | None:
  """``at_once`` of `highest_over` for the keys of ``scores - penalty * usage``: of float32."""
  if scores.dtype != jnp.float32:
    return None
  usage = jnp.zeros(0, jnp.int32) if usage is None else usage
  valid = jnp.zeros(0, bool) if valid is None else valid
  shape = jax.ShapeDtypeStruct((k,), jnp.int32)
  arrays = scores, usage, penalty[None], valid
  return lambda: native.call("highest_scores", (shape, shape), *arrays)


def _at_once(keys: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  shape = jax.ShapeDtypeStruct((k,), jnp.int32)
  return native.call("highest", (shape, shape), keys)


def _in_order(
  top: jax.Array, ids: jax.Array, by_score: bool, axis_name: AxisName
) -> tuple[jax.Array, jax.Array]:
  if by_score:
    # ~x falls as x rises, without overflow; the sort is stable, and what was not found is lowest.
    _, ids, top = lax.sort((~top, ids, top), num_keys=1)
  # The same on the one device of the axis, which has to be said.
  return sum_over(top, axis_name), sum_over(ids, axis_name)


def _by_sample(
  keys_of: Callable[[Any], jax.Array], arrays: Any, k: int, by_score: bool, axis_name: AxisName
) -> tuple[jax.Array, jax.Array]:
  """`highest_over` of one device: by a sample's key that somewhat more than ``k`` rows reach.

  One pass finds those, and the k-th is searched among them. Whether they were enough, and no more
  than there is room for, is counted. With many ties there may be more; then the k-th is mostly that
  of the sample, and else all rows are searched.
  """
  count = jax.tree.leaves(arrays)[0].shape[0]
  stride = count // _SAMPLE
  margin = lambda rows: math.ceil(rows + _SIGMAS * math.sqrt(rows)) + 1
  rank = margin(k * _SAMPLE / count)
  room = math.ceil(margin(rank) * count / _SAMPLE)
  sample = keys_of(jax.tree.map(lambda x: x[: stride * _SAMPLE : stride], arrays))
  least, _ = kth_by_histogram(sample, jnp.int32(rank), None)
  rows, _, reached = compact(keys_of(arrays) >= least, None, room, None)
  keys = keys_of(jax.tree.map(lambda x: x[rows], arrays))
  keys = jnp.where(jnp.arange(room, dtype=jnp.int32) < reached, keys, LOWEST)
  top, position = unsorted_top_k(keys, k)
  order = ~top if by_score else position
  if by_score or not _are_counted(room, k):  # else in the order of the rows
    _, position, top = lax.sort((order, position, top), num_keys=1)
  found = top, rows[position]

  def of_others() -> tuple[jax.Array, jax.Array]:
    of_all = lambda: _of_all(keys_of, arrays, None, k, by_score, None)
    if _is_few(k, count):
      return of_all()
    keys = keys_of(arrays)
    left = k - (keys > least).sum(dtype=jnp.int32)
    tied = lambda: up_to_kth(keys, keys == least, least, left, None)
    of_tied = lambda: _of_mask(keys, tied(), k, by_score, None)
    return lax.cond((left > 0) & (reached >= k) & (least != LOWEST), of_tied, of_all)

  # The rest is not in the branch: what is runs on one thread.
  top, ids = lax.cond((reached >= k) & (reached <= room), lambda: found, of_others)
  # The same on the one device of the axis, which has to be said.
  return sum_over(top, axis_name), sum_over(ids, axis_name)


def _of_all(
  keys_of: Callable[[Any], jax.Array],
  arrays: Any,
  eligible: jax.Array | None,
  k: int,
  by_score: bool,
  axis_name: AxisName,
) -> tuple[jax.Array, jax.Array]:
  """`highest_over`, without a sample."""
  count, devices = jax.tree.leaves(arrays)[0].shape[0], axis_size(axis_name)
  few = _is_few(k, count * devices) and devices * min(k, count) <= 2**16
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
    return _of_mask(keys, mask, k, by_score, axis_name)
  return jnp.where(found, top, LOWEST), jnp.where(found, ids, -1)


def _is_few(k: int, total: int) -> bool:
  """Whether candidates are found by the maxima of blocks, and not by the k-th key of all."""
  return k <= 4096 and (64 * k <= total or total <= _SMALL)


def _of_mask(
  keys: jax.Array, mask: jax.Array, k: int, by_score: bool, axis_name: AxisName
) -> tuple[jax.Array, jax.Array]:
  """Keys and ids of the at most ``k`` rows of ``mask``, as `highest_over` returns them."""
  ids, top, held = compact(mask, keys, k, axis_name)
  found = jnp.arange(k, dtype=jnp.int32) < held
  if by_score:
    # ~x falls as x rises, without overflow; the sort is stable, so what was not found stays last.
    order = jnp.where(found, ~top, np.iinfo(np.int32).max)  # pyrefly: ignore
    _, ids, top = lax.sort((order, ids, top), num_keys=1)  # pyrefly: ignore
  return jnp.where(found, top, LOWEST), jnp.where(found, ids, -1)


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
  if native.available("highest_mask") and eligible is None and axis_size(axis_name) == 1:
    return lax.platform_dependent(keys, k, cpu=_mask_at_once, default=by_key)
  if most is None or 128 * most > keys.shape[0] or eligible is not None or axis_size(axis_name) > 1:
    return by_key(keys, k)
  return lax.platform_dependent(
    keys, k, cpu=lambda keys, k: _mask_of_few(keys, k, most), default=by_key
  )


def _mask_at_once(keys: jax.Array, k: jax.Array) -> jax.Array:
  """`mask_of_highest` on one device, by the kernel for CPUs."""
  return native.call("highest_mask", jax.ShapeDtypeStruct(keys.shape, jnp.bool_), keys, k)


def _mask_of_few(keys: jax.Array, k: jax.Array, most: int) -> jax.Array:
  """`mask_of_highest` on one device: the few rows are found, and no pass looks for ties."""
  candidates, rows = _candidates(lambda keys: keys, keys, most)
  if most < _MANY:
    top, position = sorted_top_k(candidates, most)
    taken, rows = (jnp.arange(most) < k) & (top != LOWEST), rows[position]
  else:
    kth, left = kth_by_histogram(candidates, k, None)
    taken = up_to_kth(candidates, candidates == kth, kth, left, None) & (candidates != LOWEST)
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
  return up_to_kth(keys, tied, kth, left, axis_name)


def kth_of_few(
  keys: jax.Array, k: jax.Array, most: int, axis_name: AxisName
) -> tuple[jax.Array, jax.Array]:
  """`kth_by_histogram` for a ``k`` of at most ``most``, far fewer than the keys."""
  candidates, _ = _candidates(lambda keys: keys, keys, most)
  if axis_size(axis_name) > 1:
    return kth_by_counting(candidates, k, axis_name)
  top, _ = sorted_top_k(candidates, most)
  kth = sum_over(top[jnp.clip(k, 1, most) - 1], axis_name)  # of one device: the same everywhere
  return kth, k - sum_over((top > kth).sum(dtype=jnp.int32), axis_name)


def highest(
  keys_of: Callable[[Any], jax.Array], arrays: Any, k: int
) -> tuple[jax.Array, jax.Array]:
  """The ``k`` highest keys and their positions, in any order; of equal keys the first."""
  count = jax.tree.leaves(arrays)[0].shape[0]
  if count < 128 * k or count < 2**14:
    return unsorted_top_k(keys_of(arrays), k)
  keys, rows = _candidates(keys_of, arrays, k)
  top, position = unsorted_top_k(keys, k)
  return top, rows[position]


def _candidates(
  keys_of: Callable[[Any], jax.Array], arrays: Any, k: int
) -> tuple[jax.Array, jax.Array]:
  """Keys and positions, ascending, among which the ``k`` highest of a device are.

  They lie in the k blocks of highest maxima, the first of them where maxima tie: a row of another
  block is preceded by the maxima of all those.
  """
  count = jax.tree.leaves(arrays)[0].shape[0]
  block = min(1 << math.ceil(math.log2(count / k) / 2), _BLOCK)
  whole = count // block * block
  blocks = jax.tree.map(lambda x: x[:whole].reshape(-1, block), arrays)
  _, chosen = unsorted_top_k(keys_of(blocks).max(1), k)
  chosen = jnp.sort(chosen)  # so that position within the candidates is the order of the rows
  # Keys of the chosen blocks are made anew: all of them need not be written.
  keys = keys_of(jax.tree.map(lambda x: x[chosen], blocks)).reshape(-1)
  rows = (chosen[:, None] * block + jnp.arange(block, dtype=jnp.int32)[None]).reshape(-1)
  if whole < count:
    keys = jnp.concatenate([keys, keys_of(jax.tree.map(lambda x: x[whole:], arrays))])
    rows = jnp.concatenate([rows, jnp.arange(whole, count, dtype=jnp.int32)])
  return keys, rows


def _are_counted(count: int, k: int) -> bool:
  """Whether, on CPU, `unsorted_top_k` counts, and so keeps the order of the rows."""
  return k >= _MANY and count <= 128 * k


def unsorted_top_k(keys: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """`sorted_top_k` of one axis, in any order."""
  if not _are_counted(keys.shape[0], k):
    return sorted_top_k(keys, k)

  def by_histogram(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Every row can be taken, those of `LOWEST` too: exactly k are.
    kth, left = kth_by_histogram(keys, jnp.int32(k), None)
    mask = up_to_kth(keys, keys == kth, kth, left, None)
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
