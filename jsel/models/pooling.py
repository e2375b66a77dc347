"""From hidden states of tokens to one vector a text."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

Pooling = Literal["mean", "position_weighted", "last_token"]


def pool(hidden: jax.Array, mask: jax.Array, *, pooling: Pooling) -> jax.Array:
  r"""One vector for each text from those of its tokens, wherever the padding is.

  .. math:: e = \sum_t w_t h_t / \sum_t w_t

  with w of 1 ("mean"), of the token's number in its text, from 1 ("position_weighted", SGPT, the
  pooling of RDS+ and CRDS), or of 1 at the last token alone ("last_token").

  Args:
    hidden: ``[..., b, l, d]``.
    mask: ``[b, l]`` bool, False for padding, on either side or between.
    pooling: how.

  Returns:
    ``[..., b, d]`` float32; 0 for a text without tokens. What is in padding never counts, not even
    a NaN.

  Raises:
    ValueError: for another pooling, or shapes that do not fit.

  >>> hidden = jnp.array([[[1.0], [4.0], [9.0]]])
  >>> mask = jnp.array([[True, True, False]])
  >>> [pool(hidden, mask, pooling=how).item() for how in get_args(Pooling)]
  [2.5, 3.0, 4.0]

  Source: Muennighoff, *SGPT: GPT Sentence Embeddings for Semantic Search*, 2022, arXiv 2202.08904.
  """
  if pooling not in get_args(Pooling):
    raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r}")
  if hidden.shape[-3:-1] != mask.shape:
    raise ValueError(f"hidden has shape {hidden.shape}, mask {mask.shape}: expected [b, l] of it")
  number = jnp.cumsum(mask.astype(jnp.int32), axis=1)
  weight = {
    "mean": mask.astype(jnp.float32),
    "position_weighted": jnp.where(mask, number, 0).astype(jnp.float32),
    "last_token": (mask & (number == number[:, -1:])).astype(jnp.float32),
  }[pooling]
  weight = weight / jnp.maximum(weight.sum(1, keepdims=True), 1)
  hidden = jnp.where(mask[..., None], hidden.astype(jnp.float32), jnp.float32(0))
  return jnp.einsum("...bld,bl->...bd", hidden, weight)


def normalized(x: jax.Array) -> jax.Array:
  """Rows of length 1; a row of zeros stays.

  >>> normalized(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
  [[0.6..., 0.8...], [0.0, 0.0]]
  """
  # Scaled first, so that squares neither overflow nor vanish.
  largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
  x = x / jnp.where(largest > 0, largest, 1)
  length = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))
  return x / jnp.where(length > 0, length, 1)
