"""Fitting a selector on the features of the pool."""

import time
from collections.abc import Callable
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


def make_fit(selector: Selector, mesh: Mesh) -> Callable[[jax.Array, jax.Array, Pool], Columns]:
  """Compiles ``fit(key, features, pool) -> columns`` of a selector that fits something."""
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

  return program


def fit_selector(
  selector: Selector, key: jax.Array, features: jax.Array, pool: Pool, mesh: Mesh
) -> Fitted:
  """Fits ``selector`` on ``features`` ``[n, ...]``, split by rows as the pool is; waits for it."""
  pool = Pool({}, pool.valid)
  begin = time.perf_counter()
  compiled = make_fit(selector, mesh).lower(key, features, pool).compile()  # pyrefly: ignore
  compiled_at = time.perf_counter()
  columns = jax.block_until_ready(compiled(key, features, pool))
  return Fitted(columns, time.perf_counter() - compiled_at, compiled_at - begin)
