"""Representativeness, rarity and rotation: every example gets what it is entitled to."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jsel.kernels import gather, reduce, rotation, scatter, topk
from jsel.kernels.conditional import changed_if
from jsel.selectors.base import Columns, Picks, Plan, Pool, Selector
from jsel.selectors.factors import empty_factors, fit_factors, look_up
from jsel.selectors.finite import check_finite

ONE = 1 << rotation.BITS  # entitlements are integers in units of 2**-24 plans
TABLE_BITS = 18  # with the 12 bits of a share 30: a row's tilt is exact in int32
LEVELS = 256  # values that the exponent takes on its way: entitlements are kept in between


def rep_div(
  *,
  size: int,
  rows: int,
  total_steps: int,
  optimizer: Callable[[float], Any],
  exponent_start: float = 1.0,
  exponent_end: float = 0.5,
  effective_share: float = 0.8,
  loss_aware: bool = False,
  loss_floor: float = 0.4,
  probability_decay: float = 0.5,
  importance_weights: bool = False,
  largest_weight: float = 5.0,
  rank: int = 64,
  latents: int = 256,
  active: int = 8,
  sae_steps: int = 300,
  sae_batch_size: int = 1024,
  sae_learning_rate: float = 3e-3,
  axis_name: str | tuple[str, ...] | None = None,
) -> Selector:
  r"""Entitlement rotation over the factors of a sparse autoencoder.

  With :math:`\tilde z` the row-normalised codes, :math:`q_j` the share of
  factor j among all active ones, :math:`u` the times an example was planned:

  .. math::
    w_i(t) &= h_i \sum_j \tilde z_{ij} q_j^{a(t) - 1}, \qquad
    \pi_i(t) = \min(1, c w_i), \quad \sum_i \pi_i = K \\
    T_i &\leftarrow T_i + \pi_i, \qquad S_i = T_i - u_i + U_i(t)

  and the plan is the exact top-K of S, U uniform and fresh each plan. The
  exponent ``a`` falls on a cosine of 256 steps from ``exponent_start`` (common
  factors, or at 1 the data set as it is: then this is a rotation as `rs2`
  makes it) to ``exponent_end`` (rare factors more often). Usage is penalised against
  entitlement: ``|u - T| < 2`` at all times, so nobody monopolises the plans and
  nobody is forgotten. The exponent is kept where the effective share of the
  pool, :math:`(\sum w)^2 / (n \sum w^2)` at h = 1, is at least
  ``effective_share``: flat data limits the tilt by itself.

  Without ``importance_weights`` the model is trained on the tilted
  distribution. An example with no active factor gets the mean tilt.

  Among candidates, an example's entitlement grows whenever it is one: a pass of
  the candidates over the pool then entitles to ``rows`` picks in all. Factors
  and counts are the pool's, though only candidates can be taken.

  Sharding: entitlements, weights and their sums are integers, so the plan is
  the same on any number of devices, given the same fit and feedback. A plan
  costs an exact top-k, and two or more integer sums where the exponent or the
  losses changed; the state 12 bytes an example beside the fit.
  The fit is one program: the covariance in a fixed tree, then an autoencoder
  that every device trains alike on gathered batches.

  Args:
    size: examples in the pool, without padding.
    rows: K, examples in a plan.
    total_steps: steps of the run, for the schedule.
    optimizer: makes an ``(init, update)`` pair from a learning rate, for the
      autoencoder; ``optax.adam`` is one.
    exponent_start, exponent_end: a at the first and the last step.
    effective_share: least effective share of the pool, in [0, 1].
    loss_aware: multiply by ``h = f + (1 - f) (1 - p) / mean(1 - p)``, p a
      running mean of the probability of the true label, f the ``loss_floor``.
    loss_floor: f, in [0, 1].
    probability_decay: weight of the newest probability in p, in (0, 1].
    importance_weights: weight an example by ``(K / n) / pi``, at most
      ``largest_weight``: the gradient is then that of all data in expectation.
    largest_weight: their bound.
    rank, latents, active: whitened dimensions, factors, factors an example.
    sae_steps, sae_batch_size, sae_learning_rate: training of the autoencoder.
    axis_name: mesh axis (or axes) that rows are split over.

  Raises:
    ValueError: if a constant is out of its range.

  Source: after Zhou, Hua, Guo, Jia, 2026, arXiv 2603.04981 (the idea; the
  formulas are this project's own, see docs/rep_div.md).

  >>> import optax
  >>> rep_div(size=1000, rows=300, total_steps=10, optimizer=optax.adam).feedback
  ()
  """
  check_finite(
    "rep_div",
    exponent_start=exponent_start,
    exponent_end=exponent_end,
    effective_share=effective_share,
    loss_floor=loss_floor,
    probability_decay=probability_decay,
    largest_weight=largest_weight,
    rank=rank,
    latents=latents,
    active=active,
    sae_steps=sae_steps,
    sae_batch_size=sae_batch_size,
    sae_learning_rate=sae_learning_rate,
  )
  for name, value, low in (
    ("effective_share", effective_share, 0.0),
    ("loss_floor", loss_floor, 0.0),
    ("probability_decay", probability_decay, 1e-6),
  ):
    if not low <= value <= 1:
      raise ValueError(f"rep_div.{name} must be in [{low:g}, 1], got {value}")
  if exponent_end > exponent_start:
    raise ValueError(
      f"rep_div.exponent_end={exponent_end} is above exponent_start={exponent_start}: the exponent"
      " falls, from common to rare factors"
    )

  def fit(key: jax.Array, features: jax.Array, pool: Pool) -> Columns:
    factors = fit_factors(
      key,
      features,
      pool,
      optimizer=optimizer(sae_learning_rate),
      rank=rank,
      latents=latents,
      active=active,
      steps=sae_steps,
      batch_size=sae_batch_size,
      axis_name=axis_name,
    )
    # The first plan's exponent lies on one side of 1, the last one's perhaps on the other.
    bound = lambda exponent: _bounded_exponent(
      factors, exponent, pool.valid, size, effective_share, axis_name
    )
    return Columns(
      {"factor_index": factors.index, "factor_share": factors.share},
      {
        "factor_count": factors.count,
        "exponents": jnp.stack([bound(exponent_start), bound(exponent_end)]),
        "level": jnp.int32(-1),
        "fitted": jnp.bool_(True),
      },
    )

  def init(key: jax.Array, pool: Pool, fitted: Columns | None) -> Columns:
    del key
    none = empty_factors(pool.valid.shape[0], latents=latents, active=active)
    zeros = jnp.zeros_like(pool.valid, jnp.int32)
    columns = {"planned": zeros, "debt": zeros, "entitlement": zeros}
    if loss_aware:
      columns |= {"probability": zeros.astype(jnp.float32), "seen": jnp.zeros_like(pool.valid)}
    if fitted is None:
      fitted = Columns(
        {"factor_index": none.index, "factor_share": none.share},
        {
          "factor_count": none.count,
          "exponents": jnp.ones(2, jnp.float32),
          "level": jnp.int32(-1),  # that `entitlement` is of; a new fit has none
          "fitted": jnp.bool_(False),
        },
      )
    return Columns({**columns, **fitted.rows}, fitted.shared)

  def entitlements(state: Columns, pool: Pool, step: jax.Array):
    """What a plan entitles each row to, the level that is of, and its exponent."""
    progress = step.astype(jnp.float32) / max(total_steps - 1, 1)
    falling = (1 + jnp.cos(jnp.float32(math.pi) * jnp.minimum(progress, 1))) / 2
    level = jnp.round(falling * LEVELS).astype(jnp.int32)

    def exponent_of(level):
      exponent = exponent_end + (exponent_start - exponent_end) * level.astype(jnp.float32) / LEVELS
      exponents = state.shared["exponents"]
      return jnp.clip(exponent, jnp.min(exponents), jnp.max(exponents))

    def entitle():
      weight = _weights(
        state.rows["factor_index"],
        state.rows["factor_share"],
        state.shared["factor_count"],
        exponent_of(level),
        pool.valid,
        axis_name,
      )
      if loss_aware:
        weight = weight * _difficulty(state, pool.valid, loss_floor, axis_name)
      return _entitlement(weight, pool.valid, rows, axis_name)

    # With losses the weights are new in every plan.
    changed = jnp.bool_(True) if loss_aware else level != state.shared["level"]
    share = changed_if(changed, lambda _: entitle(), state.rows["entitlement"])
    return share, level, exponent_of(level)

  def importance(share: jax.Array) -> jax.Array:
    chance = jnp.maximum(share.astype(jnp.float32) / ONE, 1 / ONE)
    return jnp.minimum(rows / size / chance, largest_weight)

  def select(key, state, pool, step):
    share, level, exponent = entitlements(state, pool, step)
    debt, planned = state.rows["debt"], state.rows["planned"]
    turn = rotation.turn(key, debt, share, planned, rows, valid=pool.valid, axis_name=axis_name)
    columns = {**state.rows, "planned": turn.taken, "debt": turn.debt, "entitlement": share}
    state = Columns(columns, {**state.shared, "level": level})
    return (
      state,
      Plan(turn.mask, importance(share) if importance_weights else None),
      {"exponent": exponent},
    )

  def pick(key, state, pool, candidates, count, step):
    share, level, _ = entitlements(state, pool, step)
    ids = candidates.ids
    earned = gather.gather(share, ids, axis_name=axis_name)
    debt = gather.gather(state.rows["debt"], ids, axis_name=axis_name) + earned
    position = topk.top_k(rotation.priority(key, debt, ids), count).indices
    paid = jnp.zeros_like(debt).at[position].set(ONE)
    add = lambda name, at, amount: scatter.scatter_add(
      state.rows[name], at, amount, axis_name=axis_name
    )
    columns = {
      **state.rows,
      "planned": add("planned", ids[position], 1),
      "debt": add("debt", ids, earned - paid),
      "entitlement": share,
    }
    weight = importance(earned[position]) if importance_weights else jnp.ones(count, jnp.float32)
    return Columns(columns, {**state.shared, "level": level}), Picks(position, weight)

  def update(state, batch, feedback):
    if not loss_aware:
      return state
    old = gather.gather(state.rows["probability"], batch.index, axis_name=axis_name)
    seen = gather.gather(state.rows["seen"], batch.index, axis_name=axis_name)
    new = jnp.clip(feedback["probability"], 0, 1)
    known = batch.valid & ~jnp.isnan(new)  # NaN says nothing of its row
    mixed = reduce.rounded((1 - probability_decay) * old) + reduce.rounded(probability_decay * new)
    write = lambda x, values: scatter.scatter(
      x, batch.index, values, valid=known, axis_name=axis_name
    )
    columns = {
      **state.rows,
      "probability": write(state.rows["probability"], jnp.where(seen, mixed, new)),
      "seen": write(state.rows["seen"], True),
    }
    return state._replace(rows=columns)

  return Selector(
    needs=("features",),
    feedback=("probability",) if loss_aware else (),
    scope=("pool", "candidates"),
    least=rows,
    most=rows,
    weighted=importance_weights,
    fit=fit,
    init=init,
    select=select,
    pick=pick,
    update=update,
  )


def _tilt(index, share, count, exponent):
  """A row's weight, an integer up to 2**30: sum_j share_j q_j**(exponent - 1) times a constant."""
  log_count = jnp.log(jnp.maximum(count, 1).astype(jnp.float32))
  log_table = jnp.where(count > 0, (exponent - 1) * log_count, -jnp.inf)
  # Any constant will do: scaled by the largest entry the table uses all its bits.
  largest = jnp.max(log_table)
  table = jnp.exp(log_table - jnp.where(jnp.isfinite(largest), largest, 0))
  table = jnp.round(table * 2**TABLE_BITS).astype(jnp.int32)
  return look_up(index, share, table)


def _weights(index, share, count, exponent, valid, axis_name):
  """Float32 weights of all rows; a row without an active factor gets the mean of the others."""
  tilt = _tilt(index, share, count, exponent)
  # A row's shares sum to 2**SHARE_BITS or to 0.
  coded = valid & (share.sum(axis=1) > 0)
  total = reduce.fixed_point_sum(tilt, valid=coded, axis_name=axis_name)
  coded_rows = reduce.count(coded, axis_name=axis_name)
  mean = reduce.two_limb_to_float(total) / jnp.maximum(coded_rows, 1).astype(jnp.float32)
  return jnp.where(coded, tilt.astype(jnp.float32), jnp.where(coded_rows > 0, mean, 1))


def _bounded_exponent(factors, exponent, valid, size, least, axis_name):
  """The exponent between ``exponent`` and 1 that is nearest to it and keeps the effective share."""

  def effective_share(exponent):
    weight = _weights(factors.index, factors.share, factors.count, exponent, valid, axis_name)
    moment = lambda x: reduce.fixed_tree_sum(x, valid=valid, axis_name=axis_name)
    relative = weight * jnp.float32(2.0**-30)
    return moment(relative) ** 2 / (size * moment(relative * relative))

  at = lambda t: 1 + t * jnp.float32(exponent - 1)

  def halve(_, interval):
    low, high = interval
    middle = (low + high) / 2
    enough = effective_share(at(middle)) >= least
    return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

  low, _ = jax.lax.fori_loop(0, 16, halve, (jnp.float32(0), jnp.float32(1)))
  return jnp.where(effective_share(at(jnp.float32(1))) >= least, jnp.float32(exponent), at(low))


def _difficulty(state, valid, floor, axis_name):
  """h: 1 in the mean over the examples seen, and for those not seen."""
  seen = state.rows["seen"] & valid
  wrong = jnp.round((1 - state.rows["probability"]) * 2**16).astype(jnp.int32)
  total = reduce.fixed_point_sum(wrong, valid=seen, axis_name=axis_name)
  seen_rows = reduce.count(seen, axis_name=axis_name)
  mean = reduce.two_limb_to_float(total) / jnp.maximum(seen_rows, 1).astype(jnp.float32)
  relative = wrong.astype(jnp.float32) / jnp.where(mean > 0, mean, 1)
  return floor + reduce.rounded((1 - floor) * jnp.where(seen & (mean > 0), relative, 1))


def _entitlement(weight, valid, rows, axis_name):
  """pi = min(1, c weight) in units of 2**-24, with c such that all of them sum to ``rows``."""
  largest = jnp.max(jnp.where(valid, weight, 0))
  if axis_name is not None:
    largest = jax.lax.pmax(largest, axis_name)
  # Integers, so that their sum is exact; at least 1, so that everyone is entitled to something.
  weight = jnp.maximum(jnp.round(weight / largest * ONE).astype(jnp.int32), 1)

  def fill(carry):
    scale, capped_rows, _ = carry
    capped = valid & (scale * weight.astype(jnp.float32) >= ONE)
    count = reduce.count(capped, axis_name=axis_name)
    rest = reduce.two_limb_to_float(
      reduce.fixed_point_sum(weight, valid=valid & ~capped, axis_name=axis_name)
    )
    needed = (rows - count).astype(jnp.float32) * ONE
    return jnp.where(rest > 0, needed / rest, scale), count, count != capped_rows

  # A row that is capped stays so, as the scale only grows: few rounds, and the result is exact.
  scale, _, _ = jax.lax.while_loop(
    lambda carry: carry[2], fill, (jnp.float32(0), jnp.int32(-1), jnp.bool_(True))
  )
  share = jnp.minimum(jnp.round(scale * weight.astype(jnp.float32)), ONE).astype(jnp.int32)
  return jnp.where(valid, share, 0)
