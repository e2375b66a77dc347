"""InfoBatch: examples of small loss are skipped at random, those kept are weighted up."""

import math

import jax
import jax.numpy as jnp

from jsel.kernels import random, reduce, scatter, topk
from jsel.kernels.rows import row_ids
from jsel.selectors.base import Columns, Plan, Pool, Selector
from jsel.selectors.finite import check_finite


def infobatch(
  *,
  size: int,
  total_steps: int,
  prune_probability: float = 0.5,
  anneal: float = 0.125,
  axis_name: str | tuple[str, ...] | None = None,
) -> Selector:
  r"""Unbiased dynamic pruning by the last seen loss.

  Of the ``m`` examples whose last loss is below the mean of all seen losses,
  ``k = ceil((1 - r) m)`` are kept, drawn without replacement, each with weight
  ``m / k``; all others have weight 1. The weighted gradient is therefore that
  of all data in expectation, for every ``m``. An example that was never seen
  is never skipped. In the last ``anneal`` of the steps nothing is.

  Plans vary in length: between ``size - floor(r size)`` and ``size``.

  Sharding: one float sum (512 leaves in a fixed tree) and the counts of a
  histogram top-k.

  Args:
    size: examples in the pool, without padding.
    total_steps: steps of the run, for ``anneal``.
    prune_probability: r, in [0, 1).
    anneal: share of the steps at the end that see all data, in [0, 1].
    axis_name: mesh axis (or axes) that rows are split over.

  Raises:
    ValueError: if ``prune_probability`` or ``anneal`` is out of its range.

  Source: Qin et al., *InfoBatch: Lossless Training Speed Up by Unbiased
  Dynamic Data Pruning*, 2024, arXiv 2303.04947. Unlike there, unseen examples
  are told by a mask and not by their score, and the weight is exact.

  >>> infobatch(size=1000, total_steps=100).least
  500
  """
  check_finite("infobatch", prune_probability=prune_probability, anneal=anneal)
  if not 0 <= prune_probability < 1:
    raise ValueError(f"infobatch.prune_probability must be in [0, 1), got {prune_probability}")
  if not 0 <= anneal <= 1:
    raise ValueError(f"infobatch.anneal must be in [0, 1], got {anneal}")
  first_full_step = math.ceil(total_steps * (1 - anneal))

  def init(key: jax.Array, pool: Pool, fit: Columns | None) -> Columns:
    del key, fit
    rows = {
      "planned": jnp.zeros_like(pool.valid, jnp.int32),
      "loss": jnp.zeros_like(pool.valid, jnp.float32),
      "seen": jnp.zeros_like(pool.valid),
    }
    return Columns(rows, {})

  def select(key, state, pool, step):
    loss, seen = state.rows["loss"], state.rows["seen"]
    count = lambda mask: reduce.count(mask, axis_name=axis_name)
    # One loss that is not finite would leave no mean; its row is not pruned.
    known = seen & jnp.isfinite(loss)
    total = reduce.fixed_tree_sum(loss, valid=known, axis_name=axis_name)
    mean = total / jnp.maximum(count(known), 1).astype(jnp.float32)
    small = known & (loss < mean) & (step < first_full_step)
    pruned_from = count(small)
    kept = pruned_from - jnp.floor(
      pruned_from.astype(jnp.float32) * jnp.float32(prune_probability)
    ).astype(jnp.int32)
    lottery = random.row_uniform_int(key, row_ids(loss.shape[0], axis_name))
    # A 31-bit ticket: int32 keys order as unsigned ones do.
    ticket = (lottery >> 1).astype(jnp.int32)
    winners = topk.top_k_mask(ticket, kept, valid=small, axis_name=axis_name)
    planned = pool.valid & (~small | winners)
    boost = pruned_from.astype(jnp.float32) / jnp.maximum(kept, 1).astype(jnp.float32)
    state = state._replace(
      rows={**state.rows, "planned": state.rows["planned"] + planned.astype(jnp.int32)}
    )
    info = {"pruned": pruned_from - kept, "threshold": mean}
    return state, Plan(planned, jnp.where(small, boost, 1)), info

  def update(state, batch, feedback):
    write = lambda x, values: scatter.scatter(
      x, batch.index, values, valid=batch.valid, axis_name=axis_name
    )
    rows = {
      "planned": state.rows["planned"],
      "loss": write(state.rows["loss"], feedback["loss"]),
      "seen": write(state.rows["seen"], True),
    }
    return state._replace(rows=rows)

  return Selector(
    needs=(),
    feedback=("loss",),
    scope=("pool",),
    least=size - math.floor(size * prune_probability),
    most=size,
    weighted=True,
    fit=None,
    init=init,
    select=select,
    pick=None,
    update=update,
  )
