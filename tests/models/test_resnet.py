"""Residual networks: batch statistics under padding and on several devices, shapes, and remat."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jsel
from jsel.models import make
from jsel.models.resnet import Bottleneck, ResNet
from jsel.sharding import replicated, rows_sharding

SHAPE = (8, 8, 3)


def small(name, *, width=8, dtype="float32", remat="none"):
  """A network of either kind; that of bottlenecks has few of them, as programs grow with them."""
  options = {"rngs": nnx.Rngs(0), "input_shape": SHAPE, "classes": 5}
  options |= {"width": width, "dtype": dtype, "remat": remat}
  if name == "resnet18":
    model = make("resnet18", **options)
  else:
    model = ResNet(Bottleneck, (1, 2), large=True, **options)
  # Scales of 0, with which a network begins, would hide what the blocks do.
  for block in model.blocks:
    last = (block.third_norm if name == "bottlenecks" else block.second_norm).norm
    last.scale[...] = jnp.full_like(last.scale[...], 0.5)
  return model


@pytest.fixture(scope="module", params=["resnet18", "bottlenecks"])
def model(request):
  return small(request.param)


@pytest.fixture(scope="module")
def call(model):
  graph, params, rest = nnx.split(model, nnx.Param, ...)

  def forward(params, rest, x, valid, train):
    merged = nnx.merge(graph, params, rest)
    outputs = merged(x, valid=valid, train=train)
    return outputs, nnx.split(merged, nnx.Param, ...)[2]

  return jax.jit(forward, static_argnames="train"), params, rest


@pytest.fixture
def batch(rng):
  return rng.random((16, *SHAPE), np.float32), np.ones(16, bool)


def close(got, want, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, want)


def test_running_statistics_are_the_batch_moments(model, call, batch):
  forward, params, rest = call
  x, valid = batch
  valid[11:] = False
  _, after = forward(params, rest, x, valid, train=True)
  stem = np.float64(model.stem(x[valid]))
  mean, var = stem.mean((0, 1, 2)), stem.var((0, 1, 2))
  got = after["stem_norm"]["norm"]
  # float32 sums of 704 products; the variance is a difference of two moments of like size.
  np.testing.assert_allclose(got["mean"][...], 0.1 * mean, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(got["var"][...], 0.9 + 0.1 * var, rtol=1e-5)


def test_padded_rows_move_neither_statistics_nor_outputs(call, batch):
  forward, params, rest = call
  x, valid = batch
  valid[11:] = False
  outputs, after = forward(params, rest, x, valid, train=True)
  other = x.copy()
  other[11:] = 1e3
  outputs_other, after_other = forward(params, rest, other, valid, train=True)
  # Bitwise: the same program, and masked rows enter the sums as 0.
  close(after_other, after, rtol=0, atol=0)
  np.testing.assert_array_equal(outputs_other.logits[:11], outputs.logits[:11])
  alone, after_alone = forward(params, rest, x[:11], None, train=True)
  # Not bitwise: a shorter batch is summed in another order, through 20 normalisations.
  close(after_alone, after, rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(alone.logits, outputs.logits[:11], rtol=1e-3, atol=1e-3)


def test_counting_padded_rows_would_show(call, batch):
  forward, params, rest = call
  x, valid = batch
  x[11:] *= 1e3
  first = np.arange(16) < 11
  counted = forward(params, rest, x, valid, train=True)[1]["stem_norm"]["norm"]["var"][...]
  masked = forward(params, rest, x, first, train=True)[1]["stem_norm"]["norm"]["var"][...]
  assert np.all(counted > 10 * masked)


@pytest.mark.parametrize("devices", [2, 8])
def test_statistics_are_of_the_global_batch_on_any_device_count(call, batch, devices):
  forward, params, rest = call
  x, valid = batch
  valid[11:] = False  # on 8 devices two have no valid row at all
  x[8:] += 3  # halves that differ: statistics of one device would be far off
  mesh = jsel.make_mesh(jax.devices()[:devices])
  put = lambda tree, sharding: jax.device_put(tree, sharding)
  outputs, after = forward(
    put(params, replicated(mesh)),
    put(rest, replicated(mesh)),
    put(x, rows_sharding(mesh)),
    put(valid, rows_sharding(mesh)),
    train=True,
  )
  want, want_after = forward(params, rest, x, valid, train=True)
  assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(after))
  # float32 sums in another order, through 20 normalisations.
  close(after, want_after, rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(outputs.logits[:11], want.logits[:11], rtol=1e-3, atol=1e-3)


def test_evaluation_uses_running_statistics_and_leaves_them(call, batch):
  forward, params, rest = call
  x, valid = batch
  _, rest = forward(params, rest, x, valid, train=True)
  outputs, after = forward(params, rest, x, valid, train=False)
  close(after, rest, rtol=0, atol=0)
  other = x.copy()
  other[1:] = 0.5
  # A row's output does not depend on the rest of the batch.
  got = forward(params, rest, other, valid, train=False)[0].logits[0]
  np.testing.assert_array_equal(got, outputs.logits[0])
  trained = forward(params, rest, other, valid, train=True)[0].logits[0]
  assert np.abs(trained - got).max() > 1e-3


@pytest.mark.parametrize(
  ("name", "shape", "classes", "parameters", "features"),
  [
    # The count that is known for ResNet-18 with the CIFAR stem and 10 classes.
    ("resnet18", (32, 32, 3), 10, 11_173_962, 512),
    ("resnet50", (224, 224, 3), 1000, 25_557_032, 2048),
  ],
)
def test_it_is_the_published_network(name, shape, classes, parameters, features):
  build = lambda: make(name, rngs=nnx.Rngs(0), input_shape=shape, classes=classes)
  model = nnx.eval_shape(build)
  leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
  assert sum(math.prod(leaf.shape) for leaf in leaves) == parameters
  outputs = nnx.eval_shape(lambda m, x: m(x, train=False), model, jnp.zeros((2, *shape)))
  assert outputs.features.shape == (2, features)


def windows(x, size, stride, fill=0.0):
  """All windows of ``x`` padded by size // 2: [b, h, w, c, size, size]."""
  pad = size // 2
  x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill)
  view = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
  return view[:, ::stride, ::stride]


