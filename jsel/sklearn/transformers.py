"""`jsel.kernels.whitening` and `jsel.kernels.projection` as transformers of scikit-learn."""

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.utils.validation import check_is_fitted

from jsel.kernels import projection, whitening
from jsel.sklearn.arrays import Float32Transformer, checked, padded, seed_of


class Whitening(Float32Transformer):
  """Principal components of unit variance, as ``PCA(whiten=True)`` gives them, in float32.

  Args:
    n_components: how many, at most d and n - 1; None stands for the most.
    eps: components of a variance of at most ``eps`` times the largest become 0.
    shrinkage: this share of the mean variance is added to each before the root.

  Attributes:
    mean_: ``float32[d]``.
    components_: ``float32[n_components, d]``, by descending variance; the entry of largest
      magnitude of each is positive.
    scale_: ``float32[n_components]``, 1 / standard deviation, 0 where there is no variance.

  Raises:
    ValueError: if ``n_components`` is out of range, or an option is negative.

  Example:
    >>> x = [[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    >>> np.cov(Whitening().fit_transform(x).T).round(5).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
  """

  def __init__(self, n_components: int | None = None, *, eps: float = 1e-6, shrinkage: float = 0.0):
    self.n_components = n_components
    self.eps = eps
    self.shrinkage = shrinkage

  def fit(self, X: Any, y: Any = None) -> Self:
    """Fits the rows ``X``, of which there are at least two."""
    x = checked(self, X, reset=True, least=2)
    rank = min(len(x) - 1, x.shape[1]) if self.n_components is None else self.n_components
    rows, valid = padded(x, columns=False)
    options = {"rank": rank, "eps": self.eps, "shrinkage": self.shrinkage}
    fitted = jax.device_get(whitening.fit(rows, valid=valid, **options))
    self.mean_, self.components_, self.scale_ = fitted
    return self

  def transform(self, X: Any) -> np.ndarray:
    """The rows ``X`` whitened, ``float32[n, n_components]``."""
    check_is_fitted(self)
    x = checked(self, X)
    rows, valid = padded(x, columns=False)
    fitted = whitening.Whitening(*map(jnp.asarray, (self.mean_, self.components_, self.scale_)))
    return np.asarray(whitening.apply(fitted, rows, valid=valid))[: len(x)]

  @property
  def _n_features_out(self) -> int:
    return self.components_.shape[0]


class RademacherProjection(Float32Transformer):
  """Random signs times the rows: fewer columns, lengths and inner products kept in expectation.

  The matrix of signs is made anew from the seed, and nothing of its size is stored.

  Args:
    n_components: columns of the result.
    random_state: an int is the seed of the key, ``jax.random.key(random_state)``.

  Attributes:
    seed_: of the key that the signs are made from.

  Raises:
    ValueError: if ``n_components`` is below 1.

  Example:
    >>> x = np.ones((3, 1000))
    >>> y = RademacherProjection(64, random_state=0).fit_transform(x)
    >>> y.shape, y.dtype.name, bool((y[0] == y[1]).all())
    ((3, 64), 'float32', True)
  """

  def __init__(
    self, n_components: int = 128, *, random_state: int | np.random.RandomState | None = None
  ):
    self.n_components = n_components
    self.random_state = random_state

  def fit(self, X: Any, y: Any = None) -> Self:
    """Draws the seed; of ``X`` only the number of columns is looked at."""
    checked(self, X, reset=True)
    projection.check_dim(self.n_components)
    self.seed_ = seed_of(self.random_state)
    return self

  def transform(self, X: Any) -> np.ndarray:
    """The rows ``X`` projected, ``float32[n, n_components]``."""
    check_is_fitted(self)
    x = checked(self, X)
    rows, _ = padded(x)
    y = projection.rademacher(jax.random.key(self.seed_), rows, self.n_components)
    return np.asarray(y)[: len(x)]

  @property
  def _n_features_out(self) -> int:
    return self.n_components
