"""What a TopK sparse autoencoder computes for a tile of rows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

PRECISION = jax.lax.Precision.HIGHEST  # the choice of latents flips with less than float32


class SAE(NamedTuple):
  """A TopK sparse autoencoder, complete."""

  encoder: jax.Array  # [latents, d] float32
  encoder_bias: jax.Array  # [latents] float32
  decoder: jax.Array  # [latents, d] float32, rows of unit length
  bias: jax.Array  # [d] float32, taken off before encoding and put back after decoding
  normalize: jax.Array  # [] bool, whether a row is brought to mean 0 and variance 1 first


class Codes(NamedTuple):
  """The latents that rows are made of."""

  index: jax.Array  # [n, k] int32, distinct in a row, largest value first
  value: jax.Array  # [n, k] float32 >= 0; 0 where fewer than k are active


def to_target(normalize: jax.Array, x: jax.Array) -> jax.Array:
  """Rows as the encoder sees them: float32, normalised if so; zeros where not finite."""
  x = x.astype(jnp.float32)
  x = jnp.where(jnp.isfinite(x).all(axis=1, keepdims=True), x, 0)
  centred = x - x.mean(axis=1, keepdims=True)
  std = jnp.sqrt((centred**2).sum(axis=1, keepdims=True) / max(x.shape[1] - 1, 1))
  # The rounded mean of a constant row is not its value, and the rest would be blown up.
  constant = x.max(axis=1, keepdims=True) == x.min(axis=1, keepdims=True)
  return jnp.where(normalize, jnp.where(constant, 0, centred / (std + 1e-5)), x)


def reconstruct(sae: SAE, codes: Codes) -> jax.Array:
  """Rows ``[b, d]`` that codes stand for."""
  rows_of = sae.decoder.at[codes.index].get(mode="clip")
  value = codes.value.astype(jnp.float32)
  return jnp.einsum("nk,nkd->nd", value, rows_of, precision=PRECISION) + sae.bias[None]


def as_float32(sae: SAE) -> SAE:
  """``sae`` in float32, in whatever floats it was kept."""
  fields = {name: leaf.astype(jnp.float32) for name, leaf in sae._asdict().items()}
  return SAE(**(fields | {"normalize": sae.normalize}))


def check_codes_per_row(k: int, latents: int) -> None:
  """Raises a ValueError unless a row can have ``k`` of ``latents`` factors."""
  if not 1 <= k <= latents:
    raise ValueError(f"k = {k} of {latents} latents: take 1 <= k <= latents")
