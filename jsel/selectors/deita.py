"""Deita: the highest scores first, less those that resemble one taken before."""

import jax
import numpy as np

from jsel.kernels import greedy
from jsel.selectors.finite import check_finite
from jsel.selectors.held import Held, hold, padded
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
  check_finite("deita", threshold=threshold)
  if not -1 < threshold <= 1:
    raise ValueError(f"deita.threshold must be in (-1, 1], got {threshold}")

  def rank(key: jax.Array, task: Task, count: int):
    del key
    assert task.score is not None
    rows = np.flatnonzero(task.eligible)
    score = np.where(np.isfinite(task.score), task.score, -np.inf)
    rows = rows[np.lexsort((rows, -score[rows]))]
    # Ranks, as scores that differ in float64 may tie in float32.
    place = np.empty(task.size)
    place[rows] = -np.arange(len(rows))
    tried, taken = 0, np.zeros(0, np.int64)
    held: Held | None = None
    while True:
      if held is not None and tried >= min(TRIED * count, len(rows)):
        taken = accepted(held, place, count)
      while tried < len(rows) and (tried < TRIED * count or len(taken) < count):
        tried = min(max(2 * tried, TRIED * count), len(rows))
        held = yield from hold(np.sort(rows[:tried]))
        taken = accepted(held, place, count)
      index = np.concatenate([taken, rows[~np.isin(rows, taken)]])[: max(count, len(taken))]
      count = yield whole(index, score[index])

  def accepted(held: Held, place: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` of the held rows that are unlike each other, by descending ``place``."""
    x, directed = directions(held.x)
    found = greedy.diversity_filter(
      x,
      padded(place, held),
      min(count, len(held.rows)),
      threshold=threshold,
      valid=held.valid & directed,
    )
    index = np.asarray(found.indices)
    return held.rows[index[index >= 0]]

  def cost(task: Task, count: int) -> Cost:
    tried = min(TRIED * count, task.size)
    return Cost(1, 2.0 * tried * count * task.width, 12.0 * tried * task.width)

  return Method(("score",), False, cost, rank)
