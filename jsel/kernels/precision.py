"""Matrix products at a named precision, accumulated in float32."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

Precision = Literal["float32", "bfloat16_3x", "bfloat16"]
# bfloat16 numbers that a float32 is the sum of, at each precision, where a CPU multiplies them.
PARTS: dict[Precision, int] = {"float32": 3, "bfloat16_3x": 2, "bfloat16": 1}


def check(precision: str) -> None:
  """Raises ValueError if ``precision`` is none of the three names.

  >>> check("bfloat16_3x")
  """
  if precision not in get_args(Precision):
    raise ValueError(f"precision must be one of {get_args(Precision)}, got {precision!r}")


def matmul(
  a: jax.Array,
  b: jax.Array,
  *,
  precision: Precision = "float32",
  transpose_b: bool = False,
) -> jax.Array:
  """``a @ b``, or ``a @ b.T``, in float32 whatever the products are taken in.

  ``"float32"`` multiplies float32 numbers. ``"bfloat16_3x"`` splits each
  operand into a high and a low bfloat16 part and adds three products; what it
  leaves out is 2**-16 of a term, so that sums are good to about 1e-5 and are
  taken at the speed of bfloat16 hardware. ``"bfloat16"`` rounds the operands,
  to 2**-9 of each. An operand that is bfloat16 has no low part, and costs none.

  Args:
    a: ``[m, c]`` float32 or bfloat16.
    b: ``[c, n]`` float32 or bfloat16; ``[n, c]`` with ``transpose_b``.
    precision: see above.
    transpose_b: contract the last axis of ``b``, which nothing has to transpose.

  Returns:
    ``float32[m, n]``. NaN and infinities pass as in any product; in the
    bfloat16 grades, numbers that round to an infinity are one.

  Raises:
    ValueError: if ``precision`` is another name.

  Example:
    >>> matmul(jnp.full((1, 2), 1.001), jnp.ones((2, 1)), precision="bfloat16").item()
    2.0
  """
  check(precision)
  contract = (((1,), (1 if transpose_b else 0,)), ((), ()))
  if precision == "float32":
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    # The default is rounded to bfloat16 on TPU, to TF32 on some GPUs.
    return lax.dot_general(a, b, contract, precision=lax.Precision.HIGHEST)
  product = lambda a, b: lax.dot_general(a, b, contract, preferred_element_type=jnp.float32)
  if precision == "bfloat16":
    return product(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))
  (a, a_low), (b, b_low) = _split(a), _split(b)
  result = product(a, b)
  if a_low is not None:
    result = result + product(a_low, b)
  if b_low is not None:
    result = result + product(a, b_low)
  return result


def _split(x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
  if x.dtype == jnp.bfloat16:
    return x, None
  x = x.astype(jnp.float32)
  # A cast to bfloat16 and back may be simplified away, which would leave nothing in the low part.
  high = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
  low = jnp.where(jnp.isfinite(high), x - high, 0)
  return high.astype(jnp.bfloat16), low.astype(jnp.bfloat16)
