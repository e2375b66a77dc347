"""Random numbers of rows: each a function of the key and the row's global id alone."""

import jax
import jax.numpy as jnp

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


def key_of_seed(seed: int) -> jax.Array:
  """``jax.random.key(seed)``, and a ValueError for what is no seed.

  >>> key_of_seed(2**64)
  Traceback (most recent call last):
  ValueError: a seed is an integer of at most 64 bits with its sign, got 18446744073709551616
  """
  if not -(2**63) <= seed < 2**63:
    raise ValueError(f"a seed is an integer of at most 64 bits with its sign, got {seed}")
  return jax.random.key(seed)


def row_bits(key: jax.Array, ids: jax.Array, *, stream: int = 0) -> jax.Array:
  """64 random bits a row: Threefry-2x32 of the counter (``stream``, id).

  Elementwise in ``ids``, so bitwise the same under any sharding, order or
  blocking of the rows.

  Args:
    key: typed key of any implementation; it gives the cipher's key.
    ids: ``[...]`` int32 or uint32 global row ids.
    stream: another value, other numbers for the same key and ids.

  Returns:
    ``uint32[..., 2]``.

  Raises:
    ValueError: if ``ids`` are not 32-bit integers.

  Example:
    >>> bits = row_bits(jax.random.key(0), jnp.arange(4))
    >>> bool((bits[2:] == row_bits(jax.random.key(0), jnp.arange(2, 4))).all())
    True

  References:
    Salmon, Moraes, Dror and Shaw, *Parallel random numbers: as easy as 1, 2,
    3*, 2011.
  """
  return jnp.stack(_threefry(key, ids, stream, rolled=True), axis=-1)


def row_uniform_int(key: jax.Array, ids: jax.Array, *, stream: int = 0) -> jax.Array:
  """32 random bits a row, ``uint32[...]``: the first word of `row_bits`.

  >>> row_uniform_int(jax.random.key(0), jnp.arange(3)).dtype
  dtype('uint32')
  """
  return _threefry(key, ids, stream)[0]


def row_lot(key: jax.Array, ids: jax.Array) -> jax.Array:
  """32 bits a row, ``uint32[...]``, to break ties by: a keyed hash, in a third of the time.

  Two rounds of a multiplicative hash. Fair to every row and new with every key, but no cipher:
  where samples are to be independent take `row_bits`.

  >>> row_lot(jax.random.key(0), jnp.arange(3)).dtype
  dtype('uint32')
  """
  if ids.dtype not in (jnp.int32, jnp.uint32):
    raise ValueError(f"row ids are int32 or uint32, got {ids.dtype}")
  x = ids.astype(jnp.uint32)
  for word in jax.random.bits(key, (2,), jnp.uint32):
    x = x ^ word
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    x = x ^ (x >> 16)
  return x


def row_uniform(key: jax.Array, ids: jax.Array, *, stream: int = 0) -> jax.Array:
  """A number of [0, 1) a row, ``float32[...]``, a multiple of 2**-24.

  >>> u = row_uniform(jax.random.key(0), jnp.arange(1000))
  >>> bool((u >= 0).all() & (u < 1).all())
  True
  """
  bits = row_uniform_int(key, ids, stream=stream) >> 8
  return bits.astype(jnp.float32) * 2.0**-24


def row_gumbel(key: jax.Array, ids: jax.Array, *, stream: int = 0) -> jax.Array:
  """A standard Gumbel variable a row, ``float32[...]``, always finite.

  The upper tail, which decides a Gumbel top-k, is made of all 64 bits; the
  lower ends at -2.8, below which 4e-8 of the distribution lies.

  >>> bool(jnp.isfinite(row_gumbel(jax.random.key(0), jnp.arange(1000))).all())
  True
  """
  high, low = _threefry(key, ids, stream)
  # Tail probability 1 - u, exact to 24 bits however small: u itself would tie near 1.
  tail = high.astype(jnp.float32) * 2.0**-32 + (low.astype(jnp.float32) + 0.5) * 2.0**-64
  return -jnp.log(-jnp.log1p(-jnp.minimum(tail, 1 - 2.0**-24)))


def _threefry(
  key: jax.Array, ids: jax.Array, stream: int, *, rolled: bool = False
) -> tuple[jax.Array, jax.Array]:
  """Both words; ``rolled`` where they are stacked or cut into bits.

  All 20 rounds in one expression are the fastest for numbers that are used as
  they are. In a loop over the bits of a word they would be worked out for each
  bit, and for some shapes the compiler never ends: LLVM's vectorizer follows
  every path through what does not change in that loop, 10**8 of them. The
  results of a loop are read from memory.
  """
  if ids.dtype not in (jnp.int32, jnp.uint32):
    raise ValueError(f"row ids are int32 or uint32, got {ids.dtype}")
  first, second = jax.random.bits(key, (2,), jnp.uint32)
  schedule, rotations = (first, second, first ^ second ^ PARITY), ROTATIONS
  y = ids.astype(jnp.uint32) + second
  words = (jnp.uint32(stream) + first + (y ^ y), y)  # the first as much an array as the second

  def four_rounds(block, words):
    x, y = words
    for rotation in rotations[block % 2]:
      x = x + y
      y = (y << rotation) | (y >> (32 - rotation))
      y = y ^ x
    return x + schedule[(block + 1) % 3], y + schedule[(block + 2) % 3] + (block + 1)

  if rolled:
    schedule, rotations = jnp.stack(schedule), jnp.array(rotations, jnp.uint32)
    return jax.lax.fori_loop(jnp.uint32(0), jnp.uint32(5), four_rounds, words)
  for block in range(5):
    words = four_rounds(block, words)
  return words
