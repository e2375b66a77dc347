"""ResNet-18 with the stem for small images."""

import jax
import jax.numpy as jnp
from flax import nnx

from jsel.models.initial import before_norm, to_softmax
from jsel.models.outputs import Outputs, check_input, compute_dtype

STAGES = ((1, 1), (2, 1), (2, 1), (2, 1))  # strides of the blocks


class Norm(nnx.Module):
  """Batch normalisation in float32 whatever the compute dtype, over the valid rows alone."""

  def __init__(self, channels: int, *, dtype: jnp.dtype, zero: bool = False, rngs: nnx.Rngs):
    self.dtype = dtype
    initial = jax.nn.initializers.zeros if zero else jax.nn.initializers.ones
    self.norm = nnx.BatchNorm(
      channels, momentum=0.9, epsilon=1e-5, dtype=jnp.float32, scale_init=initial, rngs=rngs
    )

  def __call__(self, x: jax.Array, *, valid: jax.Array | None, train: bool) -> jax.Array:
    mask = None if valid is None else valid[:, None, None, None]
    y = self.norm(x.astype(jnp.float32), use_running_average=not train, mask=mask)
    return y.astype(self.dtype)


def convolution(
  fan_in: int, fan_out: int, size: int, stride: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.Conv:
  """A convolution without bias, which the normalisation after it would take away."""
  return nnx.Conv(
    fan_in,
    fan_out,
    (size, size),
    strides=stride,
    # Symmetric: "SAME" would pad a strided window on one side only.
    padding=size // 2,
    use_bias=False,
    dtype=dtype,
    kernel_init=before_norm,
    rngs=rngs,
  )


class Block(nnx.Module):
  """Two 3x3 convolutions and the way around them."""

  def __init__(self, fan_in: int, fan_out: int, stride: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.first = convolution(fan_in, fan_out, 3, stride, dtype=dtype, rngs=rngs)
    self.first_norm = Norm(fan_out, dtype=dtype, rngs=rngs)
    self.second = convolution(fan_out, fan_out, 3, 1, dtype=dtype, rngs=rngs)
    # A scale of zero makes the new network the identity along its depth (Goyal et al., 2017).
    self.second_norm = Norm(fan_out, dtype=dtype, zero=True, rngs=rngs)
    self.widens = stride != 1 or fan_in != fan_out
    if self.widens:
      self.around = convolution(fan_in, fan_out, 1, stride, dtype=dtype, rngs=rngs)
      self.around_norm = Norm(fan_out, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array, *, valid: jax.Array | None, train: bool) -> jax.Array:
    y = jax.nn.relu(self.first_norm(self.first(x), valid=valid, train=train))
    y = self.second_norm(self.second(y), valid=valid, train=train)
    if self.widens:
      x = self.around_norm(self.around(x), valid=valid, train=train)
    return jax.nn.relu(x + y)


class ResNet18(nnx.Module):
  """ResNet-18 with a 3x3 stem of stride 1 and no pooling after it.

  Batch statistics are over the valid rows of the whole batch: under ``jax.jit`` on a mesh of Auto
  axes also when the batch is split over devices, at the price of one small all-reduce a layer.
  The running statistics are the `nnx.BatchStat` variables; a call with ``train=True`` replaces
  them, so take the state out again after it.

  Args:
    rngs: of the initial parameters.
    input_shape: of one image, ``[h, w, c]``.
    classes: columns of the logits.
    dtype: "float32" or "bfloat16" products; parameters, normalisation and head are float32.
    width: channels of the first stage; the others have 2, 4 and 8 times as many.

  >>> model = ResNet18(rngs=nnx.Rngs(0), input_shape=(8, 8, 3), classes=10, width=4)
  >>> outputs = jax.eval_shape(lambda x: model(x, train=False), jnp.zeros((2, 8, 8, 3)))
  >>> outputs.logits.shape, outputs.features.shape
  ((2, 10), (2, 32))

  References:
    He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, 2015, arXiv:1512.03385.
  """

  convolutional = True

  def __init__(
    self,
    *,
    rngs: nnx.Rngs,
    input_shape: tuple[int, ...],
    classes: int,
    dtype: str = "float32",
    width: int = 64,
  ):
    if len(input_shape) != 3:
      raise ValueError(f"resnet18 takes images [h, w, c], got input_shape={tuple(input_shape)}")
    self.input_shape = tuple(input_shape)
    compute = compute_dtype(dtype)
    self.stem = convolution(input_shape[2], width, 3, 1, dtype=compute, rngs=rngs)
    self.stem_norm = Norm(width, dtype=compute, rngs=rngs)
    blocks, depth = [], width
    for stage, strides in enumerate(STAGES):
      for stride in strides:
        blocks.append(Block(depth, width * 2**stage, stride, dtype=compute, rngs=rngs))
        depth = width * 2**stage
    self.blocks = nnx.List(blocks)
    self.head = nnx.Linear(depth, classes, dtype=jnp.float32, kernel_init=to_softmax, rngs=rngs)

  def __call__(self, x: jax.Array, *, valid: jax.Array | None = None, train: bool) -> Outputs:
    """Logits and features of the images ``x``.

    Args:
      x: ``[b, h, w, c]`` float32.
      valid: ``[b]`` bool, False for padded rows, which then do not move the statistics; all rows
        count if None. With ``train`` at least one row must be valid, else statistics are NaN.
      train: normalise by the batch and update the running statistics, or normalise by those.
    """
    check_input(x, self.input_shape)
    x = jax.nn.relu(self.stem_norm(self.stem(x), valid=valid, train=train))
    for block in self.blocks:
      x = block(x, valid=valid, train=train)
    features = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
    return Outputs(self.head(features), features)
