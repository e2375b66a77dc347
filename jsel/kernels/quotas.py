"""Shares of groups in a budget, and rows that keep to them: caps, floors and tokens."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jsel.kernels import topk
from jsel.kernels.integers import multiply_divide, prefix_sum, subtract
from jsel.kernels.keys import to_keys
from jsel.kernels.reduce import TwoLimb, two_limb_less
from jsel.kernels.rows import AxisName, rows

Numbers = jax.Array | np.ndarray | list[int] | tuple[int, ...]


def largest_remainder(
  weights: jax.Array,
  k: int | jax.Array,
  *,
  capacity: jax.Array | None = None,
  lower: jax.Array | None = None,
) -> jax.Array:
  r"""Whole shares of ``k`` in proportion to ``weights``, by largest remainders (Hamilton).

  .. math:: q_g = \lfloor k w_g / W \rfloor, \text{ and one more for the largest remainders}

  Ties go to the lowest group. What passes a group's ``capacity`` goes to the
  groups that have room, by their weights, until all is given away; groups of no
  weight get a share only when no other has room, and equal ones then. ``lower``
  is given out first, the rest by weight on top of it.

  Args:
    weights: ``[g]``, not negative, NaN as 0. int32 of a sum below 2**31 are exact;
      floats are taken to 2**-24 of themselves.
    k: an int or an int32 scalar.
    capacity: ``int32[g]``, the most a group can take; no limit if None.
    lower: ``int32[g]``, the least that a group gets; 0 if None.

  Returns:
    ``int32[g]`` of sum k. Where k or bounds are traced and do not go together, the
    sum is what they allow.

  Raises:
    ValueError: if shapes or dtypes are wrong, or known bounds leave no way to give out k.

  Example:
    >>> largest_remainder(jnp.array([5, 3, 2]), 7).tolist()
    [4, 2, 1]
    >>> largest_remainder(jnp.array([5, 3, 2]), 7, capacity=jnp.array([1, 9, 9])).tolist()
    [1, 4, 2]

  References:
    Balinski and Young, *Fair Representation*, 1982.
  """
  weights = jnp.asarray(weights)
  if weights.ndim != 1 or not weights.size or weights.dtype == jnp.bool_:
    raise ValueError(f"weights must be numbers [g], got {weights.dtype}{weights.shape}")
  groups = weights.shape[0]
  lower = _bounds("lower", lower, 0, groups)
  capacity = _bounds("capacity", capacity, np.iinfo(np.int32).max, groups)
  _check_count(k)
  _check_feasible(k, lower, capacity)
  return _largest_remainder(weights, jnp.int32(k), jnp.asarray(capacity), jnp.asarray(lower))


def waterfill(counts: jax.Array, k: int | jax.Array) -> jax.Array:
  r"""Shares of ``k`` as equal as groups of ``counts`` rows allow.

  .. math:: q_g = \min(c_g, L), \quad L = \max \{ l : \sum_g \min(c_g, l) \le k \}

  and what is left, less than one a group, to the largest groups; ties to the lowest.

  Args:
    counts: ``int32[g]`` of a sum below 2**31, not negative.
    k: an int or an int32 scalar.

  Returns:
    ``int32[g]`` of sum ``min(k, sum(counts))``.

  Raises:
    ValueError: if counts are not int32 ``[g]``, or known and fewer than k.

  Example:
    >>> waterfill(jnp.array([9, 2, 7]), 11).tolist()
    [5, 2, 4]

  References:
    Yang et al., *SmallToLarge (S2L)*, 2024, arXiv 2403.07384 (its loop over groups in closed form).
  """
  counts = jnp.asarray(counts)
  if counts.ndim != 1 or counts.dtype != jnp.int32 or not counts.size:
    raise ValueError(f"counts must be int32 [g], got {counts.dtype}{counts.shape}")
  _check_count(k)
  _check_feasible(k, np.zeros(counts.shape, np.int64), counts)
  return _waterfill(counts, jnp.int32(k))


@rows("scores", "groups", "valid", out=True)
def cap_mask(
  scores: jax.Array,
  groups: jax.Array,
  caps: Numbers,
  *,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> jax.Array:
  """The ``caps[g]`` rows of highest score of each group ``g``; ties to the lowest id.

  The same as to go through the rows by descending score and take each whose
  group has room.

  Sharding: rows may be split over ``axis_name``; scores and groups of all, 12
  bytes a row, are gathered and sorted on every device. Bitwise the same on any
  device count.

  Args:
    scores: ``[n]`` float32, bfloat16, float16 or int32. NaN is never taken.
    groups: ``int32[n]``; rows of a group outside of [0, g) are never taken.
    caps: ``int32[g]``.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    ``bool[n]``.

  Raises:
    ValueError: if a shape or a dtype is wrong.

  Example:
    >>> cap_mask(jnp.array([3.0, 5, 4, 1]), jnp.array([0, 0, 0, 1]), jnp.array([2, 2])).tolist()
    [False, True, True, True]
  """
  ones = jnp.ones(jnp.shape(scores), jnp.int32)
  return budget_mask(scores, ones, caps, groups=groups, valid=valid, axis_name=axis_name)


@rows("scores", "lengths", "groups", "valid", out=True)
def budget_mask(
  scores: jax.Array,
  lengths: jax.Array,
  budgets: Numbers,
  *,
  groups: jax.Array | None = None,
  last: Literal["over", "under"] = "over",
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> jax.Array:
  r"""Rows by descending score until their lengths (tokens) reach the budget of their group.

  .. math:: \{ i : \sum_{j \text{ before } i,\ g_j = g_i} l_j < T_{g_i} \}

  Sharding: rows may be split over ``axis_name``; 12 bytes of each row are gathered
  and sorted on every device. Sums are 64-bit integers: exact, and the same on any
  device count.

  Args:
    scores: ``[n]`` float32, bfloat16, float16 or int32. NaN is never taken.
    lengths: ``int32[n]``, not negative.
    budgets: ``[g]`` int32, or host integers of up to 63 bits.
    groups: ``int32[n]``, out of [0, g): never taken. None: one group.
    last: whether the row that meets the end of the budget is taken ("over", the
      shortest prefix that reaches it) or left out with all after it ("under").
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    ``bool[n]``.

  Raises:
    ValueError: if a shape, a dtype or an option is wrong.

  Example:
    >>> scores, lengths = jnp.array([1.0, 3, 2]), jnp.array([9, 4, 7])
    >>> budget_mask(scores, lengths, [10]).tolist()
    [False, True, True]
    >>> budget_mask(scores, lengths, [10], last="under").tolist()
    [False, True, False]

  References:
    Wettig et al., *QuRating*, 2024, arXiv 2402.09739 (the prefix that reaches the budget).
  """
  limits = _two_limbs(budgets)
  groups = jnp.zeros(jnp.shape(scores), jnp.int32) if groups is None else groups
  topk._check(scores, valid, None, axis_name)
  for name, array in (("lengths", lengths), ("groups", groups)):
    if array.shape != scores.shape or array.dtype != jnp.int32:
      raise ValueError(f"{name} must be int32{scores.shape}, got {array.dtype}{array.shape}")
  if last not in ("over", "under"):
    raise ValueError(f'last must be "over" or "under", got {last!r}')
  return _budget_mask(
    scores, lengths, groups, valid, limits, over=last == "over", axis_name=axis_name
  )


@rows("scores", "groups", "valid", out=True)
def bounds_mask(
  scores: jax.Array,
  groups: jax.Array,
  k: int,
  *,
  lower: Numbers,
  upper: Numbers,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> jax.Array:
  """The ``k`` rows of highest total score with ``lower[g]`` to ``upper[g]`` of each group.

  The ``lower[g]`` best of each group, then the best of the others whose groups
  have room: the optimum of a sum under such bounds.

  Sharding: as `cap_mask`, and as `jsel.kernels.topk.top_k_mask`.

  Args:
    scores: ``[n]`` float32, bfloat16, float16 or int32. NaN is never taken.
    groups: ``int32[n]``; rows of a group outside of [0, g) are never taken.
    k: how many, static, ``0 <= k <= n``.
    lower: integers ``[g]``.
    upper: integers ``[g]``.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    ``bool[n]`` of k rows. Where groups are traced and turn out to have too few
    rows, it has as many as there are.

  Raises:
    ValueError: if a shape or a dtype is wrong, or no k rows can meet the bounds.

  Example:
    >>> scores, groups = jnp.array([9.0, 8, 7, 1]), jnp.array([0, 0, 0, 1])
    >>> bounds_mask(scores, groups, 3, lower=[0, 1], upper=[2, 4]).tolist()
    [True, True, False, True]

  References:
    Boehmer et al., *Subset Selection Based On Multiple Rankings in the Presence of Bias*, 2023,
    arXiv 2306.09835 (greedy under bounds is exact for modular scores).
  """
  topk._check(scores, valid, k, axis_name, lowest=0)
  sizes = np.shape(lower) + np.shape(upper)
  if len(sizes) != 2 or sizes[0] != sizes[1] or not sizes[0]:
    raise ValueError(
      f"lower and upper must be integers [g], got shapes {np.shape(lower)} and {np.shape(upper)}"
    )
  lower = _bounds("lower", lower, 0, sizes[0])
  upper = _bounds("upper", upper, 0, sizes[0])
  room = upper
  known = (scores, groups, lower, upper) if valid is None else (scores, groups, lower, upper, valid)
  if axis_name is None and not any(isinstance(array, jax.core.Tracer) for array in known):
    counts = np.ones(scores.shape, bool) if valid is None else np.asarray(valid)
    if scores.dtype != jnp.int32:
      counts = counts & ~np.isnan(np.asarray(scores).astype(np.float32))
    group = np.asarray(groups)
    group = group[counts & (group >= 0) & (group < sizes[0])]
    room = np.minimum(upper, np.bincount(group, minlength=sizes[0]))
  _check_feasible(k, lower, room)
  within = lambda caps: cap_mask(scores, groups, caps, valid=valid, axis_name=axis_name)
  first, allowed = within(jnp.asarray(lower)), within(jnp.asarray(upper))
  left = jnp.int32(k) - jnp.sum(jnp.asarray(lower), dtype=jnp.int32)
  return first | topk.top_k_mask(scores, left, valid=allowed & ~first, axis_name=axis_name)


@jax.jit
def _largest_remainder(weights, k, capacity, lower):
  if jnp.issubdtype(weights.dtype, jnp.integer):
    units = jnp.maximum(weights, 0).astype(jnp.uint32)
  else:
    weights = jnp.nan_to_num(jnp.maximum(weights.astype(jnp.float32), 0))
    # XLA multiplies by the reciprocal, which of the largest floats is 0.
    weights = weights * jnp.where(weights.max() > 2.0**64, jnp.float32(2.0**-64), jnp.float32(1))
    share = weights / jnp.where(weights.max() > 0, weights.max(), 1)
    units = jnp.round(share / jnp.maximum(share.sum(), 1) * 2.0**30).astype(jnp.uint32)
    units = jnp.where(share > 0, jnp.maximum(units, 1), 0)
  groups = units.shape[0]

  def more(quotas):
    room = quotas < capacity
    able = jnp.where(room, units, 0)
    able = jnp.where((able > 0).any(), able, room.astype(jnp.uint32))
    left = (k - quotas.sum(dtype=jnp.int32)).astype(jnp.uint32)
    total = able.sum(dtype=jnp.uint32)
    whole, rest = multiply_divide(left, able, total)
    extra = left.astype(jnp.int32) - whole.sum(dtype=jnp.uint32).astype(jnp.int32)
    # At most one fewer than the groups that have a remainder.
    order = jnp.argsort(rest, descending=True, stable=True)
    place = jnp.zeros(groups, jnp.int32).at[order].set(jnp.arange(groups, dtype=jnp.int32))
    share = whole.astype(jnp.int32) + (place < extra).astype(jnp.int32)
    return quotas + jnp.where(room, jnp.minimum(share, capacity - quotas), 0)

  unfinished = lambda quotas: (quotas.sum(dtype=jnp.int32) < k) & (quotas < capacity).any()
  return jax.lax.while_loop(unfinished, more, lower)


@jax.jit
def _waterfill(counts, k):
  counts = jnp.maximum(counts, 0)
  k = jnp.clip(k, 0, counts.sum(dtype=jnp.int32))

  def step(i, level):
    higher = level | (1 << (30 - i))
    return jnp.where(jnp.minimum(counts, higher).sum(dtype=jnp.int32) <= k, higher, level)

  level = jax.lax.fori_loop(jnp.int32(0), jnp.int32(31), step, jnp.int32(0))
  quotas = jnp.minimum(counts, level)
  order = jnp.argsort(counts, descending=True, stable=True)
  place = jnp.zeros_like(counts).at[order].set(jnp.arange(counts.shape[0], dtype=jnp.int32))
  left = k - quotas.sum(dtype=jnp.int32)
  return quotas + ((place < left) & (counts > level)).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("over", "axis_name"))
def _budget_mask(scores, lengths, groups, valid, limits, *, over, axis_name):
  count, local = limits.low.shape[0], scores.shape[0]
  keys = to_keys(scores, valid)
  eligible = (groups >= 0) & (groups < count)
  if valid is not None:
    eligible &= valid
  if scores.dtype != jnp.int32:
    eligible &= ~jnp.isnan(scores)
  group = jnp.where(eligible, groups, count)
  columns = group, ~keys, jnp.maximum(lengths, 0)
  if axis_name is not None:
    columns = jax.lax.all_gather(columns, axis_name, tiled=True)
  place = jnp.arange(columns[0].shape[0], dtype=jnp.int32)
  # Stable, so ties stand by id.
  group, _, length, order = jax.lax.sort((*columns, place), num_keys=2, is_stable=True)
  length = jnp.where(group < count, length, 0).astype(jnp.uint32)
  ends = prefix_sum(length)
  starts = subtract(ends, TwoLimb(jnp.zeros_like(ends.high), length))
  begins = jnp.concatenate([jnp.ones(1, bool), group[1:] != group[:-1]])
  first = jax.lax.cummax(jnp.where(begins, place, 0))
  before = TwoLimb(starts.high[first], starts.low[first])
  at = jnp.minimum(group, count - 1)
  limit = TwoLimb(limits.high[at], limits.low[at])
  if over:
    kept = two_limb_less(subtract(starts, before), limit)
  else:
    kept = ~two_limb_less(limit, subtract(ends, before))
  mask = jnp.zeros_like(kept).at[order].set(kept & (group < count), unique_indices=True)
  if axis_name is None:
    return mask
  start = jax.lax.axis_index(axis_name) * local
  return jax.lax.dynamic_slice_in_dim(mask, start, local)


def _two_limbs(budgets: Numbers) -> TwoLimb:
  if isinstance(budgets, jax.Array):
    if budgets.ndim != 1 or budgets.dtype != jnp.int32 or not budgets.size:
      raise ValueError(f"budgets must be int32 [g], got {budgets.dtype}{budgets.shape}")
    return TwoLimb(budgets >> 31, budgets.astype(jnp.uint32))
  host = np.asarray(budgets)
  if host.ndim != 1 or not host.size or host.dtype.kind not in "iu":
    raise ValueError(f"budgets must be integers [g], got {host.dtype}{host.shape}")
  host = host.astype(np.int64)
  return TwoLimb(
    jnp.asarray((host >> 32).astype(np.int32)), jnp.asarray((host & 0xFFFFFFFF).astype(np.uint32))
  )


def _bounds(name: str, bounds: Any, fill: int, groups: int) -> Any:
  if bounds is None:
    return np.full(groups, fill, np.int32)
  array = bounds if isinstance(bounds, jax.Array) else np.asarray(bounds)
  if array.shape != (groups,) or not jnp.issubdtype(array.dtype, jnp.integer):
    raise ValueError(f"{name} must be integers [{groups}], got {array.dtype}{array.shape}")
  if array.dtype.itemsize > 4 and not isinstance(array, jax.core.Tracer):
    most = np.iinfo(np.int32).max
    beyond = np.asarray(array)[np.abs(np.asarray(array)) > most]
    if beyond.size:
      raise ValueError(f"{name} must be within {most}, got {beyond[0]}: no group has more rows")
  return array.astype(np.int32)


def _check_count(k: Any) -> None:
  if isinstance(k, (jax.Array, np.ndarray)):
    if k.shape != () or k.dtype != jnp.int32:
      raise ValueError(f"k must be an int or an int32 scalar, got {k.dtype}{k.shape}")
  elif not isinstance(k, (int, np.integer)) or not 0 <= k < 2**31:
    raise ValueError(f"k must be an int within [0, 2**31) or an int32 scalar, got {k}")


def _check_feasible(k: Any, lower: Any, upper: Any) -> None:
  """As far as the numbers are known."""
  if any(isinstance(value, jax.core.Tracer) for value in (k, lower, upper)):
    return
  k, lower, upper = int(k), np.asarray(lower, np.int64), np.asarray(upper, np.int64)
  if (lower < 0).any() or (lower > upper).any():
    group = int(np.flatnonzero((lower < 0) | (lower > upper))[0])
    raise ValueError(
      f"group {group} cannot get at least {lower[group]} and at most {upper[group]}: "
      "its bounds or rows are too few"
    )
  if not lower.sum() <= k <= upper.sum():
    raise ValueError(
      f"{k} rows cannot be given out: the groups take {lower.sum()} to {upper.sum()}"
    )
