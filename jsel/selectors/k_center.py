"""k-center: the row farthest from all that were taken, again and again."""

import jax
import jax.numpy as jnp
import numpy as np

from jsel.kernels import greedy
from jsel.selectors.held import hold
from jsel.selectors.parts import Cost, Method, Task, whole


def k_center() -> Method:
  """Farthest first, from a random row: no row is left farther from a taken one than need be by 2.

  Holds the whole pool in memory, twice while it is read, and goes over it once a pick. Takes
  outliers first, as they are what is far.

  Source: Gonzalez, *Clustering to minimize the maximum intercluster distance*, 1985; Sener and
  Savarese, *A core-set approach*, 2018, arXiv 1708.00489.

  >>> k_center().needs
  ()
  """

  def rank(key: jax.Array, task: Task, count: int):
    rows = np.flatnonzero(task.eligible)
    held = yield from hold(rows)
    first = int(jax.random.randint(key, (), 0, len(rows)))
    while True:
      rest, gap = np.zeros(0, np.int64), np.zeros(0)
      if count > 1:
        start = held.x[first][None]
        others = held.valid & (jnp.arange(held.x.shape[0]) != first)
        found = greedy.k_center(held.x, count - 1, initial=start, valid=others)
        there = np.asarray(found.indices) >= 0
        rest, gap = np.asarray(found.indices)[there], np.asarray(found.values)[there]
      index = rows[np.concatenate([[first], rest])]
      count = yield whole(index, np.concatenate([[np.inf], gap]))

  def cost(task: Task, count: int) -> Cost:
    # A row of the product is read from memory: ten times slower than a product of matrices.
    flops = 30.0 * count * task.size * task.width
    return Cost(1, flops, 8.0 * task.size * task.width)

  return Method((), False, cost, rank)
