"""k-means||: seeds of k-means in a few passes over the rows instead of one a center."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jsel.kernels.gather import gather
from jsel.kernels.kmeans_seeding import (
  check_k,
  check_rows,
  in_units,
  influence,
  plus_plus,
  square_lengths,
)
from jsel.kernels.nearest import distance2, nearest
from jsel.kernels.rows import AxisName, axis_size, rows, varying
from jsel.kernels.segments import sum_by_label
from jsel.kernels.topk import gumbel_top_k


@rows("x", "weights", "valid", out=False)
def parallel(
  key: jax.Array,
  x: jax.Array,
  k: int,
  *,
  rounds: int = 5,
  capacity: int | None = None,
  weights: jax.Array | None = None,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> jax.Array:
  r"""``k`` rows of ``x`` to start k-means from, in ``rounds + 1`` passes over the rows.

  A round draws ``capacity`` rows at once, without replacement, with

  .. math:: P(i) \propto w_i \min_{c \text{ drawn}} \lVert x_i - c \rVert^2

  Of all that were drawn, each with the weight of the rows that it is nearest to, k-means++
  picks ``k``. The authors draw each row apart, so that a round's number of rows varies; here
  it is what they expect it to be.

  Sharding: rows may be split over ``axis_name``; costs ``capacity`` rows over it a round, and
  a top-k of as many. Bitwise the same on any device count, for n a multiple of 512.

  Args:
    key: typed PRNG key.
    x: ``[n, d]`` rows of any real dtype.
    k: how many, static, ``1 <= k <= n``.
    rounds: of drawing, at least 1.
    capacity: rows drawn in a round, at most n; all rounds together at least k. None takes 2 k,
      or n if that is less. ``rounds * capacity`` rows are held, and every row is compared with
      each of them once.
    weights: ``[n]``; a row of weight 2 counts as two equal rows, one whose weight is below 1.2e-38
      or not finite is never drawn. All 1 if None.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    ``float32[k, d]`` as of `jsel.kernels.kmeans.plus_plus`: no row and no copy of one comes twice
    while others are drawn. With no row to draw, all is NaN.

  Raises:
    ValueError: if ``k``, ``rounds`` or ``capacity`` is out of range, or a shape is another.

  Example:
    >>> x = jnp.array([[0.0], [0.0], [9.0]])
    >>> sorted(parallel(jax.random.key(0), x, 2).ravel().tolist())
    [0.0, 9.0]

  References:
    Bahmani, Moseley, Vattani, Kumar and Vassilvitskii, *Scalable k-means++*, 2012,
    arXiv 1203.6402.
  """
  check_rows(x, weights, valid)
  count = x.shape[0] * axis_size(axis_name)
  check_k(k, count)
  capacity = min(2 * k, count) if capacity is None else capacity
  if rounds < 1 or not 1 <= capacity <= count or 1 + rounds * capacity < k:
    raise ValueError(
      f"rounds={rounds} and capacity={capacity} must be at least 1, capacity at most n = {count},"
      f" and their product at least k - 1 = {k - 1}"
    )
  return _parallel(
    key, x, weights, valid, k=int(k), rounds=rounds, capacity=capacity, axis_name=axis_name
  )


@functools.partial(jax.jit, static_argnames=("k", "rounds", "capacity", "axis_name"))
def _parallel(key, x, weights, valid, *, k, rounds, capacity, axis_name):
  n, d = x.shape
  usable = jnp.isfinite(square_lengths(x, axis_name))
  weight = influence(usable if valid is None else usable & valid, weights)
  log_weight = jnp.log(weight)
  first_key, draw_key, pick_key = jax.random.split(key, 3)

  def taken(key, log_weight, count):
    ids = gumbel_top_k(key, log_weight, count, axis_name=axis_name).indices
    found = gather(x, jnp.maximum(ids, 0), axis_name=axis_name).astype(jnp.float32)
    return jnp.where((ids >= 0)[:, None], found, jnp.nan)

  def nearer(far, label, drawn, offset):
    """Distances and labels after rows were ``drawn``; those that are NaN are nobody's nearest."""
    new = nearest(x, drawn, usable, precision="float32", axis_name=axis_name)
    gap = distance2(x, drawn, new, axis_name=axis_name)  # exact: a row drawn is at 0
    closer = gap < far
    return jnp.where(closer, gap, far), jnp.where(closer, new + offset, label)

  def draw(j, carry):
    far, label, candidates = carry
    round_key = jax.random.fold_in(draw_key, j)
    drawn = taken(round_key, log_weight + jnp.log(far), capacity)
    offset = jnp.int32(1 + j * capacity)
    far, label = nearer(far, label, drawn, offset)
    return far, label, lax.dynamic_update_slice(candidates, drawn, (offset, np.int32(0)))

  first = taken(first_key, log_weight, 1)
  nowhere = varying(jnp.full(n, jnp.inf, jnp.float32), axis_name)
  nobody = varying(jnp.full(n, -1, jnp.int32), axis_name)
  far, label = nearer(nowhere, nobody, first, 0)
  candidates = jnp.full((1 + rounds * capacity, d), jnp.nan, jnp.float32).at[0].set(first[0])
  _, label, candidates = lax.fori_loop(0, rounds, draw, (far, label, candidates))

  ones = jnp.ones((n, 1), jnp.float32)
  label = jnp.where(weight > 0, label, -1)
  unit, exponent = in_units(weight, label, candidates.shape[0], axis_name)
  one = jnp.ones(1, jnp.int32)
  total = sum_by_label(ones, label, candidates.shape[0], unit, one, axis_name)[:, 0]
  # Of sums that pass float32, relative to each other; those of all rows stay below 2**122.
  total = jnp.ldexp(total, exponent - jnp.max(exponent) + 90)
  return plus_plus(pick_key, candidates, k, weights=total)
