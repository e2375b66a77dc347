"""What every model returns, and what it checks before."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Outputs(NamedTuple):
  """Result of a model's call."""

  logits: jax.Array  # [b, classes] float32
  features: jax.Array  # [b, f] float32, the input of the last linear layer


def compute_dtype(name: str) -> jnp.dtype:
  """The dtype that products are computed in.

  >>> compute_dtype("bfloat16")
  dtype(bfloat16)
  """
  if name not in DTYPES:
    raise ValueError(f"a model computes in {' or '.join(DTYPES)}, got dtype={name!r}")
  return jnp.dtype(DTYPES[name])


def check_input(x: jax.Array, input_shape: tuple[int, ...]) -> None:
  """Raises if the rows of ``x`` are not those that the model was made for."""
  _check_shape(x, input_shape)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(f"x has dtype {x.dtype}: give float rows, images divided by their scale")


def check_tokens(x: jax.Array, input_shape: tuple[int, ...]) -> None:
  """Raises if the rows of ``x`` are not the texts that the model was made for."""
  _check_shape(x, input_shape)
  if not jnp.issubdtype(x.dtype, jnp.integer):
    raise ValueError(f"x has dtype {x.dtype}: give token ids in int32, -1 for padding after them")


def _check_shape(x: jax.Array, input_shape: tuple[int, ...]) -> None:
  if x.shape[1:] != input_shape:
    raise ValueError(
      f"the model was made for rows of shape {input_shape}, got x of shape {x.shape}: "
      "make it with the input_shape of the data"
    )
