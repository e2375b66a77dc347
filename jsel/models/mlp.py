"""A multi-layer perceptron."""

import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from jsel.models.initial import scaled_normal, to_softmax
from jsel.models.outputs import Outputs, check_input, compute_dtype

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu}


class MLP(nnx.Module):
  """Dense layers over the flattened row, each with an activation, and a linear head.

  Args:
    rngs: of the initial parameters.
    input_shape: of one row; ``[d]`` or ``[h, w, c]``.
    classes: columns of the logits.
    dtype: "float32" or "bfloat16" products; parameters and the head are float32.
    hidden: widths of the hidden layers; none of them gives logistic regression.
    activation: "relu" or "gelu".

  >>> model = MLP(rngs=nnx.Rngs(0), input_shape=(8, 8, 1), classes=10, hidden=(32,))
  >>> outputs = model(jnp.zeros((4, 8, 8, 1)), train=True)
  >>> outputs.logits.shape, outputs.features.shape
  ((4, 10), (4, 32))
  """

  convolutional = False
  takes_tokens = False

  def __init__(
    self,
    *,
    rngs: nnx.Rngs,
    input_shape: tuple[int, ...],
    classes: int,
    dtype: str = "float32",
    hidden: tuple[int, ...] = (256, 256),
    activation: str = "relu",
  ):
    if activation not in ACTIVATIONS:
      raise ValueError(f"activation is {' or '.join(ACTIVATIONS)}, got {activation!r}")
    self.input_shape = tuple(input_shape)
    self.activation = activation
    compute = compute_dtype(dtype)
    widths = (math.prod(input_shape), *hidden)
    self.layers = nnx.List(
      nnx.Linear(fan_in, fan_out, dtype=compute, kernel_init=scaled_normal, rngs=rngs)
      for fan_in, fan_out in itertools.pairwise(widths)
    )
    self.head = nnx.Linear(
      widths[-1], classes, dtype=jnp.float32, kernel_init=to_softmax, rngs=rngs
    )

  def __call__(self, x: jax.Array, *, valid: jax.Array | None = None, train: bool) -> Outputs:
    """Logits and features of the rows ``x``, which do not depend on one another."""
    del valid, train
    check_input(x, self.input_shape)
    x = x.reshape(x.shape[0], -1)
    for layer in self.layers:
      x = ACTIVATIONS[self.activation](layer(x))
    features = x.astype(jnp.float32)
    return Outputs(self.head(features), features)
