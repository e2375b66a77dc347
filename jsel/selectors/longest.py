"""The longest rows: a baseline that is hard to beat where answers are long."""

import jax
import numpy as np

from jsel.selectors.parts import Cost, Method, Task, whole


def longest() -> Method:
  """Rows by descending length; of equal length the earlier first.

  Source: Zhao et al., *Long Is More for Alignment*, 2024, arXiv 2402.04833.

  >>> longest().needs
  ('length',)
  """

  def rank(key: jax.Array, task: Task, count: int):
    del key, count
    assert task.length is not None
    index = np.flatnonzero(task.eligible)
    index = index[np.argsort(-task.length[index], kind="stable")]
    yield whole(index, task.length[index])

  return Method(("length",), False, lambda task, count: Cost(0, 0.0, 16.0 * task.size), rank)
