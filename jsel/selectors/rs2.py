"""Repeated random subsets (RS2): a walk through a shuffle of the pool, one plan after another."""

import jax
import jax.numpy as jnp

from jsel.kernels import gather, permutation, random, scatter, topk
from jsel.kernels.rows import first_row
from jsel.selectors.base import Columns, Picks, Plan, Pool, Selector

# Plans of at most so many rows, in pools of 16 times as many, are worked out from their own ids.
FEW, TIMES = 2**14, 16


def rs2(*, size: int, rows: int, axis_name: str | tuple[str, ...] | None = None) -> Selector:
  """The next ``rows`` of a keyed permutation, around and around.

  The walk is modular: a plan that meets the end goes on at the beginning, so
  that every plan has exactly ``rows`` distinct examples and no two examples
  are ever planned more than one time apart. Whenever a plan ends where a pass
  ends the permutation is drawn anew.

  Among candidates, those that were picked least often, in random order.

  Sharding: no collective; each device works out which of its own rows are in
  the plan.

  Args:
    size: examples in the pool, without padding.
    rows: examples in a plan.
    axis_name: mesh axis (or axes) that rows are split over.

  Source: Okanovic et al., *Repeated Random Sampling for Minimizing the
  Time-to-Accuracy of Learning*, 2023, arXiv 2305.18424.

  >>> pool = Pool({}, jnp.arange(512) < 10)
  >>> selector = rs2(size=10, rows=4)
  >>> state = selector.init(jax.random.key(0), pool, None)
  >>> for step in range(5):
  ...   state, plan, _ = selector.select(jax.random.key(1), state, pool, jnp.int32(step))
  >>> state.rows["planned"][:10]
  Array([2, 2, 2, 2, 2, 2, 2, 2, 2, 2], dtype=int32)
  """

  def init(key: jax.Array, pool: Pool, fit: Columns | None) -> Columns:
    del fit
    return Columns(
      {"planned": jnp.zeros_like(pool.valid, jnp.int32)},
      {"key": key, "shuffles": jnp.int32(0), "start": jnp.int32(0)},
    )

  def many_rows(shuffle, start, valid):
    count = valid.shape[0]
    place = permutation.inverse_range(shuffle, first_row(count, axis_name), count, size)
    # How far past the start, around the end: a sum with `size` could pass 2**31.
    ahead = jnp.where(place >= start, place - start, place + (size - start))
    return valid & (ahead < rows)

  def few_rows(shuffle, start, planned):
    ahead = jnp.arange(rows, dtype=jnp.int32)
    place = jnp.where(ahead < size - start, start + ahead, ahead - (size - start))
    index = permutation.permute(shuffle, place, size)
    mask = scatter.scatter(jnp.zeros_like(planned, bool), index, True, axis_name=axis_name)
    return mask, scatter.scatter_add(planned, index, 1, axis_name=axis_name)

  def select(key, state, pool, step):
    del key, step
    start, shuffles = state.shared["start"], state.shared["shuffles"]
    shuffle = jax.random.fold_in(state.shared["key"], shuffles)
    if rows <= min(FEW, size // TIMES):
      mask, planned = few_rows(shuffle, start, state.rows["planned"])
    else:
      mask = many_rows(shuffle, start, pool.valid)
      planned = state.rows["planned"] + mask.astype(jnp.int32)
    stop = jnp.where(rows >= size - start, rows - (size - start), rows + start)
    shared = {
      "key": state.shared["key"],
      "shuffles": shuffles + (stop == 0).astype(jnp.int32),
      "start": stop,
    }
    return Columns({"planned": planned}, shared), Plan(mask, None), {}

  def pick(key, state, pool, candidates, count, step):
    del pool, step
    picked = gather.gather(state.rows["planned"], candidates.ids, axis_name=axis_name)
    lottery = random.row_uniform(key, candidates.ids)
    # Exact below 2**24 visits; the fraction orders those of equal count.
    since = picked - jnp.min(picked)
    position = topk.top_k(-(since.astype(jnp.float32) + lottery), count).indices
    planned = scatter.scatter_add(
      state.rows["planned"], candidates.ids[position], 1, axis_name=axis_name
    )
    state = Columns({"planned": planned}, state.shared)
    return state, Picks(position, jnp.ones(count, jnp.float32))

  return Selector(
    needs=(),
    feedback=(),
    scope=("pool", "candidates"),
    least=rows,
    most=rows,
    weighted=False,
    fit=None,
    init=init,
    select=select,
    pick=pick,
    update=lambda state, batch, feedback: state,
  )
