"""Residual networks: ResNet-18 with the stem for small images, ResNet-50 with that for large."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jsel.models.initial import before_norm, to_softmax
from jsel.models.outputs import Outputs, check_input, compute_dtype

REMAT = ("none", "blocks")


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

  expansion = 1  # channels that leave the block, per ``width``

  def __init__(self, fan_in: int, width: int, stride: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.first = convolution(fan_in, width, 3, stride, dtype=dtype, rngs=rngs)
    self.first_norm = Norm(width, dtype=dtype, rngs=rngs)
    self.second = convolution(width, width, 3, 1, dtype=dtype, rngs=rngs)
    # A scale of zero makes the new network the identity along its depth (Goyal et al., 2017).
    self.second_norm = Norm(width, dtype=dtype, zero=True, rngs=rngs)
    self.widens = stride != 1 or fan_in != width
    if self.widens:
      self.around = convolution(fan_in, width, 1, stride, dtype=dtype, rngs=rngs)
      self.around_norm = Norm(width, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array, *, valid: jax.Array | None, train: bool) -> jax.Array:
    y = jax.nn.relu(self.first_norm(self.first(x), valid=valid, train=train))
    y = self.second_norm(self.second(y), valid=valid, train=train)
    if self.widens:
      x = self.around_norm(self.around(x), valid=valid, train=train)
    return jax.nn.relu(x + y)


class Bottleneck(nnx.Module):
  """A 1x1 convolution to a quarter of the channels, a 3x3 one, a 1x1 one back, and the way around.

  The stride is that of the 3x3 convolution ("v1.5"): the published network has it in the first,
  which throws three quarters of its input away.
  """

  expansion = 4

  def __init__(self, fan_in: int, width: int, stride: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    fan_out = self.expansion * width
    self.first = convolution(fan_in, width, 1, 1, dtype=dtype, rngs=rngs)
    self.first_norm = Norm(width, dtype=dtype, rngs=rngs)
    self.second = convolution(width, width, 3, stride, dtype=dtype, rngs=rngs)
    self.second_norm = Norm(width, dtype=dtype, rngs=rngs)
    self.third = convolution(width, fan_out, 1, 1, dtype=dtype, rngs=rngs)
    self.third_norm = Norm(fan_out, dtype=dtype, zero=True, rngs=rngs)
    self.widens = stride != 1 or fan_in != fan_out
    if self.widens:
      self.around = convolution(fan_in, fan_out, 1, stride, dtype=dtype, rngs=rngs)
      self.around_norm = Norm(fan_out, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array, *, valid: jax.Array | None, train: bool) -> jax.Array:
    y = jax.nn.relu(self.first_norm(self.first(x), valid=valid, train=train))
    y = jax.nn.relu(self.second_norm(self.second(y), valid=valid, train=train))
    y = self.third_norm(self.third(y), valid=valid, train=train)
    if self.widens:
      x = self.around_norm(self.around(x), valid=valid, train=train)
    return jax.nn.relu(x + y)


class ResNet(nnx.Module):
  """A stem, four stages of blocks that halve the image between them, a mean, and a linear head.

  Batch statistics are over the valid rows of the whole batch: under ``jax.jit`` on a mesh of Auto
  axes also when the batch is split over devices, at the price of one small all-reduce a layer.
  The running statistics are the `nnx.BatchStat` variables; a call with ``train=True`` replaces
  them, so take the state out again after it.

  Args:
    block: `Block` or `Bottleneck`.
    depths: blocks of each stage.
    large: a 7x7 stem of stride 2 and a 3x3 maximum of stride 2 after it, which leave a sixteenth
      of the pixels; else a 3x3 stem of stride 1.
    rngs: of the initial parameters.
    input_shape: of one image, ``[h, w, c]``.
    classes: columns of the logits.
    dtype: "float32" or "bfloat16" products; parameters, normalisation and head are float32.
    width: of the first stage; the others have 2, 4 and 8 times as many channels.
    remat: "blocks" keeps only what goes into each block for the backward pass, and computes the
      rest again: a third more products, for a fraction of the activations' memory. The result is
      the same but for rounding.

  Raises:
    ValueError: if ``input_shape`` is no image's or ``remat`` is unknown.
  """

  convolutional = True
  takes_tokens = False

  def __init__(
    self,
    block: Any,
    depths: tuple[int, ...],
    *,
    large: bool,
    rngs: nnx.Rngs,
    input_shape: tuple[int, ...],
    classes: int,
    dtype: str,
    width: int,
    remat: str,
  ):
    if len(input_shape) != 3:
      raise ValueError(f"a resnet takes images [h, w, c], got input_shape={tuple(input_shape)}")
    if remat not in REMAT:
      raise ValueError(f"remat is {' or '.join(REMAT)}, got {remat!r}")
    self.input_shape, self.large, self.remat = tuple(input_shape), large, remat
    compute = compute_dtype(dtype)
    size, stride = (7, 2) if large else (3, 1)
    self.stem = convolution(input_shape[2], width, size, stride, dtype=compute, rngs=rngs)
    self.stem_norm = Norm(width, dtype=compute, rngs=rngs)
    blocks, channels = [], width
    for stage, depth in enumerate(depths):
      for place in range(depth):
        stride = 2 if stage and not place else 1
        blocks.append(block(channels, width * 2**stage, stride, dtype=compute, rngs=rngs))
        channels = block.expansion * width * 2**stage
    self.blocks = nnx.List(blocks)
    self.head = nnx.Linear(channels, classes, dtype=jnp.float32, kernel_init=to_softmax, rngs=rngs)

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
    if self.large:
      x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    through = lambda block, x, valid: block(x, valid=valid, train=train)
    if self.remat == "blocks":
      through = nnx.remat(through)
    for block in self.blocks:
      x = through(block, x, valid)
    features = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
    return Outputs(self.head(features), features)


class ResNet18(ResNet):
  """ResNet-18 with a 3x3 stem of stride 1 and no pooling after it; see `ResNet`.

  >>> model = ResNet18(rngs=nnx.Rngs(0), input_shape=(8, 8, 3), classes=10, width=4)
  >>> outputs = jax.eval_shape(lambda x: model(x, train=False), jnp.zeros((2, 8, 8, 3)))
  >>> outputs.logits.shape, outputs.features.shape
  ((2, 10), (2, 32))

  References:
    He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, 2015, arXiv:1512.03385.
  """

  def __init__(
    self,
    *,
    rngs: nnx.Rngs,
    input_shape: tuple[int, ...],
    classes: int,
    dtype: str = "float32",
    width: int = 64,
    remat: str = "none",
  ):
    super().__init__(
      Block,
      (2, 2, 2, 2),
      large=False,
      rngs=rngs,
      input_shape=input_shape,
      classes=classes,
      dtype=dtype,
      width=width,
      remat=remat,
    )


class ResNet50(ResNet):
  """ResNet-50 (v1.5) with the stem for large images; see `ResNet`.

  >>> build = lambda: ResNet50(rngs=nnx.Rngs(0), input_shape=(64, 64, 3), classes=10, width=4)
  >>> model = nnx.eval_shape(build)
  >>> call = lambda model, x: model(x, train=False)
  >>> outputs = nnx.eval_shape(call, model, jnp.zeros((2, 64, 64, 3)))
  >>> outputs.logits.shape, outputs.features.shape
  ((2, 10), (2, 128))

  References:
    He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, 2015, arXiv:1512.03385.
    Goyal et al., *Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour*, 2017,
    arXiv:1706.02677 (the stride, and the scales that begin at 0).
  """

  def __init__(
    self,
    *,
    rngs: nnx.Rngs,
    input_shape: tuple[int, ...],
    classes: int,
    dtype: str = "float32",
    width: int = 64,
    remat: str = "none",
  ):
    super().__init__(
      Bottleneck,
      (3, 4, 6, 3),
      large=True,
      rngs=rngs,
      input_shape=input_shape,
      classes=classes,
      dtype=dtype,
      width=width,
      remat=remat,
    )
