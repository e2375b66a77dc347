"""Fitting a selector on the features of the pool."""

import time
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jsel.selectors import Columns, Pool, Selector
from jsel.sharding import row_axes


class Fitted(NamedTuple):
  """A fit and what it took."""

  columns: Columns
  seconds: float
  compile_seconds: float


def fit_selector(
  selector: Selector, key: jax.Array, features: jax.Array, pool: Pool, mesh: Mesh
) -> Fitted:
  """Fits ``selector`` on ``features`` ``[n, ...]``, split by rows as the pool is; waits for it."""
  rows, same = P(row_axes(mesh)), P()
  fit = selector.fit
  assert fit is not None

  @jax.jit
  def program(key, features, pool):
    features = features.reshape(features.shape[0], -1)
    return jax.shard_map(
      fit,
      mesh=mesh,
      in_specs=(same, rows, rows),
      out_specs=Columns(rows, same),  # pyrefly: ignore
    )(key, features, pool)

  pool = Pool({}, pool.valid)
  begin = time.perf_counter()
  compiled = program.lower(key, features, pool).compile()
  compiled_at = time.perf_counter()
  columns = jax.block_until_ready(compiled(key, features, pool))
  return Fitted(columns, time.perf_counter() - compiled_at, compiled_at - begin)