def resnet50_oracle(weights, x):
  """ResNet-50 of He et al. with the stride in the 3x3 convolutions, in float64, for evaluation."""

  def convolve(x, name, stride=1):
    kernel = weights[f"{name}/kernel"]
    return np.einsum("bhwcij,ijcd->bhwd", windows(x, len(kernel), stride), kernel, optimize=True)

  def normalise(x, name):
    mean, var, scale, bias = (weights[f"{name}_norm/norm/{n}"] for n in NORM)
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

  layer = lambda x, name, stride=1: normalise(convolve(x, name, stride), name)
  relu = lambda x: np.maximum(x, 0)
  x = relu(layer(x, "stem", 2))
  x = windows(x, 3, 2, fill=-np.inf).max((-2, -1))
  index = 0
  for stage, depth in enumerate((3, 4, 6, 3)):
    for place in range(depth):
      block, stride = f"blocks/{index}", 2 if stage > 0 and place == 0 else 1
      around = layer(x, f"{block}/around", stride) if place == 0 else x
      y = relu(layer(x, f"{block}/first"))
      y = relu(layer(y, f"{block}/second", stride))
      x = relu(layer(y, f"{block}/third") + around)
      index += 1
  return x.mean((1, 2)) @ weights["head/kernel"] + weights["head/bias"]


NORM = ("mean", "var", "scale", "bias")


def test_resnet50_is_its_definition(rng):
  model = make("resnet50", rngs=nnx.Rngs(0), input_shape=(40, 40, 3), classes=7, width=4)
  graph, state = nnx.split(model)
  weights = {}

  def trained(path, leaf):  # no mean, variance, scale or bias is 0 or 1, as they are to begin with
    names = [str(key.key) for key in path if hasattr(key, "key")]
    if names[-1] in NORM:
      leaf = rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    weights["/".join(names)] = np.float64(leaf)
    return leaf

  state = jax.tree_util.tree_map_with_path(trained, state)
  x = rng.random((2, 40, 40, 3), np.float32)
  logits = jax.jit(lambda state, x: nnx.merge(graph, state)(x, train=False).logits)(state, x)
  oracle = resnet50_oracle(weights, x)
  # 53 layers of float32 products; logits are of the order of 10.
  np.testing.assert_allclose(logits, oracle, rtol=1e-3, atol=1e-3 * np.abs(oracle).max())
  assert np.abs(oracle).max() > 1


def test_remat_computes_the_same_gradients_and_statistics(batch):
  x, valid = batch
  valid[11:] = False

  def gradients(remat):
    graph, params, rest = nnx.split(small("bottlenecks", remat=remat), nnx.Param, ...)

    def loss(params, rest, x, valid):
      model = nnx.merge(graph, params, rest, copy=True)
      outputs = model(x, valid=valid, train=True)
      _, _, variables = nnx.split(model, nnx.Param, ...)
      return jnp.where(valid[:, None], outputs.logits, 0).std(), variables

    return jax.grad(loss, has_aux=True), (params, rest, x, valid)

  once, arguments = gradients("none")
  again, _ = gradients("blocks")
  assert "remat" not in str(jax.make_jaxpr(once)(*arguments))
  assert "remat" in str(jax.make_jaxpr(again)(*arguments))
  want, want_statistics = jax.jit(once)(*arguments)
  got, got_statistics = jax.jit(again)(*arguments)
  # Two programs of the same float32 formulas: they differ by rounding.
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
  close(got, want, rtol=1e-3, atol=1e-4 * largest)
  close(got_statistics, want_statistics, rtol=1e-4, atol=1e-6)


def test_an_unknown_remat_is_refused():
  with pytest.raises(ValueError, match=r"remat is none or blocks, got 'all'"):
    small("resnet18", remat="all")


@pytest.mark.parametrize("name", ["resnet18", "bottlenecks"])
def test_bfloat16_products_normalise_in_float32(name):
  build = lambda: small(name, width=4, dtype="bfloat16")
  graph, params, rest = nnx.split(nnx.eval_shape(build), nnx.Param, ...)

  def forward(params, rest, x):
    model = nnx.merge(graph, params, rest)
    return model(x, train=True), nnx.split(model, nnx.Param, ...)[2]

  outputs, after = jax.eval_shape(forward, params, rest, jnp.zeros((4, *SHAPE)))
  assert outputs.logits.dtype == outputs.features.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {np.dtype(np.float32)}
