"""`jsel.kernels.greedy.k_center` as an estimator of scikit-learn that selects rows."""

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import _safe_indexing  # pyrefly: ignore  # it has no public name

from jsel.kernels import greedy
from jsel.sklearn.arrays import checked, padded


class KCenter(BaseEstimator):
  """The rows that leave no other far away: the farthest from all picked so far, again and again.

  Args:
    n_rows: how many to pick, at most n.

  Attributes:
    sample_indices_: ``int32[n_rows]``, in the order picked; the first is row 0.
    radii_: ``float32[n_rows]``, how far each was from those before it when picked; inf for the
      first.

  Raises:
    ValueError: if ``n_rows`` is not within [1, n].

  Example:
    >>> x, y = [[0.0], [1.0], [9.0], [4.0]], ["a", "b", "c", "d"]
    >>> KCenter(n_rows=3).fit_resample(x, y)
    ([[0.0], [9.0], [4.0]], ['a', 'c', 'd'])
  """

  def __init__(self, n_rows: int = 8):
    self.n_rows = n_rows

  def fit(self, X: Any, y: Any = None) -> Self:
    """Picks among the rows ``X``."""
    x = checked(self, X, reset=True)
    if not isinstance(self.n_rows, (int, np.integer)) or not 1 <= self.n_rows <= len(x):
      raise ValueError(f"n_rows must be an int within [1, n_samples={len(x)}], got {self.n_rows}")
    rows, valid = padded(x)
    picked = greedy.k_center(rows, int(self.n_rows), valid=valid)
    self.sample_indices_ = np.asarray(picked.indices)
    self.radii_ = np.sqrt(np.asarray(picked.values))
    return self

  def fit_resample(self, X: Any, y: Any = None) -> Any:
    """The rows picked of ``X``, and of ``y`` if given, of the kind that they came in."""
    indices = self.fit(X).sample_indices_
    rows = _safe_indexing(X, indices)
    return rows if y is None else (rows, _safe_indexing(y, indices))
