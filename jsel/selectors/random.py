"""A fixed random subset, drawn once."""

import jax
import jax.numpy as jnp

from jsel.kernels import permutation, scatter
from jsel.selectors.base import Columns, Plan, Pool, Selector


def random(*, size: int, rows: int, axis_name: str | tuple[str, ...] | None = None) -> Selector:
  """The same ``rows`` of ``size`` examples at every plan: the baseline of static selection.

  Sharding: no collective; each device works out the ids of the whole plan.

  Args:
    size: examples in the pool, without padding.
    rows: examples in the subset.
    axis_name: mesh axis (or axes) that rows are split over.

  >>> pool = Pool({}, jnp.ones(512, bool))
  >>> selector = random(size=512, rows=100)
  >>> state = selector.init(jax.random.key(0), pool, None)
  >>> state, first, _ = selector.select(jax.random.key(1), state, pool, None, jnp.int32(0))
  >>> state, second, _ = selector.select(jax.random.key(2), state, pool, None, jnp.int32(9))
  >>> bool((first.index == second.index).all())
  True
  """

  def init(key: jax.Array, pool: Pool, fit: Columns | None) -> Columns:
    del fit
    return Columns({"planned": jnp.zeros_like(pool.valid, jnp.int32)}, {"key": key})

  def select(key, state, pool, candidates, step):
    del key, pool, candidates, step
    index = permutation.permute(state.shared["key"], jnp.arange(rows, dtype=jnp.int32), size)
    planned = scatter.scatter_add(state.rows["planned"], index, 1, axis_name=axis_name)
    plan = Plan(index, jnp.ones(rows, jnp.float32), jnp.int32(rows))
    return state._replace(rows={"planned": planned}), plan, {}

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
