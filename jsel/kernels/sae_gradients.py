"""The loss of a TopK sparse autoencoder on a batch, and its gradients, in two formulations."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jsel import native
from jsel.kernels import precision as products
from jsel.kernels.precision import Precision
from jsel.kernels.row_topk import row_top_k

TILE = 256  # rows

Weights = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # of an SAE, those that are trained


class Descent(NamedTuple):
  """What one batch says of the weights."""

  loss: jax.Array  # [] float32
  error: jax.Array  # [b, d] float32, of the reconstruction; 0 for rows without weight
  active: jax.Array  # [latents] bool, which latents are above 0 in some row
  gradients: Weights  # of the loss; that of a decoder row without its part along the row


def descend(
  weights: Weights, target: jax.Array, row_weight: jax.Array, k: int, precision: Precision
) -> Descent:
  r"""The loss :math:`\sum_i w_i \, \mathrm{mean}(x_i - \hat x_i)^2` and its gradients.

  Args:
    weights: encoder, encoder bias, decoder, bias.
    target: ``float32[b, d]`` rows as the encoder sees them.
    row_weight: ``float32[b]``; a row of weight 0 activates nothing.
    k: latents a row.
    precision: of the products with matrices.

  Example:
    >>> eye, zero = jnp.eye(2), jnp.zeros(2)
    >>> x = jnp.array([[1.0, 0.5]])
    >>> found = descend((eye, zero, eye, zero), x, jnp.ones(1), 1, "float32")
    >>> found.loss.item(), found.error.tolist(), found.active.tolist()
    (0.125, [[0.0, 0.5]], [True, False])
  """
  # A CPU reads k rows of the weights for every row of the batch, which a matrix unit cannot.
  return lax.platform_dependent(
    weights,
    target,
    row_weight,
    cpu=functools.partial(sparse, k=k, precision=precision),
    default=functools.partial(dense, k=k, precision=precision),
  )


def sparse(
  weights: Weights, target: jax.Array, row_weight: jax.Array, *, k: int, precision: Precision
) -> Descent:
  """`descend` by gathers and scatters of the weights of the active latents, one at a time."""
  encoder, _, decoder, bias = weights
  centred, code, index = _codes(weights, target, row_weight, k, precision)
  output = native.on_cpu("sae_decode", _decode_at_once, _decode, code, index, decoder)
  error, loss, slope = _loss(target, output + bias[None], row_weight)
  arrays = code, index, slope, centred, decoder
  *found, uses = native.on_cpu("sae_gradients", _gradients_at_once, _gradients, *arrays)
  return Descent(loss, error, uses > 0, _with_bias((*found, bias), slope, encoder))


# Gradients of encoder, encoder bias and decoder, and in how many rows each latent is above 0.
Found = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _decode(code: jax.Array, index: jax.Array, decoder: jax.Array) -> jax.Array:
  """``[b, d]``: what the codes stand for, less the bias."""

  def add_latent(j: jax.Array, output: jax.Array) -> jax.Array:
    return output + _column(code, j)[:, None] * decoder[_column(index, j)]

  start = jnp.zeros((code.shape[0], decoder.shape[1]), decoder.dtype)
  return lax.fori_loop(0, code.shape[1], add_latent, start)


def _decode_at_once(code: jax.Array, index: jax.Array, decoder: jax.Array) -> jax.Array:
  shape = jax.ShapeDtypeStruct((code.shape[0], decoder.shape[1]), jnp.float32)
  return native.call("sae_decode", shape, code, index, decoder)


def _gradients(
  code: jax.Array, index: jax.Array, slope: jax.Array, centred: jax.Array, decoder: jax.Array
) -> Found:
  def add_gradient(j: jax.Array, total: Found) -> Found:
    latent, value = _column(index, j), _column(code, j)
    code_slope = jnp.sum(slope * decoder[latent], axis=1)
    code_slope = jnp.where(value > 0, code_slope, 0)
    return (
      total[0].at[latent].add(code_slope[:, None] * centred),
      total[1].at[latent].add(code_slope),
      total[2].at[latent].add(value[:, None] * slope),
      total[3].at[latent].add((value > 0).astype(jnp.int32)),
    )

  none = jnp.zeros(decoder.shape[0], jnp.int32)
  start = jnp.zeros_like(decoder), jnp.zeros_like(decoder[:, 0]), jnp.zeros_like(decoder), none
  found = lax.fori_loop(0, code.shape[1], add_gradient, start)
  return found[0], found[1], _across(found[2], decoder), found[3]


def _gradients_at_once(
  code: jax.Array, index: jax.Array, slope: jax.Array, centred: jax.Array, decoder: jax.Array
) -> Found:
  matrix = jax.ShapeDtypeStruct(decoder.shape, jnp.float32)
  vector = lambda dtype: jax.ShapeDtypeStruct(decoder.shape[:1], dtype)
  shapes = matrix, vector(jnp.float32), matrix, vector(jnp.int32)
  of_encoder, of_bias, of_decoder, uses = native.call(
    "sae_gradients", shapes, code, index, slope, centred, decoder
  )
  return of_encoder, of_bias, of_decoder, uses


def _across(gradient: jax.Array, decoder: jax.Array) -> jax.Array:
  """What of a decoder's gradient is not along its rows, which are of unit length."""
  return gradient - jnp.sum(gradient * decoder, axis=1, keepdims=True) * decoder


