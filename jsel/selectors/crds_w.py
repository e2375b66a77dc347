"""CRDS-W: RDS+ in a whitened space."""

import jax

from jsel.kernels import whitening
from jsel.kernels.rows import AxisName
from jsel.kernels.similarity import Duplicates
from jsel.selectors.covariance import covariance
from jsel.selectors.finite import check_finite
from jsel.selectors.parts import Cost, Method, Task
from jsel.selectors.rds import by_turns, matching_cost


def crds_w(
  *, rank: int = 0, shrinkage: float = 0.0, duplicates: Duplicates = "next_best"
) -> Method:
  """Pool and queries are whitened by the pool's principal components; then as `rds`.

  The covariance is that of all rows, streamed, and its decomposition is exact: the
  authors' randomised PCA of a sample gives other components at every run.

  Args:
    rank: components; 0 is ``min(512, max(32, d // 8))``, cut to d and n - 1.
    shrinkage: this share of the mean variance is added to each before the root,
      which keeps components of little variance from being amplified.
    duplicates: of `rds`.

  Raises:
    ValueError: if ``rank`` or ``shrinkage`` is negative.

  Source: Shu et al., *CRDS*, 2026, arXiv 2602.13773.

  >>> components(384, 5_000_000), components(4096, 5_000_000), components(8, 5)
  (48, 512, 4)
  """
  check_finite("crds_w", rank=rank, shrinkage=shrinkage)
  if rank < 0 or shrinkage < 0:
    raise ValueError(f"crds_w: rank and shrinkage must not be negative, got {rank}, {shrinkage}")

  def choose(key: jax.Array, task: Task, count: int):
    del key
    kept = components(task.width, int(task.eligible.sum()), rank)
    seen = yield from covariance(task)
    fit = whitening.from_moments(seen, rank=kept, shrinkage=shrinkage)
    yield from by_turns(task, count, duplicates=duplicates, shared=fit, transform=_whiten)

  def cost(task: Task, count: int) -> Cost:
    d = task.width
    kept = components(d, task.size, rank)
    matching = matching_cost(task, count, 2.0 * d * kept)
    flops = matching.flops + 2.0 * task.size * d * d + 30.0 * d**3
    return Cost(matching.passes + 1, flops, matching.held_bytes + 40.0 * d * d)

  return Method(("queries",), False, cost, choose)


def _whiten(fit: whitening.Whitening, x: jax.Array, axis: AxisName) -> jax.Array:
  return whitening.apply(fit, x, axis_name=axis)


def components(d: int, rows: int, rank: int = 0) -> int:
  """How many components to keep of ``d`` columns and ``rows`` rows."""
  return min(rank or min(512, max(32, d // 8)), d, max(rows - 1, 1))
