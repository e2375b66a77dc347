"""Random projections: Rademacher signs, and the subsampled Hadamard transform.

    python -m benchmarks.kernels.projection

jsel draws its matrix in every call, from a key; the peers have theirs beforehand. The error is the
largest of any entry, against float64 and relative to the root mean square of all.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels.cases import Case, Work, peer, run, temporaries
from benchmarks.turns import Contender
from jsel.kernels import projection, srht


@functools.cache
def rows(n: int, d: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows, and the peers' matrix of signs over sqrt(dim)."""
  rng = np.random.default_rng(0)
  signs = rng.integers(0, 2, (d, dim)) * 2 - 1
  x = rng.standard_normal((n, d), np.float32)
  return x, (signs / np.sqrt(dim)).astype(np.float32)


def project(n: int, d: int, dim: int, transform: str, precision: str) -> Work:
  x, matrix = rows(n, d, dim)
  on_device = jax.device_put(x)
  key = jax.random.key(0)
  of_kind = {"rademacher": projection.rademacher, "srht": srht.srht}[transform]

  @jax.jit
  def ours(key, x):
    return of_kind(key, x, dim, precision=precision)

  def own_matrix():
    if transform == "rademacher":
      return np.asarray(projection.signs(key, jnp.arange(d), dim), np.float64) / np.sqrt(dim)
    # What it does to unit vectors: signs, over the square root of dim.
    return np.sign(np.asarray(ours(key, jnp.eye(d, dtype=jnp.float32)), np.float64)) / np.sqrt(dim)

  def of_torch():
    import torch

    wide = torch.from_numpy(x), torch.from_numpy(matrix)
    to_numpy = lambda result: result.float().numpy()
    settings = f"dense, {torch.get_num_threads()} threads"
    found = [Contender("torch float32", lambda: wide[0] @ wide[1], settings, to_numpy)]
    if precision == "bfloat16":
      table = wide[1].to(torch.bfloat16)
      work = lambda: wide[0].to(torch.bfloat16) @ table
      found.append(Contender("torch bfloat16", work, settings + ", rows rounded in it", to_numpy))
    return found

  def of_sklearn():
    from sklearn.random_projection import GaussianRandomProjection

    dense = GaussianRandomProjection(dim, random_state=0).fit(x[:1])
    setattr(dense, "components_", np.ascontiguousarray(matrix.T))  # noqa: B010
    work = lambda: dense.transform(x)
    settings = "GaussianRandomProjection.transform, given the signs as its matrix"
    return [Contender("sklearn", work, settings, lambda result: result)]

  if transform == "srht":  # two products with matrices of about the root of d
    root = 1 << (d - 1).bit_length() // 2
    operations = 2.0 * n * d * (root + d // root)
  else:  # signs are exact in bfloat16, so that only rows are split
    operations = 2.0 * n * d * dim * (2 if precision == "bfloat16_3x" else 1)

  some = np.linspace(0, n - 1, min(n, 1000)).astype(int)

  def error(name, result):
    # The peers' signs are divided by sqrt(dim) before they are rounded.
    table = own_matrix() if name == "jsel" else matrix.astype(np.float64)
    exact = x[some].astype(np.float64) @ table
    return np.abs(np.asarray(result)[some] - exact).max() / np.sqrt((exact**2).mean())

  return Work(
    Contender("jsel", lambda: ours(key, on_device), f"{transform}, precision={precision}"),
    [*peer("torch", of_torch), *peer("sklearn", of_sklearn)],
    error,
    temporaries(ours, key, on_device),
    {"float32" if precision == "float32" else "bfloat16": operations},
  )


CASES = {
  f"{transform} 20k x 4096 to 512, {precision}": Case(
    project,
    {"n": 20_000, "d": 4096, "dim": 512, "transform": transform, "precision": precision},
    {"n": 300, "d": 64, "dim": 16, "transform": transform, "precision": precision},
    most_error,
    must_reach,
  )
  for transform, precision, most_error, must_reach in (
    ("rademacher", "float32", 2e-5, 1.5),
    ("rademacher", "bfloat16_3x", 2e-5, 1.5),
    ("rademacher", "bfloat16", 3e-2, 1.3),
    ("srht", "float32", 2e-5, 3.0),
  )
}

if __name__ == "__main__":
  run("projection", CASES)
