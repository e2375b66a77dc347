"""`jsel.kernels.kmeans` as an estimator of scikit-learn."""

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import ClusterMixin
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils.validation import (
  _check_sample_weight,  # pyrefly: ignore  # estimators outside scikit-learn have no other
  check_is_fitted,
)

from jsel.kernels import kmeans
from jsel.sharding import pad_rows
from jsel.sklearn.arrays import Float32Transformer, checked, padded, seed_of


class KMeans(ClusterMixin, Float32Transformer):
  """k-means in float32: k-means++ seeds once, then Lloyd's iterations until no center moves.

  Args:
    n_clusters: how many, at most n.
    max_iter: the most iterations.
    tol: converged when no center moves farther (a distance, not relative to the variance).
    random_state: an int is the seed of the key, ``jax.random.key(random_state)``.

  Attributes:
    cluster_centers_: ``float32[n_clusters, d]``.
    labels_: ``int32[n]``, of the rows fitted.
    inertia_: weighted sum of squared distances to the nearest center.
    n_iter_: how often the centers moved.

  Raises:
    ValueError: if ``n_clusters`` is not within [1, n], or a weight is negative or all are 0.

  Example:
    >>> x = [[0.0], [2.0], [9.0]]
    >>> model = KMeans(n_clusters=2, random_state=0).fit(x)
    >>> sorted(model.cluster_centers_.ravel().tolist())
    [1.0, 9.0]
    >>> model.transform(x).min(axis=1).tolist()
    [1.0, 1.0, 0.0]
  """

  def __init__(
    self,
    n_clusters: int = 8,
    *,
    max_iter: int = 300,
    tol: float = 0.0,
    random_state: int | np.random.RandomState | None = None,
  ):
    self.n_clusters = n_clusters
    self.max_iter = max_iter
    self.tol = tol
    self.random_state = random_state

  def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
    """Finds the centers of the rows ``X``; weight 2 counts as two rows, 0 as none."""
    x = checked(self, X, reset=True)
    if not isinstance(self.n_clusters, (int, np.integer)) or not 1 <= self.n_clusters <= len(x):
      raise ValueError(
        f"n_clusters must be an int within [1, n_samples={len(x)}], got {self.n_clusters}"
      )
    weights = _check_sample_weight(sample_weight, x, dtype=np.float32, ensure_non_negative=True)
    rows, valid = padded(x)
    weights = jnp.asarray(pad_rows(weights))
    key = jax.random.key(seed_of(self.random_state))
    seeds = kmeans.plus_plus(key, rows, int(self.n_clusters), weights=weights, valid=valid)
    limits = {"max_iters": self.max_iter, "tol": self.tol}
    found = jax.device_get(kmeans.fit(rows, seeds, weights=weights, valid=valid, **limits))
    self.cluster_centers_ = found.centers[:, : x.shape[1]]
    self.labels_ = found.labels[: len(x)]
    self.inertia_ = float(found.inertia)
    self.n_iter_ = int(found.iterations)
    return self

  def predict(self, X: Any) -> np.ndarray:
    """The nearest center of each row, ``int32[n]``."""
    return self._assign(X)[0]

  def transform(self, X: Any) -> np.ndarray:
    """The distance of each row to each center, ``float32[n, n_clusters]``."""
    check_is_fitted(self)
    return euclidean_distances(checked(self, X), self.cluster_centers_)

  def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
    """Minus the weighted sum of squared distances to the nearest center."""
    _, distance2 = self._assign(X)
    weights = _check_sample_weight(
      sample_weight, distance2, dtype=np.float64, ensure_non_negative=True
    )
    return -float(np.dot(weights, distance2))

  def _assign(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
    check_is_fitted(self)
    x = checked(self, X)
    rows, valid = padded(x)
    centers = np.pad(self.cluster_centers_, [(0, 0), (0, rows.shape[1] - x.shape[1])])
    labels, distance2 = kmeans.assign(rows, jnp.asarray(centers), valid=valid)
    return np.asarray(labels)[: len(x)], np.asarray(distance2)[: len(x)]

  @property
  def _n_features_out(self) -> int:
    return self.cluster_centers_.shape[0]
