"""Sparse factors of the examples: a TopK autoencoder on whitened features."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jsel.kernels import sae, whitening
from jsel.selectors.base import Pool

SHARE_BITS = 12  # a row's shares are integers that sum to 2**12


class Factors(NamedTuple):
  """Which factors an example consists of, and how common each factor is."""

  index: jax.Array  # [n, k] int32 factors of each example
  share: jax.Array  # [n, k] int32, >= 0; a row sums to 2**12, or to 0 if no factor is active
  count: jax.Array  # [latents] int32, examples in which the factor is active


def empty_factors(size: int, *, latents: int, active: int) -> Factors:
  """The factors of a pool of ``size`` rows (with padding) before any fit: none is active."""
  return Factors(
    jnp.zeros((size, active), jnp.int32),
    jnp.zeros((size, active), jnp.int32),
    jnp.zeros(latents, jnp.int32),
  )


def fit_factors(
  key: jax.Array,
  features: jax.Array,
  pool: Pool,
  *,
  optimizer: Any,
  rank: int,
  latents: int,
  active: int,
  steps: int,
  batch_size: int,
  axis_name: str | tuple[str, ...] | None,
) -> Factors:
  """Whitens ``features``, fits the autoencoder, and encodes every row.

  Shares are integers, so that whatever is summed over them later is exact in
  any order and on any number of devices.

  Args:
    key: typed PRNG key.
    features: ``[n, d]``, any real dtype.
    pool: the pool, for ``valid``.
    optimizer: an ``(init, update)`` pair as Optax has.
    rank: whitened dimensions.
    latents: factors.
    active: factors an example has at the most.
    steps: training steps of the autoencoder.
    batch_size: rows in each of them.
    axis_name: mesh axis (or axes) that rows are split over.

  Raises:
    ValueError: if ``rank``, ``latents`` or ``active`` does not fit the features.
  """
  white = whitening.fit(features, rank=rank, valid=pool.valid, axis_name=axis_name)
  reduced = whitening.apply(white, features, valid=pool.valid, axis_name=axis_name)
  fitted = sae.fit(
    key,
    reduced,
    optimizer,
    latents=latents,
    k=active,
    steps=steps,
    batch_size=batch_size,
    valid=pool.valid,
    axis_name=axis_name,
  )
  codes = sae.encode(fitted.sae, reduced, k=active, valid=pool.valid, axis_name=axis_name)
  counts = sae.factor_counts(codes, latents, valid=pool.valid, axis_name=axis_name)
  return Factors(codes.index, shares(codes.value), counts)


def shares(value: jax.Array) -> jax.Array:
  """Integer shares of each row's codes that sum to 2**12; what rounding leaves goes to the largest.

  >>> shares(jnp.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
  Array([[1366, 1365, 1365],
         [   0,    0,    0]], dtype=int32)
  """
  # Added one after the other: the order of a reduction would depend on the shape.
  total = sum(value[:, j] for j in range(value.shape[1]))
  scaled = value / jnp.where(total > 0, total, 1)[:, None] * 2**SHARE_BITS
  share = jnp.floor(scaled).astype(jnp.int32)
  missing = jnp.where(total > 0, 2**SHARE_BITS - share.sum(axis=1), 0)
  largest = jnp.argmax(value, axis=1)[:, None] == jnp.arange(value.shape[1])[None, :]
  return share + jnp.where(largest, missing[:, None], 0)


def look_up(index: jax.Array, share: jax.Array, table: jax.Array) -> jax.Array:
  """The sum over a row's factors of its share times the entry of ``table``; all are integers.

  >>> look_up(jnp.array([[0, 1]]), jnp.array([[3, 4]]), jnp.array([10, 20])).tolist()
  [110]
  """
  return jax.lax.platform_dependent(index, share, table, cpu=at_once, default=in_turn)


def at_once(index: jax.Array, share: jax.Array, table: jax.Array) -> jax.Array:
  """`look_up` in one expression, of which the CPU makes one loop."""
  return jnp.sum(share * table[index], axis=1)


def in_turn(index: jax.Array, share: jax.Array, table: jax.Array) -> jax.Array:
  """`look_up` a factor at a time: a TPU pads [n, 8] of entries to 16 times their bytes."""
  return sum(share[:, j] * table[index[:, j]] for j in range(index.shape[1]))  # pyrefly: ignore
