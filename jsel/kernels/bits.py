"""Bits: of numbers as integers, and of masks in words of 32."""

import jax
import jax.numpy as jnp

WORD = 32


def to_integers(x: jax.Array) -> jax.Array:
  """The bits of ``x`` as unsigned integers of its width, which nothing rounds or quiets.

  >>> to_integers(jnp.array([-0.0, 1.0])).tolist()
  [2147483648, 1065353216]
  """
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint8)
  return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))


def from_integers(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """What `to_integers` was given, of ``dtype``.

  >>> from_integers(jnp.array([1065353216], jnp.uint32), jnp.float32).tolist()
  [1.0]
  """
  return x.astype(jnp.bool_) if dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, dtype)


def pack(mask: jax.Array) -> jax.Array:
  """``bool[..., 32 m]`` as ``uint32[..., m]``, the lowest bit first.

  >>> pack(jnp.arange(64) < 33).tolist()
  [4294967295, 1]
  """
  place = jnp.arange(WORD, dtype=jnp.uint32)
  place = place.reshape(*(1,) * mask.ndim, WORD)
  bits = mask.reshape(*mask.shape[:-1], -1, WORD).astype(jnp.uint32)
  return (bits << place).sum(-1, dtype=jnp.uint32)


def count(words: jax.Array) -> jax.Array:
  """How many bits of each word are set, as int32.

  >>> count(jnp.array([0, 7], jnp.uint32)).tolist()
  [0, 3]
  """
  return jax.lax.population_count(words).astype(jnp.int32)


def nth_set(words: jax.Array, n: jax.Array) -> jax.Array:
  """The place of the n-th set bit (from 0, lowest first) of each word; int32 as ``n`` is.

  >>> nth_set(jnp.array([6, 6], jnp.uint32), jnp.array([0, 1], jnp.int32)).tolist()
  [1, 2]
  """
  place = jnp.zeros_like(n)
  for width in (16, 8, 4, 2, 1):
    low = count(words & ((1 << width) - 1))
    beyond = n >= low
    n = jnp.where(beyond, n - low, n)
    words = jnp.where(beyond, words >> width, words)
    place = jnp.where(beyond, place + width, place)
  return place


def places(words: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
  """Where the first ``size`` set bits of ``uint32[m]`` are, in order, and how many are set.

  Past those that are set, places are of no meaning.

  >>> found, count = places(pack(jnp.arange(64) % 30 == 3), 3)
  >>> found[:2].tolist(), count.item()
  ([3, 33], 3)
  """
  lengths = count(words)
  ends = jnp.cumsum(lengths)
  slot = jnp.arange(size, dtype=jnp.int32)
  # The word of a slot: how many words end at or before it.
  word = jnp.cumsum(jnp.zeros(size, jnp.int32).at[ends].add(1, mode="drop"))
  word = jnp.minimum(word, words.shape[0] - 1)
  return word * WORD + nth_set(words[word], slot - (ends[word] - lengths[word])), ends[-1]
