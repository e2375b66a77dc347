"""Integers of 64 bits in two limbs: products, quotients, prefix sums."""

import jax
import jax.numpy as jnp

from jsel.kernels.reduce import TwoLimb, two_limb_add, two_limb_less
from jsel.kernels.rows import AxisName


def multiply(a: jax.Array, b: jax.Array) -> TwoLimb:
  """``a * b`` of uint32, exactly.

  >>> product = multiply(jnp.uint32(2**31), jnp.uint32(6))
  >>> int(product.high), int(product.low)
  (3, 0)
  """
  mask = jnp.uint32(0xFFFF)
  low = (a & mask) * (b & mask)
  middle = (a >> 16) * (b & mask) + (low >> 16)
  other = (a & mask) * (b >> 16) + (middle & mask)
  high = (a >> 16) * (b >> 16) + (middle >> 16) + (other >> 16)
  return TwoLimb(high.astype(jnp.int32), (other << 16) | (low & mask))


def multiply_high(a: TwoLimb, b: TwoLimb) -> TwoLimb:
  """``a * b // 2**64`` of 64-bit integers without a sign.

  >>> half = TwoLimb(jnp.int32(-(2**31)), jnp.uint32(0))
  >>> three = TwoLimb(jnp.int32(0), jnp.uint32(3))
  >>> int(multiply_high(half, three).low)
  1
  """
  a_high, b_high = a.high.astype(jnp.uint32), b.high.astype(jnp.uint32)
  upper = lambda x: TwoLimb(jnp.zeros_like(x.high), x.high.astype(jnp.uint32))
  lower = lambda x: TwoLimb(jnp.zeros_like(x.high), x.low)
  middle = two_limb_add(multiply(a_high, b.low), upper(multiply(a.low, b.low)))
  other = two_limb_add(multiply(a.low, b_high), lower(middle))
  return two_limb_add(two_limb_add(multiply(a_high, b_high), upper(middle)), upper(other))


def multiply_divide(a: jax.Array, b: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
  """``divmod(a * b, c)`` for ``0 <= a, b <= c < 2**31`` where a may be any uint32.

  >>> [int(part) for part in multiply_divide(*map(jnp.uint32, (70000, 3, 7)))]
  [30000, 0]
  """
  a, b, c = jnp.broadcast_arrays(a, b, c)

  def step(i, carry):
    quotient, rest = carry
    rest = 2 * rest
    whole = rest >= c
    quotient = 2 * quotient + whole.astype(jnp.uint32)
    rest = jnp.where(whole, rest - c, rest)
    rest = rest + jnp.where((a >> (31 - i)) & 1 == 1, b, 0)
    whole = rest >= c
    return quotient + whole.astype(jnp.uint32), jnp.where(whole, rest - c, rest)

  start = jnp.zeros_like(a), jnp.zeros_like(a)
  return jax.lax.fori_loop(jnp.uint32(0), jnp.uint32(32), step, start)


def divide(a: TwoLimb, b: jax.Array) -> tuple[jax.Array, jax.Array]:
  """``divmod(a, b)`` for ``a >= 0``, a uint32 ``b`` in ``[1, 2**31)`` and a quotient below 2**32.

  >>> [int(part) for part in divide(TwoLimb(jnp.int32(1), jnp.uint32(1)), jnp.uint32(2))]
  [2147483648, 1]
  """

  def step(i, carry):
    quotient, rest = carry
    word = jnp.where(i < 32, a.high.astype(jnp.uint32), a.low)
    rest = 2 * rest + ((word >> (31 - i % 32)) & 1)
    whole = rest >= b
    return 2 * quotient + whole.astype(jnp.uint32), jnp.where(whole, rest - b, rest)

  start = jnp.zeros_like(a.low), jnp.zeros_like(a.low)
  return jax.lax.fori_loop(jnp.uint32(0), jnp.uint32(64), step, start)


def subtract(a: TwoLimb, b: TwoLimb) -> TwoLimb:
  """``a - b``, modulo 2**64.

  >>> int(subtract(TwoLimb(jnp.int32(1), jnp.uint32(0)), TwoLimb(jnp.int32(0), jnp.uint32(1))).low)
  4294967295
  """
  return TwoLimb(a.high - b.high - (a.low < b.low).astype(jnp.int32), a.low - b.low)


def prefix_sum(x: jax.Array, axis_name: AxisName = None) -> TwoLimb:
  """Sums of uint32 ``x`` up to and with each row, over the rows of the devices before too.

  >>> int(prefix_sum(jnp.full(4, 2**31, jnp.uint32)).high[-1])
  2
  """
  low = jnp.cumsum(x, dtype=jnp.uint32)
  # Less than what was added: it went round.
  high = jnp.cumsum(low < x, dtype=jnp.int32)
  total = TwoLimb(high, low)
  if axis_name is None or not x.size:
    return total
  ends = jax.lax.all_gather(TwoLimb(high[-1], low[-1]), axis_name)

  def add(i, before):
    new = two_limb_add(before, TwoLimb(ends.high[i], ends.low[i]))
    earlier = i < jax.lax.axis_index(axis_name)
    return jax.tree.map(lambda new, old: jnp.where(earlier, new, old), new, before)

  zero = TwoLimb(jnp.zeros_like(high[-1]), jnp.zeros_like(low[-1]))
  before = jax.lax.fori_loop(0, ends.low.shape[0], add, zero)
  return two_limb_add(total, before)


def first_above(ends: TwoLimb, positions: TwoLimb) -> jax.Array:
  """The first of the ascending ``ends`` that is above each position; their number where none is.

  >>> ends = prefix_sum(jnp.array([2, 0, 3], jnp.uint32))
  >>> low = jnp.arange(1, 5, dtype=jnp.uint32)
  >>> first_above(ends, TwoLimb(jnp.zeros(4, jnp.int32), low)).tolist()
  [0, 2, 2, 2]
  """
  count = ends.low.shape[0]

  def step(_, carry):
    low, high = carry
    middle = (low + high) // 2
    at = jnp.minimum(middle, count - 1)
    above = two_limb_less(positions, TwoLimb(ends.high[at], ends.low[at]))
    searching = low < high
    return (
      jnp.where(searching & ~above, middle + 1, low),
      jnp.where(searching & above, middle, high),
    )

  zero = (positions.low ^ positions.low).astype(jnp.int32) + (ends.high[0] ^ ends.high[0])
  return jax.lax.fori_loop(0, count.bit_length(), step, (zero, zero + count))[0]
