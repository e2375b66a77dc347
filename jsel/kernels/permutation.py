"""A keyed permutation of [0, n): any position of a shuffle in O(1), nothing sorted or stored."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PAIRS = 6  # pairs of rounds of the network
TINY, TINY_PAIRS = 64, 16  # below 64 positions a round draws few bits, so it takes more of them


def permute(key: jax.Array, index: jax.Array, n: int | jax.Array) -> jax.Array:
  """Where a shuffle of [0, n) that ``key`` names puts the positions ``index``.

  A generalised Feistel network over Z_a x Z_b, a and b near the square root of
  n, applied again to whatever lands in [n, ab): fewer than 2a of ab values.

  Elementwise in ``index``, so any sharding gives the same.

  Args:
    key: typed key; one key, one permutation for each n.
    index: int32 positions in [0, n), of any shape. Others give some value of
      [0, n).
    n: size of the domain, at least 1; a Python int or a traced ``int32[]``.

  Returns:
    int32, of the shape of ``index``.

  Raises:
    ValueError: if n is a Python int below 1 or above 2**31 - 1, or ``index`` is
      not int32.

  Example:
    >>> sorted(permute(jax.random.key(0), jnp.arange(5), 5).tolist())
    [0, 1, 2, 3, 4]

  References:
    Black and Rogaway, *Ciphers with arbitrary finite domains*, 2002.
  """
  return _program(n)(key, index, n, backwards=False)


def inverse(key: jax.Array, index: jax.Array, n: int | jax.Array) -> jax.Array:
  """The positions that `permute` takes to ``index``; same arguments.

  >>> key = jax.random.key(0)
  >>> inverse(key, permute(key, jnp.arange(5), 5), 5).tolist()
  [0, 1, 2, 3, 4]
  """
  return _program(n)(key, index, n, backwards=True)


@functools.partial(jax.jit, static_argnames=("count", "n"), inline=True)
def inverse_range(key: jax.Array, start: int | jax.Array, count: int, n: int) -> jax.Array:
  """`inverse` of the positions ``start`` to ``start + count - 1``, in one pass over them.

  A step of the network takes some of them outside of [0, n). Those are fewer than 2a, and as it is
  one to one, where they come from and where they come back is worked out of them alone.

  Args:
    key: typed key.
    start: int32, the first position; may be traced.
    count: how many, static.
    n: size of the domain, static.

  >>> key = jax.random.key(0)
  >>> inverse_range(key, 1, 3, 5).tolist() == inverse(key, jnp.arange(1, 4), 5).tolist()
  True
  """
  network = _network(key, n)
  size = network.size
  first = jnp.asarray(start, jnp.int32).astype(jnp.uint32)
  index = first + jnp.arange(count, dtype=jnp.uint32)
  x = _decrypt(network, jnp.where(index < size, index, jnp.uint32(0)))
  outside = int(network.left) * int(network.right) - n
  if outside:
    y = size + jnp.arange(outside, dtype=jnp.uint32)
    origin = _encrypt(network, y) - first
    # A cycle that is wholly outside, from which nobody comes, ends where it began.
    away = lambda z: (z >= size) & (z != y)
    back = jax.lax.while_loop(
      lambda z: jnp.any(away(z)),
      lambda z: jnp.where(away(z), _decrypt(network, z), z),
      _decrypt(network, y),
    )
    here = (origin < count) & (origin + first < size)
    place = jnp.where(here, origin, np.uint32(count)).astype(jnp.int32)
    # Positions that are past the end have not been brought back.
    x = jnp.minimum(x.at[place].set(back, mode="drop"), size - np.uint32(1))
  return x.astype(jnp.int32)


def _moved(key: jax.Array, index: jax.Array, n: int | jax.Array, *, backwards: bool) -> jax.Array:
  network = _network(key, n)
  step = _decrypt if backwards else _encrypt
  return _walk(lambda x: step(network, x), index, network)


# Programs of their own: loops outside of one would be compiled anew at every call.
_OF_STATIC = jax.jit(_moved, static_argnames=("n", "backwards"), inline=True)
_OF_TRACED = jax.jit(_moved, static_argnames="backwards", inline=True)


def _program(n: int | jax.Array) -> Callable[..., jax.Array]:
  return _OF_STATIC if isinstance(n, (int, np.integer)) else _OF_TRACED


class _Network(NamedTuple):
  words: jax.Array  # [TINY_PAIRS, 2] uint32
  pairs: jax.Array | int  # how many of them to use
  # Constants where n is a Python int, as a division by a constant is a product; else uint32[].
  size: jax.Array | np.uint32  # n
  left: jax.Array | np.uint32  # a, the ceiling of the square root of n
  right: jax.Array | np.uint32  # b, the least with a * b >= n, and not odd if a is


def _network(key: jax.Array, n: int | jax.Array) -> _Network:
  words = jax.random.bits(key, (TINY_PAIRS, 2), jnp.uint32)
  if isinstance(n, (int, np.integer)):
    n = int(n)
    if not 1 <= n < 2**31:
      raise ValueError(f"a permutation is of 1 to 2**31 - 1 positions, got n = {n}")
    left = math.isqrt(n - 1) + 1
    right = (n - 1) // left + 1
    right += left & right & 1
    pairs = TINY_PAIRS if n < TINY else PAIRS
    return _Network(words, pairs, np.uint32(n), np.uint32(left), np.uint32(right))
  size = n.astype(jnp.uint32)
  root = jnp.sqrt(size.astype(jnp.float32)).astype(jnp.uint32)
  root = root - (root * root > size).astype(jnp.uint32)  # float32 may miss it by one
  root = root + ((root + 1) * (root + 1) <= size).astype(jnp.uint32)
  left = root + (root * root < size).astype(jnp.uint32)
  right = (size - 1) // left + 1
  # Were both odd, every round would be an even permutation, and so the whole.
  right = right + (left & right & 1)
  return _Network(words, jnp.where(size < TINY, TINY_PAIRS, PAIRS), size, left, right)


def _walk(step: Callable[[jax.Array], jax.Array], index: jax.Array, network: _Network) -> jax.Array:
  if index.dtype != jnp.int32:
    raise ValueError(f"index must be int32, got {index.dtype}")
  size = network.size
  x = index.astype(jnp.uint32)
  # From inside, a cycle comes back inside; from outside it might never.
  x = step(jnp.where(x < size, x, jnp.uint32(0)))
  x = jax.lax.while_loop(lambda x: jnp.any(x >= size), lambda x: jnp.where(x < size, x, step(x)), x)
  return x.astype(jnp.int32)


def _encrypt(network: _Network, x: jax.Array) -> jax.Array:
  def pair(i: jax.Array, halves: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    left, right = halves
    left = _add(left, _draw(network.words[i, 0], right, network.left), network.left)
    right = _add(right, _draw(network.words[i, 1], left, network.right), network.right)
    return left, right

  halves = (x // network.right, x % network.right)
  left, right = jax.lax.fori_loop(0, network.pairs, pair, halves)
  return left * network.right + right


def _decrypt(network: _Network, x: jax.Array) -> jax.Array:
  def pair(i: jax.Array, halves: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    left, right = halves
    word = network.words[network.pairs - 1 - i]
    right = _add(right, network.right - _draw(word[1], left, network.right), network.right)
    left = _add(left, network.left - _draw(word[0], right, network.left), network.left)
    return left, right

  halves = (x // network.right, x % network.right)
  left, right = jax.lax.fori_loop(0, network.pairs, pair, halves)
  return left * network.right + right


def _add(x: jax.Array, y: jax.Array, modulus: jax.Array) -> jax.Array:
  total = x + y
  return jnp.where(total >= modulus, total - modulus, total)


def _draw(word: jax.Array, x: jax.Array, bound: jax.Array) -> jax.Array:
  """A hash of ``x`` in [0, bound), bound at most 2**16."""
  x = x ^ word
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return ((x >> 16) * bound) >> 16
