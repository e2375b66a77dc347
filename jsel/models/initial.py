"""Random initial weights."""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp

from jsel.kernels.random import row_uniform_int


@functools.partial(jax.jit, static_argnames=("shape", "dtype", "fan", "gain"))
def scaled_normal(
  key: jax.Array,
  shape: tuple[int, ...],
  dtype: jnp.dtype = jnp.float32,  # pyrefly: ignore
  *,
  fan: Literal["in", "out"] = "in",
  gain: float = 2.0,
) -> jax.Array:
  """Normal weights of variance ``gain`` / fan, as `nnx` wants an initialiser.

  Drawn from jsel's counters and not by `jax.random.normal`, whose program takes XLA seconds to
  compile on a CPU for each shape: 20 s of CPU time for a ResNet-18 (jax 0.10.2), against 4.

  Args:
    key: typed PRNG key.
    shape: of the weights, input and output channels last.
    dtype: of the weights.
    fan: what to count, products into an output ("in") or out of an input ("out").
    gain: 2 before a ReLU, 1 before a softmax.

  >>> weights = scaled_normal(jax.random.key(0), (3, 3, 16, 32))
  >>> abs(float(weights.std()) * (3 * 3 * 16 / 2) ** 0.5 - 1) < 0.05
  True

  References:
    He, Zhang, Ren, Sun, *Delving Deep into Rectifiers*, 2015, arXiv:1502.01852.
  """
  window = math.prod(shape[:-2])
  deviation = math.sqrt(gain / (window * shape[-2 if fan == "in" else -1]))
  bits = row_uniform_int(key, jnp.arange(math.prod(shape), dtype=jnp.int32)) >> 9
  # The middles of 2**23 equal parts of (-1, 1): each is a float32, none is an end.
  uniform = (bits.astype(jnp.float32) + 0.5) * 2.0**-22 - 1
  normal = math.sqrt(2) * jax.lax.erf_inv(uniform)
  return (deviation * normal).reshape(shape).astype(dtype)


to_softmax = functools.partial(scaled_normal, gain=1.0)  # of the last layer
before_norm = functools.partial(scaled_normal, fan="out")  # of a convolution that is normalised
