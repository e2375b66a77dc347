"""Codes of a TopK sparse autoencoder: encoding, decoding, counting, measuring."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jsel.kernels.precision import matmul
from jsel.kernels.reduce import fixed_tree_map_sum
from jsel.kernels.row_topk import row_top_k
from jsel.kernels.rows import AxisName, check_valid, rows
from jsel.kernels.sae_model import (
  SAE,
  Codes,
  as_float32,
  check_codes_per_row,
  reconstruct,
  to_target,
)
from jsel.kernels.tiles import map_tiles, pad_to_leaves


@rows("x", "valid", out=True)
def encode(
  sae: SAE,
  x: jax.Array,
  *,
  k: int,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> Codes:
  r"""The ``k`` largest latents of every row, where positive.

  .. math:: z = \mathrm{ReLU}(\mathrm{top}_k(W_e (x' - b) + b_e))

  with :math:`x' = (x - \mathrm{mean}) / (\mathrm{std} + 10^{-5})` over the row
  where ``sae.normalize``. Rows go tile by tile, so that no ``[n, latents]``
  matrix exists.

  Sharding: rows may be split over ``axis_name``; nothing is exchanged. Tiles
  are cut from 512 leaves of n / 512 rows, so the codes are bitwise the same on
  1, 2, 4, ... 512 devices. Other n are cut into fewer and larger tiles.

  Args:
    sae: the autoencoder.
    x: ``[n, d]`` rows of any real dtype, cast in the tile. With ``axis_name``
      the global n is a multiple of 512; without, any n.
    k: latents a row.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over, inside
      ``jax.shard_map`` or ``jax.pmap``; None on one device.

  Returns:
    A `Codes`. Of equal latents the lowest index goes first. Padded rows have
    index 0 and value 0; so have, in value, rows with a NaN, an infinity or a
    squared length beyond float32.

  Raises:
    ValueError: if shapes do not fit each other, or k is not in [1, latents].

  Example:
    >>> eye = jnp.eye(3)
    >>> sae = SAE(eye, jnp.zeros(3), eye, jnp.zeros(3), jnp.array(False))
    >>> codes = encode(sae, jnp.array([[1.0, -1.0, 2.0]]), k=2)
    >>> codes.index.tolist(), codes.value.tolist()
    ([[2, 0]], [[2.0, 1.0]])

  References:
    Makhzani and Frey, *k-sparse autoencoders*, 2013, arXiv 1312.5663.
    Gao et al., *Scaling and evaluating sparse autoencoders*, 2024, arXiv 2406.04093.
  """
  valid, sae = _check(sae, x, valid), as_float32(sae)
  check_codes_per_row(k, sae.encoder.shape[0])
  return _encode(sae, jnp.asarray(x), valid, k=int(k), axis_name=axis_name)


@functools.partial(jax.jit, static_argnames=("k", "axis_name"))
def _encode(sae, x, valid, *, k, axis_name):
  def encode_tile(tile: tuple[jax.Array, jax.Array]) -> Codes:
    given, counts = tile
    target = to_target(sae.normalize, given)
    every = matmul(target - sae.bias[None], sae.encoder, transpose_b=True)
    every = every + sae.encoder_bias[None]
    value, index = row_top_k(jnp.where(jnp.isnan(every), -jnp.inf, every), k)
    finite = jnp.isfinite(jnp.sum(given.astype(jnp.float32) ** 2, axis=1))
    value = jnp.where((counts & finite)[:, None], jax.nn.relu(value), 0)
    return Codes(jnp.where(counts[:, None], index, 0), value)

  width = sae.encoder.shape[0] + x.shape[1]
  return map_tiles(encode_tile, (x, valid), width=width, axis_name=axis_name)


@rows("codes", out=True)
def decode(sae: SAE, codes: Codes, *, axis_name: AxisName = None) -> jax.Array:
  """Reconstructed rows, the weighted sum of ``k`` decoder rows each, plus the bias.

  Sharding: rows may be split over ``axis_name``; nothing is exchanged, and
  rows are bitwise the same on any device count.

  Args:
    sae: the autoencoder.
    codes: of `encode`, ``[n, k]``.
    axis_name: mesh axis (or axes) that the rows are split over, inside
      ``jax.shard_map`` or ``jax.pmap``; None on one device.

  Returns:
    ``float32[n, d]``, as the encoder sees rows: normalised if ``sae.normalize``.

  Raises:
    ValueError: if the fields of ``codes`` differ in shape.

  Example:
    >>> eye = jnp.eye(2)
    >>> sae = SAE(eye, jnp.zeros(2), eye, jnp.ones(2), jnp.array(False))
    >>> decode(sae, Codes(jnp.array([[1]]), jnp.array([[0.5]]))).tolist()
    [[1.0, 1.5]]
  """
  _check_codes(codes)
  return _decode(as_float32(sae), codes, axis_name=axis_name)


@functools.partial(jax.jit, static_argnames="axis_name")
def _decode(sae, codes, *, axis_name):
  width = codes.index.shape[1] * sae.decoder.shape[1]
  return map_tiles(lambda tile: reconstruct(sae, tile), codes, width=width, axis_name=axis_name)


@rows("codes", "valid", out=False)
def factor_counts(
  codes: Codes,
  latents: int,
  *,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> jax.Array:
  """In how many rows each latent is active, that is has a value above 0.

  Sharding: rows may be split over ``axis_name``; costs a sum of ``[latents]``
  integers over it. Exact, hence the same on any device count.

  Args:
    codes: of `encode`, ``[n, k]``; the indices of a row are distinct.
    latents: number of latents.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over, inside
      ``jax.shard_map`` or ``jax.pmap``; None on one device.

  Returns:
    ``int32[latents]``. A NaN value does not count, nor on CPU one below 1.2e-38,
    which is 0 there.

  Raises:
    ValueError: if shapes do not fit each other.

  Example:
    >>> codes = Codes(jnp.array([[0, 2], [2, 1]]), jnp.array([[1.0, 0.5], [3.0, 0.0]]))
    >>> factor_counts(codes, 3).tolist()
    [1, 0, 2]
  """
  _check_codes(codes)
  # NumPy's bfloat16 warns of a NaN that is compared, and its float32 has subnormal numbers.
  active = jnp.asarray(codes.value).astype(jnp.float32) > 0
  check_valid(valid, active.shape[0], "codes have")
  if valid is not None:
    active = active & valid[:, None]
  counts = jnp.zeros(latents, jnp.int32).at[codes.index].add(active.astype(jnp.int32))
  return counts if axis_name is None else jax.lax.psum(counts, axis_name)


@rows("x", "codes", "valid", out=False)
def unexplained(
  sae: SAE,
  x: jax.Array,
  codes: Codes,
  *,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> jax.Array:
  r"""Fraction of the variance that the reconstruction leaves unexplained.

  .. math:: \sum_i |x'_i - \hat x_i|^2 / \sum_i |x'_i - \bar x'|^2

  with rows as the encoder sees them, normalised if ``sae.normalize``.

  Sharding: rows may be split over ``axis_name``; costs a sum of ``[d]`` and two
  of scalars over it, in a fixed tree: the same on any device count.

  Args:
    sae: the autoencoder.
    x: ``[n, d]`` rows of any real dtype.
    codes: of `encode` on the same rows.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over, inside
      ``jax.shard_map`` or ``jax.pmap``; None on one device.

  Returns:
    ``float32[]``: 0 is perfect, 1 no better than the mean. Where rows do not
    vary, 0 or infinity. Rows with a NaN or an infinity count as zeros; of codes
    with one it is no number.

  Raises:
    ValueError: if shapes do not fit each other.

  Example:
    >>> eye = jnp.eye(2)
    >>> sae = SAE(eye, jnp.zeros(2), eye, jnp.zeros(2), jnp.array(False))
    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> unexplained(sae, x, encode(sae, x, k=1)).item()
    0.0
  """
  valid, sae = _check(sae, x, valid), as_float32(sae)
  _check_codes(codes)
  return _unexplained(sae, jnp.asarray(x), codes, valid, axis_name=axis_name)


@functools.partial(jax.jit, static_argnames="axis_name")
def _unexplained(sae, x, codes, valid, *, axis_name):
  mean = target_mean(sae.normalize, x, valid=valid, axis_name=axis_name)

  def squares(leaf: Any, _: jax.Array) -> tuple[jax.Array, jax.Array]:
    given, codes, counts = leaf
    target = to_target(sae.normalize, given)
    total = lambda parts: jnp.sum(jnp.where(counts[:, None], parts**2, 0))
    return total(target - reconstruct(sae, codes)), total(target - mean[None])

  arrays = pad_to_leaves((x, codes, valid), axis_name)
  missed, variance = fixed_tree_map_sum(squares, arrays, axis_name=axis_name)
  without_variance = jnp.where(missed == 0, 0, missed * jnp.float32(jnp.inf))
  return jnp.where(variance > 0, missed / jnp.where(variance > 0, variance, 1), without_variance)


def target_mean(
  normalize: jax.Array, x: jax.Array, *, valid: jax.Array, axis_name: AxisName
) -> jax.Array:
  """Mean ``[d]`` of the rows that count, as the encoder sees them."""

  def leaf_sums(leaf: Any, _: jax.Array) -> tuple[jax.Array, jax.Array]:
    given, counts = leaf
    return jnp.sum(jnp.where(counts[:, None], to_target(normalize, given), 0), axis=0), jnp.sum(
      counts, dtype=jnp.float32
    )

  arrays = pad_to_leaves((x, valid), axis_name)
  total, count = fixed_tree_map_sum(leaf_sums, arrays, axis_name=axis_name)
  return total / jnp.maximum(count, 1)


def _check(sae: SAE, x: jax.Array, valid: jax.Array | None) -> jax.Array:
  latents, width = sae.encoder.shape
  if x.ndim != 2 or x.shape[1] != width or not width:
    raise ValueError(f"x must be [n, {width}] for this autoencoder, got shape {x.shape}")
  if sae.decoder.shape != (latents, width):
    raise ValueError(f"encoder is {sae.encoder.shape}, decoder {sae.decoder.shape}: same shape")
  check_valid(valid, x.shape[0])
  if valid is None:
    return jnp.ones(x.shape[0], bool)
  return jnp.asarray(valid)


def _check_codes(codes: Codes) -> None:
  if codes.index.ndim != 2 or codes.index.shape != codes.value.shape:
    raise ValueError(
      f"codes must be index and value [n, k], got {codes.index.shape} and {codes.value.shape}"
    )
