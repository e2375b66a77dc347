"""Representativeness and diversity as the paper reads: ranks, a schedule, a usage penalty."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jsel.kernels import gather, random, reduce, scatter, scores, topk
from jsel.kernels.rows import row_ids
from jsel.selectors.base import Columns, Picks, Plan, Pool, Selector
from jsel.selectors.factors import SHARE_BITS, fit_factors
from jsel.selectors.finite import check_finite


def rep_div_plain(
  *,
  size: int,
  rows: int,
  total_steps: int,
  optimizer: Callable[[float], Any],
  usage_penalty: float = 0.2,
  diversity_start: float = 0.0,
  diversity_end: float = 1.0,
  rank: int = 64,
  latents: int = 256,
  active: int = 8,
  sae_steps: int = 300,
  sae_batch_size: int = 1024,
  sae_learning_rate: float = 3e-3,
  axis_name: str | tuple[str, ...] | None = None,
) -> Selector:
  r"""Top-K of ``(1 - l) R + l D - beta u`` over the factors of a sparse autoencoder.

  R is the rank in [0, 1] of the mean frequency of an example's factors, D that
  of their mean rarity :math:`-\log p_j`, l a cosine from ``diversity_start`` to
  ``diversity_end``, u the times an example was planned. ``max u - min u`` never
  passes ``1 / beta + 1``. `rep_div` is better: ranks and a top-K take slices of
  the pool, and a penalty on counts rotates through the same slices.

  Sharding: a plan costs an exact top-k; the fit is that of `rep_div` and two exact
  ranks (an all-gather of the scores each).

  Args:
    size: examples in the pool, without padding.
    rows: K, examples in a plan.
    total_steps: steps of the run, for the schedule.
    optimizer: makes an ``(init, update)`` pair from a learning rate.
    usage_penalty: beta, >= 0; at 0 the same examples can win for ever.
    diversity_start, diversity_end: l at the first and the last step, in [0, 1].
    rank, latents, active: whitened dimensions, factors, factors an example.
    sae_steps, sae_batch_size, sae_learning_rate: training of the autoencoder.
    axis_name: mesh axis (or axes) that rows are split over.

  Raises:
    ValueError: if a constant is out of its range.

  Source: Zhou, Hua, Guo, Jia, 2026, arXiv 2603.04981, whose abstract alone was
  used: the formulas are this project's reading of it.

  >>> import optax
  >>> rep_div_plain(size=1000, rows=300, total_steps=10, optimizer=optax.adam).most
  300
  """
  check_finite(
    "rep_div_plain",
    usage_penalty=usage_penalty,
    diversity_start=diversity_start,
    diversity_end=diversity_end,
    rank=rank,
    latents=latents,
    active=active,
    sae_steps=sae_steps,
    sae_batch_size=sae_batch_size,
    sae_learning_rate=sae_learning_rate,
  )
  if usage_penalty < 0:
    raise ValueError(f"rep_div_plain.usage_penalty must not be negative, got {usage_penalty}")
  for name, value in (("diversity_start", diversity_start), ("diversity_end", diversity_end)):
    if not 0 <= value <= 1:
      raise ValueError(f"rep_div_plain.{name} must be in [0, 1], got {value}")

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
    frequency = factors.count.astype(jnp.float32) / size
    rarity = -jnp.log(jnp.maximum(frequency, 1 / size))

    def mean_of(table):
      # One factor after the other: the order of a reduction would depend on the shape.
      terms = factors.share.astype(jnp.float32) * table[factors.index] * 2.0**-SHARE_BITS
      return sum(reduce.rounded(terms[:, j]) for j in range(terms.shape[1]))

    ranks = lambda score: scores.rank01(score, valid=pool.valid, axis_name=axis_name)
    return Columns(
      {"representativeness": ranks(mean_of(frequency)), "diversity": ranks(mean_of(rarity))},
      {"fitted": jnp.bool_(True)},
    )

  def init(key: jax.Array, pool: Pool, fitted: Columns | None) -> Columns:
    del key
    if fitted is None:
      nothing = jnp.zeros_like(pool.valid, jnp.float32)
      fitted = Columns(
        {"representativeness": nothing, "diversity": nothing}, {"fitted": jnp.bool_(False)}
      )
    return Columns({"planned": jnp.zeros_like(pool.valid, jnp.int32), **fitted.rows}, fitted.shared)

  def diversity_at(step: jax.Array) -> jax.Array:
    progress = jnp.minimum(step.astype(jnp.float32) / max(total_steps - 1, 1), 1)
    rising = (1 - jnp.cos(jnp.float32(math.pi) * progress)) / 2
    return diversity_start + (diversity_end - diversity_start) * rising

  def score_of(state, representativeness, rarity, planned, lottery, diversity):
    # Rounded before they are added: a fused multiply-add, on some shapes only, would break ties.
    score = reduce.rounded((1 - diversity) * representativeness)
    score = score + reduce.rounded(diversity * rarity)
    # Before the fit a fresh random score: with the penalty that is a rotation.
    score = jnp.where(state.shared["fitted"], score, lottery)
    return score - reduce.rounded(usage_penalty * planned.astype(jnp.float32))

  def select(key, state, pool, step):
    diversity, planned = diversity_at(step), state.rows["planned"]
    # Most plans have a fit, and no use for random numbers.
    lottery = jax.lax.cond(
      state.shared["fitted"],
      lambda ids: jnp.zeros_like(ids, jnp.float32),
      lambda ids: random.row_uniform(key, ids),
      row_ids(planned.shape[0], axis_name),
    )
    ranks = state.rows["representativeness"], state.rows["diversity"]
    score = score_of(state, *ranks, planned, lottery, diversity)
    mask = topk.top_k_mask(score, rows, valid=pool.valid, axis_name=axis_name)
    columns = {**state.rows, "planned": planned + mask.astype(jnp.int32)}
    return state._replace(rows=columns), Plan(mask, None), {"diversity": diversity}

  def pick(key, state, pool, candidates, count, step):
    del pool
    ids = candidates.ids
    at = lambda name: gather.gather(state.rows[name], ids, axis_name=axis_name)
    lottery = random.row_uniform(key, ids)
    score = score_of(
      state, at("representativeness"), at("diversity"), at("planned"), lottery, diversity_at(step)
    )
    position = topk.top_k(score, count).indices
    planned = scatter.scatter_add(state.rows["planned"], ids[position], 1, axis_name=axis_name)
    state = state._replace(rows={**state.rows, "planned": planned})
    return state, Picks(position, jnp.ones(count, jnp.float32))

  return Selector(
    needs=("features",),
    feedback=(),
    scope=("pool", "candidates"),
    least=rows,
    most=rows,
    weighted=False,
    fit=fit,
    init=init,
    select=select,
    pick=pick,
    update=lambda state, batch, feedback: state,
  )
