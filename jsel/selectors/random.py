"""A fixed random subset, drawn once."""

import jax
import jax.numpy as jnp
import numpy as np

from jsel.kernels import permutation
from jsel.kernels.rows import first_row
from jsel.selectors.base import Columns, Plan, Pool, Selector
from jsel.selectors.parts import Cost, Method, Task, whole


def random(*, size: int, rows: int, axis_name: str | tuple[str, ...] | None = None) -> Selector:
  """The same ``rows`` of ``size`` examples at every plan: the baseline of static selection.

  Sharding: no collective; each device looks at its own rows alone.

  Args:
    size: examples in the pool, without padding.
    rows: examples in the subset.
    axis_name: mesh axis (or axes) that rows are split over.

  >>> pool = Pool({}, jnp.ones(512, bool))
  >>> selector = random(size=512, rows=100)
  >>> state = selector.init(jax.random.key(0), pool, None)
  >>> state, first, _ = selector.select(jax.random.key(1), state, pool, jnp.int32(0))
  >>> state, second, _ = selector.select(jax.random.key(2), state, pool, jnp.int32(9))
  >>> int(first.mask.sum()), bool((first.mask == second.mask).all())
  (100, True)
  """

  def init(key: jax.Array, pool: Pool, fit: Columns | None) -> Columns:
    del fit
    return Columns({"planned": jnp.zeros_like(pool.valid, jnp.int32)}, {"key": key})

  def select(key, state, pool, step):
    del key, step
    count, shuffle = pool.valid.shape[0], state.shared["key"]
    place = permutation.inverse_range(shuffle, first_row(count, axis_name), count, size)
    mask = pool.valid & (place < rows)
    planned = state.rows["planned"] + mask.astype(jnp.int32)
    return state._replace(rows={"planned": planned}), Plan(mask, None), {}

  return Selector(
    needs=(),
    feedback=(),
    scope=("pool",),
    least=rows,
    most=rows,
    weighted=False,
    fit=None,
    init=init,
    select=select,
    pick=None,
    update=lambda state, batch, feedback: state,
  )


def random_order() -> Method:
  """Rows in the order of a shuffle: the same subset as `random`'s for the same key.

  >>> random_order().needs
  ()
  """

  def rank(key: jax.Array, task: Task, count: int):
    del count
    place = np.asarray(permutation.inverse_range(key, 0, task.size, task.size))
    index = np.flatnonzero(task.eligible)
    index = index[np.argsort(place[index], kind="stable")]
    yield whole(index, -place[index])

  return Method((), False, lambda task, count: Cost(0, 0.0, 16.0 * task.size), rank)
