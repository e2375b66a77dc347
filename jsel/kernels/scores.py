"""Scores of rows: ranks and standard scores to combine them by, and those of logits."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jsel.kernels.keys import to_keys
from jsel.kernels.reduce import fixed_tree_sum
from jsel.kernels.rows import AxisName, rows


@rows("scores", "valid", out=True)
def rank01(
  scores: jax.Array,
  *,
  valid: jax.Array | None = None,
  method: Literal["exact", "histogram"] = "exact",
  bins: int = 4096,
  axis_name: AxisName = None,
) -> jax.Array:
  """Average ranks of ``scores`` among the valid rows, scaled to [0, 1].

  The lowest of n distinct scores gets 0, the highest 1, the others steps of
  1 / (n - 1); equal scores share the mean of their ranks. A single valid row
  gets 0. NaN ranks lowest, all NaN tie. ``-0.0`` and ``0.0`` tie.

  Sharding: rows may be split over ``axis_name``. ``"exact"`` gathers all n
  scores, 4 bytes each, on every device, and sorts them there; ``"histogram"``
  gathers nothing and sums ``bins`` integers. Ranks are integers until the last
  division: bitwise the same on any device count.

  Args:
    scores: ``[n]`` float32, bfloat16, float16 or int32.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    method: ``"exact"``, or ``"histogram"``: rows whose score falls in the same
      of ``bins`` equal intervals between the lowest and the highest finite score
      tie, so a rank is off by at most half the share of rows in its interval
      (one far outlier makes that large). NaN, -inf and inf have bins of their own.
    bins: of ``"histogram"``.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    ``float32[n]``, 0 for invalid rows.

  Raises:
    ValueError: if ``scores`` is not a vector of those dtypes, ``valid`` has
      another length, ``method`` is unknown or ``bins`` is below 1.

  Example:
    >>> rank01(jnp.array([5.0, 1.0, 5.0, 9.0, jnp.nan])).tolist()
    [0.625, 0.25, 0.625, 1.0, 0.0]
  """
  valid = _check_rows(scores, valid)
  total = _sum_over(valid.sum(dtype=jnp.int32), axis_name)
  if method == "exact":
    doubled = _doubled_ranks(scores, valid, total, axis_name)
  elif method == "histogram":
    doubled = _doubled_ranks_of_bins(scores, valid, bins, axis_name)
  else:
    raise ValueError(f'method must be "exact" or "histogram", got {method!r}')
  highest = 2 * jnp.maximum(total.astype(jnp.uint32), 2) - 2
  # As a barred vector: XLA multiplies by the reciprocal of a scalar, and 1 would not be reached.
  highest = jnp.broadcast_to(highest.astype(jnp.float32), scores.shape)
  highest = jax.lax.optimization_barrier(highest)
  return jnp.where(valid, doubled.astype(jnp.float32) / highest, 0)


@rows("scores", "valid", out=True)
def zscore(
  scores: jax.Array,
  *,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> jax.Array:
  """``scores`` at mean 0 and variance 1 (of a population) over the valid rows.

  A subnormal score counts as 0 or not, as the processor has it (0 on CPUs).

  Sharding: rows may be split over ``axis_name``; costs a few sums of one
  number. Bitwise the same on any device count.

  Args:
    scores: ``[n]`` float32, bfloat16, float16 or int32.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    ``float32[n]``, 0 for invalid rows, and for all rows if they are equal. NaN
    and infinite scores are left out of mean and variance and stay what they are.

  Raises:
    ValueError: if ``scores`` is not a vector, or ``valid`` has another length.

  Example:
    >>> zscore(jnp.array([1.0, 3.0, jnp.nan, -jnp.inf])).tolist()
    [-1.0, 1.0, nan, -inf]
  """
  valid = _check_rows(scores, valid)
  scores = scores.astype(jnp.float32)
  finite = valid & jnp.isfinite(scores)
  count = _sum_over(finite.sum(dtype=jnp.int32), axis_name)
  count = jax.lax.optimization_barrier(jnp.maximum(count, 1).astype(jnp.float32))
  average = lambda x: fixed_tree_sum(x, valid=finite, axis_name=axis_name) / count
  # In units of a power of two, exactly: squares of the largest and of the smallest floats are none.
  largest = -_lowest(-jnp.abs(scores), finite, axis_name)
  exponent = jnp.frexp(jnp.maximum(largest, jnp.finfo(jnp.float32).tiny))[1].astype(jnp.int32)
  centred = jnp.ldexp(scores, -exponent)
  # Relative to the lowest, equal scores are exactly 0, and a large mean does not cancel.
  centred = centred - _lowest(centred, finite, axis_name)
  centred = centred - average(centred)
  variance = average(centred**2)
  standard = jnp.where(variance > 0, centred / jnp.sqrt(variance), 0)
  return jnp.where(finite, standard, jnp.where(valid, scores, 0))


@rows("scores", out=True)
def combine(
  scores: Sequence[jax.Array],
  weights: jax.Array | Sequence[float],
  *,
  axis_name: AxisName = None,
) -> jax.Array:
  """The weighted sum of scores; bring them to one scale first (`rank01`, `zscore`).

  Sharding: rows may be split over ``axis_name``; nothing is exchanged, bitwise
  the same on any device count.

  Args:
    scores: a list or tuple of m arrays ``[n]`` of any real dtype.
    weights: ``[m]``, of either sign.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    ``float32[n]``. A score that is NaN makes its row NaN, unless its weight is
    0: that leaves the score out.

  Raises:
    ValueError: if there are no scores, their shapes differ, or their number is
      not that of the weights.

  Example:
    >>> combine((jnp.array([0.0, 1.0]), jnp.array([4.0, 2.0])), (1.0, 0.5)).tolist()
    [2.0, 2.0]
  """
  del axis_name  # rows are independent
  if not isinstance(scores, (list, tuple)) or not scores:
    raise ValueError(f"scores must be a list or tuple of vectors, got {type(scores).__name__}")
  shapes = [array.shape for array in scores]
  if len(shapes[0]) != 1 or set(shapes) != {shapes[0]}:
    raise ValueError(f"scores must be vectors of one length, got shapes {shapes}")
  weights = jnp.asarray(weights, jnp.float32)
  if weights.shape != (len(scores),):
    raise ValueError(f"{len(scores)} scores need as many weights, got shape {weights.shape}")
  parts = [
    jnp.where(weight == 0, 0, weight * array.astype(jnp.float32))
    for weight, array in zip(weights, scores, strict=True)
  ]
  # Products rounded before they are added: a fused multiply-add would depend on the program.
  first, *others = jax.lax.optimization_barrier(parts)
  return sum(others, start=first)


@rows("logits", "labels", out=True)
def el2n(logits: jax.Array, labels: jax.Array, *, axis_name: AxisName = None) -> jax.Array:
  r"""The norm of a row's error, :math:`\|\mathrm{softmax}(z) - \mathrm{onehot}(y)\|_2`.

  Between 0 and the root of 2; early in training, rows of high score matter most.

  Sharding: exchanges nothing; device counts agree to 1e-6, not bitwise.

  Args:
    logits: ``[n, c]`` of any float dtype.
    labels: ``int32[n]`` in [0, c).
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    ``float32[n]``; NaN for a NaN logit or a label outside of [0, c).

  Raises:
    ValueError: if ``logits`` is not a matrix, or ``labels`` not int32 of its length.

  Example:
    >>> el2n(jnp.zeros((2, 2)), jnp.array([0, 1])).round(4)
    Array([0.7071, 0.7071], dtype=float32)

  References:
    Paul, Ganguli, Dziugaite, *Deep learning on a data diet*, 2021, arXiv:2107.07075.
  """
  del axis_name  # rows are independent
  if labels.shape != logits.shape[:1] or labels.dtype != jnp.int32:
    raise ValueError(
      f"labels must be int32[{logits.shape[0]}] as the logits, got {labels.dtype} {labels.shape}"
    )
  probabilities, _ = _softmax(logits)
  is_label = _columns(logits) == labels[:, None]
  others = jnp.where(is_label, 0, probabilities)
  # 1 - p of the label is the sum of the others, which does not cancel.
  squares = jnp.sum(others**2, axis=1) + jnp.sum(others, axis=1) ** 2
  return jnp.where(is_label.any(1), jnp.sqrt(squares), jnp.nan)


@rows("logits", out=True)
def margin(logits: jax.Array, *, axis_name: AxisName = None) -> jax.Array:
  """The probability of the likeliest class less that of the next; 0 where they tie.

  Sharding: exchanges nothing; device counts agree to 1e-6, not bitwise.

  Args:
    logits: ``[n, c]`` of any float dtype, c at least 2.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    ``float32[n]`` in [0, 1]; low is uncertain. NaN for a NaN logit.

  Raises:
    ValueError: if ``logits`` is not a matrix of two columns or more.

  Example:
    >>> margin(jnp.log(jnp.array([[0.7, 0.2, 0.1]]))).round(4).tolist()
    [0.5]
  """
  del axis_name  # rows are independent
  if logits.ndim == 2 and logits.shape[1] < 2:
    raise ValueError(f"a margin needs two classes, got logits of shape {logits.shape}")
  probabilities, shifted = _softmax(logits)
  is_top = _columns(logits) == jnp.argmax(shifted, axis=1, keepdims=True).astype(jnp.int32)
  next_logit = jnp.max(jnp.where(is_top, -jnp.inf, shifted), axis=1)
  return -jnp.expm1(next_logit) * jnp.max(probabilities, axis=1)


@rows("logits", out=True)
def entropy(logits: jax.Array, *, axis_name: AxisName = None) -> jax.Array:
  """The entropy of the predicted classes, in nats: 0 if certain, log c if uniform.

  Args, sharding, errors: as of `margin`; one class will do.

  Returns:
    ``float32[n]``. NaN for a NaN logit.

  Example:
    >>> entropy(jnp.array([[0.0, 0.0], [1e4, 0.0]])).round(4)
    Array([0.6931, 0.    ], dtype=float32)
  """
  del axis_name  # rows are independent
  probabilities, shifted = _softmax(logits)
  log_total = jnp.log(jnp.sum(jnp.exp(shifted), axis=1))
  # A class of probability 0 adds 0, also where its logit is -inf.
  return log_total - jnp.sum(jnp.where(probabilities == 0, 0, probabilities * shifted), axis=1)


def _doubled_ranks(
  scores: jax.Array, valid: jax.Array, total: jax.Array, axis_name: AxisName
) -> jax.Array:
  """uint32[n]: twice the average rank, from 0."""
  keys = jnp.where(valid, to_keys(scores, None), np.iinfo(np.int32).max)  # invalid rows last
  everyone = keys if axis_name is None else jax.lax.all_gather(keys, axis_name, tiled=True)
  ordered = jnp.sort(everyone)
  position = jnp.arange(ordered.shape[0], dtype=jnp.int32)
  is_end = jnp.append(ordered[1:] != ordered[:-1], True)
  # The end of each run of equals; one that runs into the invalid rows ends before them.
  ends = jax.lax.cummin(jnp.where(is_end, position + 1, ordered.shape[0]), reverse=True)
  first = jnp.searchsorted(ordered, keys).astype(jnp.int32)
  last = jnp.minimum(ends[first], total) - 1
  return first.astype(jnp.uint32) + last.astype(jnp.uint32)


def _doubled_ranks_of_bins(
  scores: jax.Array, valid: jax.Array, bins: int, axis_name: AxisName
) -> jax.Array:
  """uint32[n]: twice the average rank of the rows in the same bin."""
  if bins < 1:
    raise ValueError(f"bins must be at least 1, got {bins}")
  scores = scores.astype(jnp.float32)
  finite = valid & jnp.isfinite(scores)
  lowest, highest = _lowest(scores, finite, axis_name), -_lowest(-scores, finite, axis_name)
  # Halves, as the range itself may overflow.
  half_width = highest / 2 - lowest / 2
  share = jnp.where(half_width > 0, (scores / 2 - lowest / 2) / half_width, 0)
  bin_of = 2 + jnp.clip((share * bins).astype(jnp.int32), 0, bins - 1)
  bin_of = jnp.where(jnp.isneginf(scores), 1, jnp.where(jnp.isposinf(scores), bins + 2, bin_of))
  bin_of = jnp.where(jnp.isnan(scores), 0, bin_of)
  counts = jnp.zeros(bins + 3, jnp.int32).at[bin_of].add(valid.astype(jnp.int32))
  counts = _sum_over(counts, axis_name).astype(jnp.uint32)
  below = jnp.cumsum(counts) - counts
  return (2 * below + counts - 1)[bin_of]


def _softmax(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Probabilities, and logits less the largest of their row, in float32."""
  if logits.ndim != 2 or not logits.shape[1]:
    raise ValueError(f"logits must be a matrix [n, c], got shape {logits.shape}")
  logits = logits.astype(jnp.float32)
  shifted = logits - jnp.max(logits, axis=1, keepdims=True)
  weights = jnp.exp(shifted)
  return weights / jnp.sum(weights, axis=1, keepdims=True), shifted


def _lowest(x: jax.Array, among: jax.Array, axis_name: AxisName) -> jax.Array:
  lowest = jnp.min(jnp.where(among, x, jnp.inf), initial=jnp.inf)
  return lowest if axis_name is None else jax.lax.pmin(lowest, axis_name)


def _columns(x: jax.Array) -> jax.Array:
  return jnp.arange(x.shape[1], dtype=jnp.int32)[None]


def _sum_over(x: jax.Array, axis_name: AxisName) -> jax.Array:
  return x if axis_name is None else jax.lax.psum(x, axis_name)


def _check_rows(scores: jax.Array, valid: jax.Array | None) -> jax.Array:
  """``valid``, of all rows if None."""
  if scores.ndim != 1 or scores.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32):
    raise ValueError(
      f"scores must be [n] of a float of up to 32 bits or int32, got {scores.dtype} {scores.shape}"
    )
  if valid is None:
    return jnp.ones(scores.shape, bool)
  if valid.shape != scores.shape:
    raise ValueError(f"valid has shape {valid.shape}, scores have {scores.shape}")
  if valid.dtype != jnp.bool_:
    raise ValueError(f"valid must be bool, got {valid.dtype}: compare it with something")
  return valid
