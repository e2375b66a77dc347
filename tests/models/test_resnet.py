"""resnet18: its batch statistics under padding and on several devices, and its shape."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jsel
from jsel.models import make
from jsel.sharding import replicated, rows_sharding

SHAPE = (8, 8, 3)


@pytest.fixture(scope="module")
def model():
  model = make("resnet18", rngs=nnx.Rngs(0), input_shape=SHAPE, classes=5, width=8)
  # Scales of 0, with which a network begins, would hide what the blocks do.
  for block in model.blocks:
    block.second_norm.norm.scale[...] = jnp.full_like(block.second_norm.norm.scale[...], 0.5)
  return model


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


def test_it_is_the_published_network():
  build = lambda: make("resnet18", rngs=nnx.Rngs(0), input_shape=(32, 32, 3), classes=10)
  model = nnx.eval_shape(build)
  leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
  # The count that is known for ResNet-18 with the CIFAR stem and 10 classes.
  assert sum(math.prod(leaf.shape) for leaf in leaves) == 11_173_962
  outputs = nnx.eval_shape(lambda m, x: m(x, train=False), model, jnp.zeros((2, 32, 32, 3)))
  assert outputs.features.shape == (2, 512)


def test_bfloat16_products_normalise_in_float32():
  build = lambda: make(
    "resnet18", rngs=nnx.Rngs(0), input_shape=SHAPE, classes=5, width=4, dtype="bfloat16"
  )
  graph, params, rest = nnx.split(nnx.eval_shape(build), nnx.Param, ...)

  def forward(params, rest, x):
    model = nnx.merge(graph, params, rest)
    return model(x, train=True), nnx.split(model, nnx.Param, ...)[2]

  outputs, after = jax.eval_shape(forward, params, rest, jnp.zeros((4, *SHAPE)))
  assert outputs.logits.dtype == outputs.features.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {np.dtype(np.float32)}
