"""Rows of a pool in memory, for methods that need all of them at every pick."""

from collections.abc import Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jsel.selectors.parts import Take


class Held(NamedTuple):
  """Result of `hold`, padded so that a multiple of 512 rows compiles few programs."""

  rows: np.ndarray  # [m] int64, where they are in the pool
  x: jax.Array  # [m + padding, d] float32
  valid: jax.Array  # [m + padding] bool


def hold(rows: np.ndarray) -> Generator[Take, Any, Held]:
  """Reads ``rows`` of the pool, ascending or not, in one walk."""
  x = yield Take(rows)
  extra = -len(rows) % 512
  valid = jnp.arange(len(rows) + extra) < len(rows)
  return Held(rows, jnp.asarray(np.pad(x, [(0, extra), (0, 0)])), valid)


def padded(column: np.ndarray, held: Held) -> jax.Array:
  """A column of the pool as float32 at the held rows, 0 in the padding."""
  values = np.zeros(held.x.shape[0], np.float32)
  values[: len(held.rows)] = column[held.rows]
  return jnp.asarray(values)
