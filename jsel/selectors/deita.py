"""Deita: the highest scores first, less those that resemble one taken before."""

import jax
import numpy as np

from jsel.kernels import greedy
from jsel.selectors.held import hold, padded
from jsel.selectors.parts import Cost, Method, Task, whole
from jsel.selectors.rds import directions

TRIED = 2  # times as many rows as are wanted, at first


def deita(*, threshold: float = 0.9) -> Method:
  """By descending score, each row whose cosine to all rows taken is below ``threshold``.

  Rows that the filter drops come after all others, by score, so that any budget can be met. Of
  the pool only the rows of highest score are read and held: twice as many as are wanted, and
  more where too many of those are alike.

  Args:
    threshold: of the cosine, in (-1, 1]; at 1 copies alone are dropped, as far as float32 can tell.

  Raises:
    ValueError: if ``threshold`` is out of range.

  Source: Liu et al., *What makes good data for alignment?*, 2024, arXiv 2312.15685, whose
  score is that of quality times that of complexity.

  >>> deita().needs
  ('score',)
  """
  if not -1 < threshold <= 1:
    raise ValueError(f"deita.threshold must be in (-1, 1], got {threshold}")

  def rank(key: jax.Array, task: Task, count: int):
    del key
    assert task.score is not None
    rows = np.flatnonzero(task.eligible)
    score = np.where(np.isfinite(task.score), task.score, -np.inf)
    rows = rows[np.lexsort((rows, -score[rows]))]
    tried = 0
    while True:
      tried = min(max(tried, TRIED * count), len(rows))
      held = yield from hold(np.sort(rows[:tried]))
      x, directed = directions(held.x)
      while True:
        # Ranks, as scores that differ in float64 may tie in float32.
        place = np.empty(task.size)
        place[rows] = -np.arange(len(rows))
        found = greedy.diversity_filter(
          x,
          padded(place, held),
          min(count, tried),
          threshold=threshold,
          valid=held.valid & directed,
        )
        taken = held.rows[np.asarray(found.indices)[np.asarray(found.indices) >= 0]]
        if len(taken) < count and tried < len(rows):
          tried *= 2
          break
        index = np.concatenate([taken, rows[~np.isin(rows, taken)]])[: max(count, len(taken))]
        count = yield whole(index, score[index])
        if TRIED * count > tried and tried < len(rows):
          break

  def cost(task: Task, count: int) -> Cost:
    tried = min(TRIED * count, task.size)
    return Cost(1, 2.0 * tried * count * task.width, 12.0 * tried * task.width)

  return Method(("score",), False, cost, rank)
