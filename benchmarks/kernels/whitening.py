"""Whitening: fit and apply, against a covariance and its eigenvectors by PyTorch and scikit-learn.

    python -m benchmarks.kernels.whitening

Rows have a mean that is not zero. The error is that of the kernel, the products of some whitened
rows with one another, in Frobenius norm against float64.
"""

import functools

import jax
import numpy as np

from benchmarks.kernels.cases import Case, Work, peer, run, temporaries
from benchmarks.turns import Contender
from jsel.kernels import whitening
from jsel.kernels.precision import Precision


@functools.cache
def rows(n: int, d: int) -> np.ndarray:
  """Correlated columns of falling variance, and a mean as large as the largest deviation."""
  rng = np.random.default_rng(0)
  turn, _ = np.linalg.qr(rng.standard_normal((d, d)))
  deviation = np.arange(1, d + 1) ** -0.5
  x = (rng.standard_normal((n, d), np.float32) * deviation.astype(np.float32)) @ turn
  return (x + rng.standard_normal(d)).astype(np.float32)


@functools.cache
def exact(n: int, d: int, rank: int, count: int) -> np.ndarray:
  x = rows(n, d)
  mean = x.mean(0, dtype=np.float64)
  covariance = np.zeros((d, d))
  for start in range(0, n, 5000):
    block = x[start : start + 5000] - mean
    covariance += block.T @ block
  variance, vectors = np.linalg.eigh(covariance / (n - 1))
  y = (x[:count] - mean) @ (vectors[:, -rank:] / np.sqrt(variance[-rank:]))
  return y @ y.T


def fit_and_apply(n: int, d: int, rank: int, precision: Precision) -> Work:
  x = rows(n, d)
  on_device = jax.device_put(x)

  @jax.jit
  def ours(x):
    fitted = whitening.fit(x, rank=rank, precision=precision)
    return whitening.apply(fitted, x, precision=precision)

  def of_torch():
    import torch

    data = torch.from_numpy(x)

    def work():
      mean = data.mean(0)
      centred = data - mean
      variance, vectors = torch.linalg.eigh(centred.T @ centred / (n - 1))
      return centred @ (vectors[:, -rank:] / variance[-rank:].sqrt())

    settings = f"covariance and eigh, {torch.get_num_threads()} threads"
    return [Contender("torch float32", work, settings, lambda result: result.numpy())]

  def of_sklearn():
    from sklearn.decomposition import PCA

    work = lambda: PCA(rank, whiten=True, svd_solver="covariance_eigh").fit_transform(x)
    return [Contender("sklearn PCA", work, "covariance_eigh, whiten", lambda result: result)]

  def error(name, result):
    del name
    count = min(n, 1000)
    y = np.asarray(result[:count], np.float64)
    kernel = exact(n, d, rank, count)
    return np.linalg.norm(y @ y.T - kernel) / np.linalg.norm(kernel)

  # Half of the covariance, and the components of all rows.
  operations = 1.0 * n * d * d + 2.0 * n * d * rank
  return Work(
    Contender("jsel", lambda: ours(on_device), f"method=eigh, precision={precision}"),
    [*peer("torch", of_torch), *peer("sklearn", of_sklearn)],
    error,
    temporaries(ours, on_device),
    {"float32": operations} if precision == "float32" else {"bfloat16": 3 * operations},
  )


CASES = {
  f"whitening 50k x 1024 to 256, {precision}": Case(
    fit_and_apply,
    {"n": 50_000, "d": 1024, "rank": 256, "precision": precision},
    {"n": 600, "d": 20, "rank": 5, "precision": precision},
    2e-3,
    1.5,
  )
  for precision in ("float32", "bfloat16_3x")
}

if __name__ == "__main__":
  run("whitening", CASES)
