"""A small convolutional network for small images."""

import jax
import jax.numpy as jnp
from flax import nnx

from jsel.models.initial import scaled_normal, to_softmax
from jsel.models.outputs import Outputs, check_input, compute_dtype
from jsel.models.strided import strided_product


class CNN(nnx.Module):
  """Strided convolutions, one dense layer and a linear head; ReLU between them.

  The stride stands in for pooling: a quarter of the products of a convolution that is pooled
  afterwards.

  Args:
    rngs: of the initial parameters.
    input_shape: of one image, ``[h, w, c]``.
    classes: columns of the logits.
    dtype: "float32" or "bfloat16" products; parameters and the head are float32.
    channels: outputs of the convolutions, each of which halves height and width.
    kernel: height and width of their windows.
    hidden: width of the dense layer, and of the features.
    products: write the convolutions as matrix products; None does so on CPU.

  >>> model = CNN(rngs=nnx.Rngs(0), input_shape=(28, 28, 1), classes=10)
  >>> outputs = jax.eval_shape(lambda x: model(x, train=True), jnp.zeros((4, 28, 28, 1)))
  >>> outputs.logits.shape, outputs.features.shape
  ((4, 10), (4, 128))
  """

  takes_tokens = False

  def __init__(
    self,
    *,
    rngs: nnx.Rngs,
    input_shape: tuple[int, ...],
    classes: int,
    dtype: str = "float32",
    channels: tuple[int, ...] = (32, 64),
    kernel: int = 3,
    hidden: int = 128,
    products: bool | None = None,
  ):
    if len(input_shape) != 3:
      raise ValueError(f"a cnn takes images [h, w, c], got input_shape={tuple(input_shape)}")
    self.convolutional = jax.default_backend() != "cpu" if products is None else not products
    self.input_shape = tuple(input_shape)
    height, width, depth = self.input_shape
    options = {
      "dtype": compute_dtype(dtype),
      "kernel_init": scaled_normal,
      "rngs": rngs,
    }
    convolutions = []
    for channel in channels:
      convolutions.append(nnx.Conv(depth, channel, (kernel, kernel), strides=2, **options))
      height, width, depth = -(-height // 2), -(-width // 2), channel
    self.convolutions = nnx.List(convolutions)
    self.dense = nnx.Linear(height * width * depth, hidden, **options)
    self.head = nnx.Linear(hidden, classes, dtype=jnp.float32, kernel_init=to_softmax, rngs=rngs)

  def __call__(self, x: jax.Array, *, valid: jax.Array | None = None, train: bool) -> Outputs:
    """Logits and features of the images ``x``, which do not depend on one another."""
    del valid, train
    check_input(x, self.input_shape)
    for convolution in self.convolutions:
      if self.convolutional:
        x = jax.nn.relu(convolution(x))
      else:
        kernel, bias = convolution.kernel[...], convolution.bias[...]  # pyrefly: ignore
        compute = convolution.dtype
        x = strided_product(x.astype(compute), kernel.astype(compute))
        x = jax.nn.relu(x + bias.astype(compute).reshape(1, 1, 1, -1))
    x = jax.nn.relu(self.dense(x.reshape(x.shape[0], -1)))
    features = x.astype(jnp.float32)
    return Outputs(self.head(features), features)
