"""What a language model makes of the tokens of a text."""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jsel.models.llama import Llama

LOGIT_ROWS = 512  # tokens whose logits are held at a time: 100 MB of 49,152 words


def token_loss(
  model: Llama, tokens: jax.Array, mask: jax.Array, *, logit_rows: int = LOGIT_ROWS
) -> jax.Array:
  r"""Minus the logarithm of each token's probability after those before it, in nats.

  .. math:: \ell_t = -\log p(x_t \mid x_1, \dots, x_{t-1})

  Logits are made of ``logit_rows`` tokens at a time, and again in a backward pass.

  Args:
    model: the decoder.
    tokens: ``[b, l]`` int32 ids.
    mask: ``[b, l]`` bool, False for padding on either side.
    logit_rows: tokens whose logits are held, static.

  Returns:
    ``[b, l]`` float32; 0 for a text's first token, which nothing is before, and for padding.

  >>> from flax import nnx
  >>> from jsel.models.llama import LlamaConfig
  >>> config = LlamaConfig(100, 16, 2, 4, 2, 4, 32, 64, 1e-5, (1.0, 0.01), tied=True)
  >>> tokens = jnp.array([[5, 6, 7, 0]], jnp.int32)
  >>> (token_loss(Llama(config, rngs=nnx.Rngs(0)), tokens, tokens > 0) > 0).tolist()
  [[False, True, True, False]]
  """
  b, length = tokens.shape
  place = jnp.where(mask, jnp.arange(length, dtype=jnp.int32)[None], -1)
  # The text's token before each, whatever padding is between.
  before = jnp.pad(lax.cummax(place, axis=1)[:, :-1], [(0, 0), (1, 0)], constant_values=-1)
  states = model(tokens, mask)[0]
  states = jnp.take_along_axis(states, jnp.maximum(before, 0)[..., None], axis=1)
  columns = min(max(1, logit_rows // b), length)
  parts = -(-length // columns)

  def cut(x: jax.Array) -> jax.Array:
    pad = [(0, 0), (0, parts * columns - length)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, pad).reshape(b, parts, columns, *x.shape[2:]).swapaxes(0, 1)

  @jax.checkpoint
  def of_part(part: tuple[jax.Array, jax.Array]) -> jax.Array:
    states, tokens = part
    return optax.softmax_cross_entropy_with_integer_labels(model.logits(states), tokens)

  loss = lax.map(of_part, (cut(states), cut(tokens)))
  loss = loss.swapaxes(0, 1).reshape(b, -1)[:, :length]
  return jnp.where(mask & (before >= 0), loss, 0)
