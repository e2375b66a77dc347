"""What a language model says after a text, the most probable token at a time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jsel.models.llama import Cache, Llama


class Generated(NamedTuple):
  """Result of `generate`."""

  tokens: jax.Array  # [b, count] int32, 0 where the mask is False
  mask: jax.Array  # [b, count] bool, False from the token on that ends a text


def generate(
  model: Llama, tokens: jax.Array, mask: jax.Array, *, count: int, stop: tuple[int, ...]
) -> Generated:
  """Continues each text greedily, with a cache of keys and values.

  The loop ends when every text has. The texts' keys are read and never copied, those of new tokens
  are written in place.

  Args:
    model: the decoder.
    tokens: ``[b, l]`` int32 ids of the texts.
    mask: ``[b, l]`` bool, False for padding on either side; nothing follows a text without tokens.
    count: tokens at most, static.
    stop: ids that end a text, static.

  Raises:
    ValueError: if ``count`` is below 1 or the model has too few positions.

  Ties go to the lower id.
  """
  b, length = tokens.shape
  config = model.config
  if count < 1 or length + count > config.positions:
    raise ValueError(
      f"count={count} after texts of {length} tokens: the model has {config.positions} positions"
    )
  states, prompt = model.read(tokens, mask)
  # The last token, wherever the padding is.
  last = length - 1 - jnp.argmax(mask[:, ::-1], axis=1)
  state = jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]
  before = mask.sum(1, dtype=jnp.int32)
  shape = (config.layers, b, count, config.groups, config.head_width)
  empty = jnp.zeros(shape, jnp.float32)
  ends = jnp.asarray(stop, jnp.int32)

  def say(step, done, state, said):
    token = jnp.argmax(model.logits(state), axis=-1).astype(jnp.int32)
    done = done | (token[:, None] == ends[None]).any(1)
    column = lambda rows, new: lax.dynamic_update_slice_in_dim(rows, new[:, None], step, axis=1)
    kept = jnp.where(done, jnp.zeros_like(token), token)
    return done, token, Generated(column(said.tokens, kept), column(said.mask, ~done))

  def open_texts(carry):
    step, done, *_ = carry
    return (step < count) & ~done.all()

  def one_token(carry):
    step, done, token, said, own = carry
    state, keys, values = model.read_next(token, before + step - 1, [prompt, own])
    put = lambda cache, new: lax.dynamic_update_slice_in_dim(cache, new, step - 1, axis=2)
    own = Cache(put(own.keys, keys), put(own.values, values), said.mask)
    return step + 1, *say(step, done, state, said), own

  said = Generated(jnp.zeros((b, count), jnp.int32), jnp.zeros((b, count), bool))
  first = say(jnp.int32(0), ~mask.any(1), state, said)
  begin = (jnp.int32(1), *first, Cache(empty, empty, said.mask))
  return lax.while_loop(open_texts, one_token, begin)[3]
