"""Epsilon-greedy on a running loss: the hardest examples, and some at random."""

import jax
import jax.numpy as jnp

from jsel.kernels import gather, random, reduce, scatter, topk
from jsel.kernels.rows import row_ids
from jsel.selectors.base import Columns, Picks, Plan, Pool, Selector
from jsel.selectors.finite import check_finite


def loss(
  *,
  size: int,
  rows: int,
  epsilon: float = 0.1,
  decay: float = 0.8,
  axis_name: str | tuple[str, ...] | None = None,
) -> Selector:
  """The ``(1 - epsilon) rows`` examples of largest smoothed loss, and some others at random.

  Examples never seen come first, in random order, until all have a loss.
  There are no weights: the mean gradient is that of the chosen examples, not
  of the data set.

  Among candidates the same by the loss that the model has on them now, which
  needs no smoothing.

  Sharding: counts of two histogram top-ks.

  Args:
    size: examples in the pool, without padding.
    rows: examples in a plan.
    epsilon: share of a plan that is drawn uniformly, in [0, 1].
    decay: weight of the newest loss in the running mean, in (0, 1].
    axis_name: mesh axis (or axes) that rows are split over.

  Raises:
    ValueError: if ``epsilon`` or ``decay`` is out of its range.

  Source: Raju, Daruwalla, Lipasti, *Accelerating Deep Learning with Dynamic
  Data Pruning*, 2021, arXiv 2111.12621.

  >>> loss(size=1000, rows=300).feedback
  ('loss',)
  """
  check_finite("loss", epsilon=epsilon, decay=decay)
  if not 0 <= epsilon <= 1:
    raise ValueError(f"loss.epsilon must be in [0, 1], got {epsilon}")
  if not 0 < decay <= 1:
    raise ValueError(f"loss.decay must be in (0, 1], got {decay}")
  explored = round(epsilon * rows)

  def init(key: jax.Array, pool: Pool, fit: Columns | None) -> Columns:
    del key, fit
    return Columns(
      {
        "planned": jnp.zeros_like(pool.valid, jnp.int32),
        "loss": jnp.zeros_like(pool.valid, jnp.float32),
        "seen": jnp.zeros_like(pool.valid),
      },
      {},
    )

  def select(key, state, pool, step):
    del step
    smoothed, seen = state.rows["loss"], state.rows["seen"]
    ids = row_ids(seen.shape[0], axis_name)
    uniform = random.row_uniform(key, ids)
    largest = jnp.max(jnp.where(seen & jnp.isfinite(smoothed), smoothed, 0))
    if axis_name is not None:
      largest = jax.lax.pmax(largest, axis_name)
    # A loss that is NaN comes last, and is planned where no other row is left.
    smoothed = jnp.where(jnp.isnan(smoothed), -jnp.inf, smoothed)
    score = jnp.where(seen, smoothed, largest + 1 + uniform)
    greedy = topk.top_k_mask(score, rows - explored, valid=pool.valid, axis_name=axis_name)
    ticket = (random.row_uniform_int(key, ids, stream=1) >> 1).astype(jnp.int32)
    others = topk.top_k_mask(ticket, explored, valid=pool.valid & ~greedy, axis_name=axis_name)
    planned = greedy | others
    state = state._replace(
      rows={**state.rows, "planned": state.rows["planned"] + planned.astype(jnp.int32)}
    )
    return state, Plan(planned, None), {"largest_loss": largest}

  def pick(key, state, pool, candidates, count, step):
    del pool, step
    ids, loss = candidates.ids, candidates.outputs["loss"]
    at_random = round(epsilon * count)
    greedy = topk.top_k_mask(loss, count - at_random)
    # A loss that is not finite never wins as such, but may be drawn.
    short = count - greedy.sum(dtype=jnp.int32)
    ticket = (random.row_uniform_int(key, ids, stream=1) >> 1).astype(jnp.int32)
    others = topk.top_k_mask(ticket, short, valid=~greedy)
    position, _ = topk.compact(greedy | others, count)
    planned = scatter.scatter_add(state.rows["planned"], ids[position], 1, axis_name=axis_name)
    state = state._replace(rows={**state.rows, "planned": planned})
    return state, Picks(position, jnp.ones(count, jnp.float32))

  def update(state, batch, feedback):
    old = gather.gather(state.rows["loss"], batch.index, axis_name=axis_name)
    seen = gather.gather(state.rows["seen"], batch.index, axis_name=axis_name)
    # One that was not finite is forgotten, or its row would keep it for ever.
    seen &= jnp.isfinite(old)
    mixed = reduce.rounded((1 - decay) * old) + reduce.rounded(decay * feedback["loss"])
    write = lambda x, values: scatter.scatter(
      x, batch.index, values, valid=batch.valid, axis_name=axis_name
    )
    rows = {
      "planned": state.rows["planned"],
      "loss": write(state.rows["loss"], jnp.where(seen, mixed, feedback["loss"])),
      "seen": write(state.rows["seen"], True),
    }
    return state._replace(rows=rows)

  return Selector(
    needs=(),
    feedback=("loss",),
    scope=("pool", "candidates"),
    least=rows,
    most=rows,
    weighted=False,
    fit=None,
    init=init,
    select=select,
    pick=pick,
    update=update,
  )
