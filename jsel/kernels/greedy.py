"""Rows picked one after another: farthest first, and those that no accepted row resembles."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jsel.kernels import precision as products
from jsel.kernels import topk
from jsel.kernels.gather import gather
from jsel.kernels.kmeans_seeding import check_k, check_rows, square_lengths
from jsel.kernels.rows import AxisName, axis_size, row_ids, rows, varying
from jsel.kernels.tiles import map_tiles

NOBODY = np.int32(np.iinfo(np.int32).max)
BLOCK = 256  # rows that `diversity_filter` compares at a time


class Greedy(NamedTuple):
  """Result of `k_center` and `diversity_filter`."""

  values: jax.Array  # [k] float32, the gain when picked; -inf where no row was left
  indices: jax.Array  # [k] int32 global row ids in the order picked, -1 where no row was left


def maximize(
  gains: Callable[[Any], jax.Array],
  update: Callable[[Any, jax.Array], Any],
  state: Any,
  k: int,
  *,
  valid: jax.Array,
  axis_name: AxisName = None,
) -> Greedy:
  """Picks the row of largest gain ``k`` times; ties to the lowest id, NaN never.

  ``gains(state)`` is ``float32[n]`` of this device's rows, ``update(state, index)``
  is told the global id picked, -1 for none. A pick costs a maximum and a minimum over the axis.

  >>> gain = lambda left: left
  >>> update = lambda left, index: left.at[index].add(-2.0)
  >>> x = jnp.array([1.0, 4.0, 3.0])
  >>> maximize(gain, update, x, 2, valid=jnp.ones(3, bool)).indices.tolist()
  [1, 2]
  """
  ids = row_ids(valid.shape[0], axis_name)

  def pick(j, carry):
    state, open_, values, indices = carry
    gain = gains(state)
    open_now = open_ & ~jnp.isnan(gain)
    best = jnp.max(jnp.where(open_now, gain, -jnp.inf), initial=-jnp.inf)
    best = best if axis_name is None else lax.pmax(best, axis_name)
    index = jnp.min(jnp.where(open_now & (gain == best), ids, NOBODY), initial=NOBODY)
    index = index if axis_name is None else lax.pmin(index, axis_name)
    found = index != NOBODY
    index = jnp.where(found, index, -1)
    values = values.at[j].set(jnp.where(found, best, -jnp.inf))
    return update(state, index), open_ & (ids != index), values, indices.at[j].set(index)

  start = (state, valid, jnp.full(k, -jnp.inf, jnp.float32), jnp.full(k, -1, jnp.int32))
  _, _, values, indices = lax.fori_loop(0, k, pick, start)
  return Greedy(values, indices)


@rows("x", "valid", out=Greedy(False, False))  # pyrefly: ignore
def k_center(
  x: jax.Array,
  k: int,
  *,
  initial: jax.Array | None = None,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> Greedy:
  r"""The row farthest from all picked so far, ``k`` times; ties to the lowest id.

  .. math:: \max_i \min_{c \text{ picked}} \lVert x_i - c \rVert^2

  Its radius is at most twice the least possible. One pass over ``x`` a pick.

  Sharding: rows may be split over ``axis_name``; costs two numbers and one row over
  it a pick. Bitwise the same on any device count.

  Args:
    x: ``[n, d]`` rows of any real dtype.
    k: how many, static, ``1 <= k <= n``.
    initial: ``[q, d]`` centers that are there already (labelled rows, queries);
      those that are not finite are none. If None, the first row picked is the
      valid one of lowest id.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    `Greedy` whose values are squared distances (inf for a first row). Rows with a
    NaN, an infinity or a squared length of 2**125 and more are never picked.

  Raises:
    ValueError: if ``k`` is out of range, or a shape is another.

  Example:
    >>> k_center(jnp.array([[0.0], [1.0], [9.0], [4.0]]), 3).indices.tolist()
    [0, 2, 3]

  References:
    Gonzalez, *Clustering to minimize the maximum intercluster distance*, 1985;
    Sener and Savarese, *A core-set approach*, 2018, arXiv 1708.00489.
  """
  check_rows(x, None, valid)
  check_k(k, x.shape[0] * axis_size(axis_name))
  if initial is not None and (initial.ndim != 2 or initial.shape[1] != x.shape[1]):
    raise ValueError(f"initial must be [q, {x.shape[1]}] as x has it, got shape {initial.shape}")
  return _k_center(x, initial, valid, k=int(k), axis_name=axis_name)


@functools.partial(jax.jit, static_argnames=("k", "axis_name"))
def _k_center(x, initial, valid, *, k, axis_name):
  n, d = x.shape
  eligible = jnp.isfinite(square_lengths(x, axis_name))
  eligible = eligible if valid is None else eligible & valid

  def nearer(nearest, center):
    def tile(arrays):
      x, nearest = arrays
      difference = x.astype(jnp.float32) - center[None]
      far = jnp.sum(difference * difference, axis=1)
      return jnp.where(far < nearest, far, nearest)  # a center that is NaN is far from nobody

    return map_tiles(tile, (x, nearest), width=d, axis_name=axis_name)

  nearest = varying(jnp.full(n, jnp.inf, jnp.float32), axis_name)
  if initial is not None:
    step = lambda i, nearest: nearer(nearest, initial[i].astype(jnp.float32))
    nearest = lax.fori_loop(0, initial.shape[0], step, nearest)
  update = lambda nearest, index: nearer(
    nearest, gather(x, index[None], axis_name=axis_name)[0].astype(jnp.float32)
  )
  return maximize(lambda nearest: nearest, update, nearest, k, valid=eligible, axis_name=axis_name)


@rows("x", "scores", "valid", out=Greedy(False, False))  # pyrefly: ignore
def diversity_filter(
  x: jax.Array,
  scores: jax.Array,
  k: int,
  *,
  threshold: float | jax.Array,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> Greedy:
  """Rows by descending score, each accepted if no accepted row is as similar as ``threshold``.

  Similarity is the inner product, the cosine of rows of length 1. Compared 256
  rows at a time with the accepted ones, ``[k, d]``; stops when there are k.

  Sharding: rows may be split over ``axis_name``; the order of all rows is on every
  device, and each block of rows is gathered. Bitwise the same on any device count.

  Args:
    x: ``[n, d]`` rows of any real dtype.
    scores: ``[n]`` float32; NaN is never accepted.
    k: rows to accept at most, static, ``1 <= k <= n``.
    threshold: accepted if below it.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    `Greedy` whose values are scores. Rows whose similarity is NaN are not accepted.

  Raises:
    ValueError: if ``k`` is out of range, or a shape is another.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> diversity_filter(x, jnp.array([1.0, 3.0, 2.0]), 3, threshold=0.9).indices.tolist()
    [1, 2, -1]

  References:
    Liu et al., *What makes good data for alignment? (Deita)*, 2024, arXiv 2312.15685.
  """
  check_rows(x, None, valid)
  check_k(k, x.shape[0] * axis_size(axis_name))
  if scores.shape != x.shape[:1] or scores.dtype != jnp.float32:
    raise ValueError(f"scores must be float32[{x.shape[0]}], got {scores.dtype}{scores.shape}")
  threshold = jnp.float32(threshold)
  return _diversity_filter(x, scores, threshold, valid, k=int(k), axis_name=axis_name)


@functools.partial(jax.jit, static_argnames=("k", "axis_name"))
def _diversity_filter(x, scores, threshold, valid, *, k, axis_name):
  n = x.shape[0] * axis_size(axis_name)
  order = topk.top_k(scores, n, valid=valid, sorted=True, axis_name=axis_name)
  blocks = -(-n // BLOCK)
  pad = lambda array, fill: jnp.pad(array, (0, blocks * BLOCK - n), constant_values=fill)
  ids, values = pad(order.indices, -1), pad(order.values, -jnp.inf)
  slot = jnp.arange(k, dtype=jnp.int32)

  def block(carry):
    b, held, picked, kept, count = carry
    at = lambda array: lax.dynamic_slice_in_dim(array, b * BLOCK, BLOCK)
    row = gather(x, at(ids), axis_name=axis_name).astype(jnp.float32)
    old = products.matmul(row, held, transpose_b=True)
    like = jnp.max(jnp.where((slot < count)[None], old, -jnp.inf), axis=1)
    within = products.matmul(row, row, transpose_b=True)

    def one(i, carry):
      like, taken, count = carry
      accept = (
        (at(ids)[i] >= 0)
        & jnp.isfinite(jnp.sum(row[i] * row[i]))
        & (like[i] < threshold)
        & (count < k)
      )
      like = jnp.where(accept, jnp.maximum(like, within[i]), like)
      taken = taken.at[i].set(jnp.where(accept, count, k))
      return like, taken, count + accept.astype(jnp.int32)

    start = like, jnp.full(BLOCK, k, jnp.int32), count
    _, taken, count = lax.fori_loop(0, BLOCK, one, start)
    put = lambda array, new: array.at[taken].set(new, mode="drop")
    return b + 1, put(held, row), put(picked, at(ids)), put(kept, at(values)), count

  start = (
    jnp.int32(0),
    jnp.zeros((k, x.shape[1]), jnp.float32),
    jnp.full(k, -1, jnp.int32),
    jnp.full(k, -jnp.inf, jnp.float32),
    jnp.int32(0),
  )
  more = lambda carry: (carry[0] < blocks) & (carry[-1] < k)
  _, _, picked, kept, _ = lax.while_loop(more, block, start)
  return Greedy(kept, picked)
