"""QDIT: rows that cover the pool best, their quality counted in."""

import jax
import numpy as np

from jsel.kernels.facility_location import facility_location
from jsel.selectors.finite import check_finite
from jsel.selectors.held import hold, padded
from jsel.selectors.parts import Cost, Method, Task, whole
from jsel.selectors.rds import directions


def qdit(*, quality_weight: float = 0.7) -> Method:
  r"""Greedy picks by the gain in coverage and quality.

  .. math:: (1 - a) \sum_v \Delta \max_{c \in A} \cos(v, c) + a q_i

  Coverage is summed over the pool, as printed: with quality from 1 to 5, early picks go by
  coverage, and late ones, which add little of it, by quality. A score that is not finite is never
  picked.

  Holds the whole pool in memory, and compares every row with every other at least once.

  Args:
    quality_weight: a, in [0, 1]; at 0 the score does not count.

  Raises:
    ValueError: if ``quality_weight`` is out of range.

  Source: Bukharin and Zhao, *Data diversity matters for robust instruction tuning*, 2023,
  arXiv 2311.14736.

  >>> qdit().needs
  ('score',)
  """
  check_finite("qdit", quality_weight=quality_weight)
  if not 0 <= quality_weight <= 1:
    raise ValueError(f"qdit.quality_weight must be in [0, 1], got {quality_weight}")

  def rank(key: jax.Array, task: Task, count: int):
    del key
    assert task.score is not None
    held = yield from hold(np.flatnonzero(task.eligible))
    x, directed = directions(held.x)
    quality = padded(np.where(np.isfinite(task.score), task.score, np.nan), held)
    while True:
      found = facility_location(
        x, count, quality=quality, quality_weight=quality_weight, valid=held.valid & directed
      )
      there = np.asarray(found.indices) >= 0
      index = held.rows[np.asarray(found.indices)[there]]
      count = yield whole(index, np.asarray(found.values)[there])

  def cost(task: Task, count: int) -> Cost:
    # Every gain once, and of some 64 rows again at every pick.
    flops = 2.0 * task.size * task.width * (task.size + 64.0 * count)
    return Cost(1, flops, 12.0 * task.size * task.width)

  return Method(("score",), False, cost, rank)
