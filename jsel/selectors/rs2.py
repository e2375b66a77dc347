"""Repeated random subsets (RS2): a walk through a shuffle of the pool, one plan after another."""

import jax
import jax.numpy as jnp

from jsel.kernels import permutation, scatter
from jsel.selectors.base import Columns, Plan, Pool, Selector


def rs2(*, size: int, rows: int, axis_name: str | tuple[str, ...] | None = None) -> Selector:
  """The next ``rows`` of a keyed permutation, around and around.

  The walk is modular: a plan that meets the end goes on at the beginning, so
  that every plan has exactly ``rows`` distinct examples and no two examples
  are ever planned more than one time apart. Whenever a plan ends where a pass
  ends the permutation is drawn anew.

  Sharding: no collective; each device works out the ids of the whole plan.

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
  ...   state, plan, _ = selector.select(jax.random.key(1), state, pool, None, jnp.int32(step))
  >>> state.rows["planned"][:10]
  Array([2, 2, 2, 2, 2, 2, 2, 2, 2, 2], dtype=int32)
  """

  def init(key: jax.Array, pool: Pool, fit: Columns | None) -> Columns:
    del fit
    return Columns(
      {"planned": jnp.zeros_like(pool.valid, jnp.int32)},
      {"key": key, "shuffles": jnp.int32(0), "start": jnp.int32(0)},
    )

  def select(key, state, pool, candidates, step):
    del key, pool, candidates, step
    start, shuffles = state.shared["start"], state.shared["shuffles"]
    offset = jnp.arange(rows, dtype=jnp.int32)
    # offset + start would pass 2**31 in the largest pools.
    position = jnp.where(offset >= size - start, offset - (size - start), offset + start)
    index = permutation.permute(jax.random.fold_in(state.shared["key"], shuffles), position, size)
    stop = jnp.where(rows >= size - start, rows - (size - start), rows + start)
    shared = {
      "key": state.shared["key"],
      "shuffles": shuffles + (stop == 0).astype(jnp.int32),
      "start": stop,
    }
    planned = scatter.scatter_add(state.rows["planned"], index, 1, axis_name=axis_name)
    plan = Plan(index, jnp.ones(rows, jnp.float32), jnp.int32(rows))
    return Columns({"planned": planned}, shared), plan, {}

  return Selector(
    needs=(),
    feedback=(),
    scope="pool",
    capacity=rows,
    least=rows,
    fit=None,
    init=init,
    select=select,
    update=lambda state, batch, feedback: state,
  )
