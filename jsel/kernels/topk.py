"""The k highest rows, exactly, ties to the lowest index; as ids, as a mask, and as a sample."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jsel.kernels import highest, threshold
from jsel.kernels.keys import from_keys, to_keys
from jsel.kernels.random import row_gumbel
from jsel.kernels.reduce import LEAVES, rounded
from jsel.kernels.rows import AxisName, row_count, row_ids, rows


class TopK(NamedTuple):
  """Result of `top_k` and its relatives."""

  values: jax.Array  # [k] dtype of the scores; -inf (int32: its minimum) where no row was left
  indices: jax.Array  # [k] int32 global row ids, -1 where no row was left


@rows("scores", "valid", out=TopK(False, False))
def top_k(
  scores: jax.Array,
  k: int,
  *,
  valid: jax.Array | None = None,
  sorted: bool = False,
  axis_name: AxisName = None,
) -> TopK:
  """The ``k`` rows of highest score, exactly; ties go to the lowest index.

  NaN and invalid rows never win: where fewer than ``k`` others exist, the last
  entries are index -1. ``-0.0`` and ``0.0`` tie, and come back as ``0.0``.
  The gradient is zero. On one CPU a sample says where to look; where many scores
  tie it says less, which costs up to four times the time.

  Sharding: bitwise the same anywhere. Gathers ``k`` candidates of each device
  where those are few, else sums histograms (two of 65,536; where a device has
  no more rows, three of 4,096) and two arrays of ``k``.

  Args:
    scores: ``[n]`` float32, bfloat16, float16 or int32.
    k: how many, static, ``1 <= k <= n``.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    sorted: by descending score (ties by index) instead of ascending index.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    A `TopK`, the same on every device.

  Raises:
    ValueError: if ``k`` is out of range or no int, or a shape or dtype is wrong.

  Example:
    >>> top_k(jnp.array([3.0, 1.0, 3.0, 2.0]), 3).indices.tolist()
    [0, 2, 3]
  """
  _check(scores, valid, k, axis_name)
  return _top_k(scores, valid, k=int(k), by_score=sorted, axis_name=axis_name)


@rows("scores", "valid", out=True)
def top_k_mask(
  scores: jax.Array,
  k: int | jax.Array,
  *,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> jax.Array:
  """The set of `top_k` as a mask over the rows, for a ``k`` that may be traced.

  Nothing of the rows' length is sorted, and another ``k`` compiles nothing if it
  is traced; an int, once for each power of two. Sharding: bitwise the same
  anywhere; sums two histograms of 65,536 or three of 4,096 on CPU (of an int
  ``k`` below n / 256, and elsewhere: eight of 15).

  Args:
    scores: ``[n]`` float32, bfloat16, float16 or int32.
    k: how many; an int within ``[0, n]`` or an int32 scalar. A scalar above the
      number of eligible rows takes all of them, below 0 none.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    ``[n]`` bool, split as the rows are.

  Raises:
    ValueError: if an int ``k`` is out of range, or a shape or dtype is wrong.

  Example:
    >>> top_k_mask(jnp.array([3.0, 1.0, 3.0, 2.0]), 1).tolist()
    [True, False, False, False]
  """
  is_traced = isinstance(k, (jax.Array, np.ndarray))
  if is_traced and (k.shape != () or k.dtype != jnp.int32):
    raise ValueError(f"k must be an int or an int32 scalar, got {k.dtype}{k.shape}")
  _check(scores, valid, None if is_traced else k, axis_name, lowest=0)
  if not scores.shape[0]:
    return jnp.zeros(0, bool)
  # Few are found faster where it is known that they are few; the power of two, so that most of
  # the other k compile nothing.
  most = None if is_traced else 1 << max(int(k) - 1, 0).bit_length()
  k = jnp.asarray(k, jnp.int32)
  return _top_k_mask(scores, valid, k, most=most, axis_name=axis_name)


@rows("mask", out=False)
def compact(
  mask: jax.Array, size: int, *, axis_name: AxisName = None
) -> tuple[jax.Array, jax.Array]:
  """The ids of the rows where ``mask`` holds, ascending, in an array of fixed size.

  Sharding: bitwise the same anywhere; one sum of ``[size]`` ids, one integer a device.

  Args:
    mask: ``[n]`` bool.
    size: capacity, static, ``1 <= size <= n``.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    ``indices`` (``[size]`` int32 global ids, 0 past the count) and ``count``
    (int32 scalar). The count is the true one: above ``size``, the lowest
    ``size`` ids are kept.

  Raises:
    ValueError: if ``size`` is out of range or ``mask`` is no bool vector.

  Example:
    >>> indices, count = compact(jnp.array([False, True, True, False]), 3)
    >>> indices.tolist(), int(count)
    ([1, 2, 0], 2)
  """
  if mask.ndim != 1 or mask.dtype != jnp.bool_:
    raise ValueError(f"mask must be bool [n], got {mask.dtype}{mask.shape}")
  _check_count("size", size, mask.shape[0], axis_name, lowest=1)
  ids, _, count = _compact(mask, size=int(size), axis_name=axis_name)
  return ids, count


@rows("log_weights", "valid", out=TopK(False, False))
def gumbel_top_k(
  key: jax.Array,
  log_weights: jax.Array,
  k: int,
  *,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> TopK:
  r"""Draws ``k`` rows without replacement, with probabilities :math:`\propto e^{w}`.

  .. math:: \text{top-}k \; (w_i + G_i), \quad G_i \sim \text{Gumbel}(0, 1)

  Draws one after another, each from the rows left (Plackett-Luce), in one pass.
  The noise of row i depends on the key and i alone. Sharding: as `top_k`.

  Args:
    key: typed PRNG key.
    log_weights: ``[n]`` float32, bfloat16 or float16; need not be normalised. Rows of -inf or
      NaN are never drawn.
    k: how many, static, ``1 <= k <= n``.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    A `TopK` in ascending index order; ``values`` are the perturbed float32
    log-weights, whose order is that of the draws.

  Raises:
    ValueError: as `top_k`, or if ``log_weights`` are integers.

  Example:
    >>> log_weights = jnp.array([0.0, -jnp.inf, 0.0])
    >>> gumbel_top_k(jax.random.key(0), log_weights, 2).indices.tolist()
    [0, 2]

  References:
    Kool, van Hoof, Welling, *Stochastic Beams and Where to Find Them*, 2019, arXiv 1903.06059.
  """
  _check(log_weights, valid, k, axis_name)
  if log_weights.dtype == jnp.int32:
    raise ValueError("log_weights must be floats, got int32: cast them")
  return _gumbel_top_k(key, log_weights, valid, k=int(k), axis_name=axis_name)


@rows("scores", "usage", "valid", out=TopK(False, False))
def penalized_top_k(
  scores: jax.Array,
  usage: jax.Array,
  k: int,
  *,
  penalty: float | jax.Array,
  valid: jax.Array | None = None,
  sorted: bool = False,
  axis_name: AxisName = None,
) -> TopK:
  """`top_k` of ``scores - penalty * usage``: rows that were used often step back.

  Computed in float32, product and difference each rounded; a subnormal score or result counts as 0
  or not, as the processor has it (0 on CPUs). Sharding: as `top_k`.

  Args:
    scores: ``[n]`` float32, bfloat16 or float16.
    usage: ``[n]`` int32, how often each row was used.
    k: how many, static, ``1 <= k <= n``.
    penalty: the score that one use costs, a float or a scalar array.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    sorted: by descending penalised score instead of ascending index.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    A `TopK`; ``values`` are the penalised scores, float32.

  Raises:
    ValueError: as `top_k`, if ``scores`` are integers, ``usage`` is not int32 ``[n]``, or a
      ``penalty`` on the host is not finite.

  Example:
    >>> penalized_top_k(jnp.array([3.0, 2.0]), jnp.array([4, 0]), 1, penalty=0.5).indices.tolist()
    [1]
  """
  _check(scores, valid, k, axis_name)
  if scores.dtype == jnp.int32:
    raise ValueError("scores must be floats to be penalised, got int32: cast them")
  if usage.shape != scores.shape or usage.dtype != jnp.int32:
    raise ValueError(f"usage must be int32{scores.shape}, got {usage.dtype}{usage.shape}")
  if jnp.shape(penalty) != ():
    raise ValueError(f"penalty must be a scalar, got shape {jnp.shape(penalty)}")
  if not isinstance(penalty, jax.Array) and not np.isfinite(penalty):
    raise ValueError(f"penalty must be finite, got {penalty}: leave rows out by valid")
  penalty = jnp.asarray(penalty).astype(jnp.float32)
  return _penalized_top_k(
    scores, usage, penalty, valid, k=int(k), by_score=sorted, axis_name=axis_name
  )


def _check(
  scores: jax.Array, valid: jax.Array | None, k: Any, axis_name: AxisName, lowest: int = 1
) -> None:
  if scores.ndim != 1 or scores.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32):
    raise ValueError(
      f"scores must be [n] float32, bfloat16, float16 or int32, got {scores.dtype}{scores.shape}"
    )
  if valid is not None and (valid.shape != scores.shape or valid.dtype != jnp.bool_):
    raise ValueError(f"valid must be bool{scores.shape}, got {valid.dtype}{valid.shape}")
  _check_count("k", k, scores.shape[0], axis_name, lowest)


def _check_count(name: str, k: Any, local_count: int, axis_name: AxisName, lowest: int) -> None:
  count = row_count(local_count, axis_name)
  if axis_name is not None and count % LEAVES:
    raise ValueError(f"sharded rows must be a multiple of {LEAVES}, got {count}: use pad_rows")
  if not isinstance(k, (int, np.integer, type(None))):
    raise ValueError(f"{name} must be a static int, got {type(k).__name__}")
  if k is not None and not lowest <= int(k) <= count:
    raise ValueError(f"{name} must be within [{lowest}, {count}] for {count} rows, got {k}")


# Compiled even when called eagerly: one dispatch, and the same roundings as under jit.
@functools.partial(jax.jit, static_argnames=("k", "by_score", "axis_name"))
def _top_k(
  scores: jax.Array, valid: jax.Array | None, *, k: int, by_score: bool, axis_name: AxisName
) -> TopK:
  keys_of = lambda arrays: to_keys(*arrays)
  eligible = _eligible(scores, valid)
  at_once = highest.at_once_of_scores(scores, None, jnp.float32(0), valid, k)
  top, ids = highest.highest_over(
    keys_of, (scores, valid), eligible, k, by_score, axis_name, at_once
  )
  return TopK(from_keys(top, scores.dtype), ids)


def _eligible(scores: jax.Array, valid: jax.Array | None) -> jax.Array | None:
  # An int32 score may be as low as the key of invalid rows; a float key never is.
  if scores.dtype != jnp.int32:
    return None
  return jnp.ones(scores.shape, bool) if valid is None else valid


@functools.partial(jax.jit, static_argnames=("most", "axis_name"))
def _top_k_mask(
  scores: jax.Array,
  valid: jax.Array | None,
  k: jax.Array,
  *,
  most: int | None,
  axis_name: AxisName,
) -> jax.Array:
  # Several passes read them.
  keys = jax.lax.optimization_barrier(to_keys(scores, valid))
  return highest.mask_of_highest(keys, _eligible(scores, valid), k, axis_name, most)


@functools.partial(jax.jit, static_argnames=("size", "axis_name"))
def _compact(mask: jax.Array, *, size: int, axis_name: AxisName):
  return threshold.compact(mask, None, size, axis_name)


@functools.partial(jax.jit, static_argnames=("k", "axis_name"))
def _gumbel_top_k(
  key: jax.Array, log_weights: jax.Array, valid: jax.Array | None, *, k: int, axis_name: AxisName
) -> TopK:
  noise = row_gumbel(key, row_ids(log_weights.shape[0], axis_name))
  log_weights = log_weights.astype(jnp.float32)
  drawable = log_weights > -jnp.inf
  if valid is not None:
    drawable &= valid
  return _top_k(log_weights + noise, drawable, k=k, by_score=False, axis_name=axis_name)


@functools.partial(jax.jit, static_argnames=("k", "by_score", "axis_name"))
def _penalized_top_k(
  scores: jax.Array,
  usage: jax.Array,
  penalty: jax.Array,
  valid: jax.Array | None,
  *,
  k: int,
  by_score: bool,
  axis_name: AxisName,
) -> TopK:
  def keys_of(arrays):
    scores, usage, valid = arrays
    # The product keeps its own rounding: contracted into a fused multiply-add in
    # one program and not in the next, it would move ties.
    cost = rounded(penalty * usage.astype(jnp.float32))
    return to_keys(scores.astype(jnp.float32) - cost, valid)

  at_once = highest.at_once_of_scores(scores, usage, penalty, valid, k)
  arrays = scores, usage, valid
  top, ids = highest.highest_over(keys_of, arrays, None, k, by_score, axis_name, at_once)
  return TopK(from_keys(top, jnp.dtype(jnp.float32)), ids)