def _column(x: jax.Array, j: jax.Array) -> jax.Array:
  return lax.dynamic_index_in_dim(x, j, axis=1, keepdims=False)


def dense(
  weights: Weights, target: jax.Array, row_weight: jax.Array, *, k: int, precision: Precision
) -> Descent:
  """`descend` by products with whole matrices, of codes that are mostly 0."""
  encoder, _, decoder, bias = weights
  centred, code, index = _codes(weights, target, row_weight, k, precision)
  ids = lax.broadcasted_iota(jnp.int32, (target.shape[0], encoder.shape[0]), 1)
  every = jnp.zeros(ids.shape, jnp.float32)
  for j in range(k):
    every = jnp.where(ids == index[:, j, None], code[:, j, None], every)
  product = functools.partial(products.matmul, precision=precision)
  error, loss, slope = _loss(target, product(every, decoder) + bias[None], row_weight)
  code_slope = jnp.where(every > 0, product(slope, decoder, transpose_b=True), 0)
  gradients = (
    product(code_slope.T, centred),
    jnp.sum(code_slope, axis=0),
    _across(product(every.T, slope), decoder),
    bias,
  )
  active = jnp.any(every > 0, axis=0)
  return Descent(loss, error, active, _with_bias(gradients, slope, encoder))


def _codes(
  weights: Weights, target: jax.Array, row_weight: jax.Array, k: int, precision: Precision
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Rows less the bias, and their ``[b, k]`` largest latents: values, 0 where none, and ids."""
  encoder, encoder_bias, _, bias = weights
  centred = target - bias[None]
  by_tiles = functools.partial(_highest, k=k, precision=precision)
  arrays = centred, encoder, encoder_bias
  if precision == "bfloat16_3x":
    code, index = by_tiles(*arrays)
  else:
    at_once = functools.partial(_highest_at_once, k=k, narrow=precision == "bfloat16")
    code, index = native.on_cpu("sae_codes", at_once, by_tiles, *arrays)
  return centred, jnp.where((row_weight > 0)[:, None], jax.nn.relu(code), 0), index


def _highest(
  centred: jax.Array,
  encoder: jax.Array,
  encoder_bias: jax.Array,
  *,
  k: int,
  precision: Precision,
) -> tuple[jax.Array, jax.Array]:
  def of_row(row: jax.Array) -> tuple[jax.Array, jax.Array]:
    latents = products.matmul(row[None], encoder, precision=precision, transpose_b=True)
    code, index = row_top_k(latents + encoder_bias[None], k)
    return code[0], index[0]

  # All latents of a tile stay in the cache between the product and the search.
  code, index = lax.map(of_row, centred, batch_size=TILE)
  return code, index


def _highest_at_once(
  centred: jax.Array, encoder: jax.Array, encoder_bias: jax.Array, *, k: int, narrow: bool
) -> tuple[jax.Array, jax.Array]:
  shape = centred.shape[0], k
  shapes = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape, jnp.int32)
  code, index = native.call("sae_codes", shapes, centred, encoder, encoder_bias, narrow=narrow)
  return code, index


def _loss(
  target: jax.Array, output: jax.Array, row_weight: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The error, the loss, and the loss's slope by the output."""
  error = jnp.where((row_weight > 0)[:, None], target - output, 0)
  loss = jnp.sum(row_weight * jnp.mean(error**2, axis=1))
  return error, loss, error * (-2 / target.shape[1] * row_weight)[:, None]


def _with_bias(gradients: Weights, slope: jax.Array, encoder: jax.Array) -> Weights:
  """The bias is put back after decoding, and taken off before encoding."""
  taken_off = jnp.dot(gradients[1], encoder, precision=lax.Precision.HIGHEST)
  return (*gradients[:3], jnp.sum(slope, axis=0) - taken_off)
