"""kM-Closest: as many clusters as rows are wanted, and the row nearest to each center."""

import jax
import numpy as np

from jsel.selectors.cells import cluster, cluster_cost, take_turns
from jsel.selectors.finite import check_finite
from jsel.selectors.parts import Method, Task, whole


def km_closest(*, clusters: int = 0, iterations: int = 20, refinements: int = 0) -> Method:
  """The rows nearest to centers; where clusters are fewer than the budget, in rounds.

  A budget of b has b clusters, so that subsets are not nested, and the cost grows with
  n times b: hours where both are large.

  Args:
    clusters: of k-means; 0 is as many as rows are wanted.
    iterations: of k-means on its sample.
    refinements: times that the centers are moved to the means of the whole pool.

  Raises:
    ValueError: if an option is negative.

  Source: a baseline of Yu et al., *Diversify and Conquer*, 2024, arXiv 2409.11378.

  >>> km_closest().needs
  ()
  """
  check_finite("km_closest", clusters=clusters, iterations=iterations, refinements=refinements)
  if min(clusters, iterations, refinements) < 0:
    raise ValueError(f"km_closest: negative option: {clusters=}, {iterations=}, {refinements=}")
  options = {"iterations": iterations, "refinements": refinements}

  def rank(key: jax.Array, task: Task, count: int):
    k = min(clusters or count, int(task.eligible.sum()))
    cells = yield from cluster(key, task, k, **options)
    index = take_turns(cells.labels, -cells.distance2, np.ones(k))
    yield whole(index, -cells.distance2[index], cluster=cells.labels[index])

  cost = lambda task, count: cluster_cost(task, min(clusters or count, task.size), **options)
  return Method((), False, cost, rank)
