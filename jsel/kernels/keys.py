"""Scores as int32 keys, which are compared alike everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LOWEST = np.int32(np.iinfo(np.int32).min)  # the key of rows that never win


def to_keys(scores: jax.Array, valid: jax.Array | None) -> jax.Array:
  """int32 keys in the order of the scores; NaN and invalid rows are `LOWEST`.

  All in integers: float comparisons flush subnormals on some backends.

  >>> to_keys(jnp.array([0.0, -0.0, jnp.nan]), None).tolist()
  [0, 0, -2147483648]
  """
  if scores.dtype == jnp.int32:
    return scores if valid is None else jnp.where(valid, scores, LOWEST)
  kind = jnp.int32 if scores.dtype == jnp.float32 else jnp.int16
  bits = lax.bitcast_convert_type(scores, kind).astype(jnp.int32)
  magnitude = bits & np.iinfo(kind).max
  infinity = int(np.asarray(jnp.inf, scores.dtype).view(np.dtype(kind)))
  eligible = magnitude <= infinity
  if valid is not None:
    eligible &= valid
  return jnp.where(eligible, jnp.where(bits < 0, -magnitude, magnitude), LOWEST)


def from_keys(keys: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """The scores of ``keys``; `LOWEST` becomes -inf, or the least int32."""
  if dtype == jnp.int32:
    return keys
  kind = jnp.int32 if dtype == jnp.float32 else jnp.int16
  magnitude = jnp.abs(jnp.where(keys == LOWEST, 0, keys))
  bits = jnp.where(keys < 0, magnitude | np.iinfo(kind).min, magnitude).astype(kind)
  return jnp.where(keys == LOWEST, -jnp.inf, lax.bitcast_convert_type(bits, dtype))
