"""Sums over a batch in a fixed order: any number of devices learns bitwise the same."""

import os
import re

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import jsel
from jsel import models
from jsel.sharding import rows_sharding
from jsel.training.command import repeat_bitwise
from jsel.training.config import base_config
from jsel.training.parts import sum_of_parts
from jsel.training.setup import check_reductions
from tests.training.test_step import BATCH, Setup, _standard_promotion

__all__ = ["_standard_promotion"]
DEVICES = (1, 2, 4, 8)
PARTS = 8


def bits(tree):
  of_leaf = lambda x: (
    jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
  )
  return [np.asarray(of_leaf(leaf)).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("devices", DEVICES)
def test_a_sum_of_parts_is_that_of_the_rows(devices, unroll, rng):
  mesh = jsel.make_mesh(jax.devices()[:devices])
  x, scale = rng.standard_normal((64, 5)).astype(np.float32), np.float32(3)
  shapes = []

  def function(same, rows):
    shapes.append(rows.shape)
    return {"sum": same * rows.sum(axis=0)}, rows[:, 0] + same

  mapped = jax.jit(sum_of_parts(function, parts=PARTS, mesh=mesh, unroll=unroll))
  summed, per_row = mapped(scale, jax.device_put(x, rows_sharding(mesh)))
  # Float32 sums of 64 numbers of size 1.
  np.testing.assert_allclose(summed["sum"], 3 * x.astype(np.float64).sum(axis=0), atol=1e-5)
  np.testing.assert_array_equal(per_row, x[:, 0] + scale)
  assert set(shapes) == {(8, 5)}


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("name", ["infobatch", "dac_rounds", "rep_div"])
def test_a_run_is_bitwise_the_same_on_any_number_of_devices(name, unroll):
  runs = {}
  for devices in DEVICES:
    setup = Setup(name, devices=devices, parts=PARTS, unroll=unroll)
    state, losses = setup.run(40)
    runs[devices] = [*bits(state._replace(key=())), losses.tobytes()]
  for devices in DEVICES[1:]:
    assert runs[devices] == runs[1], devices


def test_in_any_order_they_are_not():  # which the test above would not see otherwise
  one, _ = Setup("infobatch").run(40)
  eight, _ = Setup("infobatch", devices=8).run(40)
  assert bits(one.params) != bits(eight.params)


def test_parts_give_the_gradient_of_the_whole_batch():
  whole, losses_whole = Setup("infobatch", optimizer=optax.sgd(0.1)).run(20)
  parts, losses_parts = Setup("infobatch", optimizer=optax.sgd(0.1), parts=PARTS).run(20)
  # The same sums in another order, carried over 20 steps.
  np.testing.assert_allclose(losses_whole, losses_parts, rtol=1e-4)
  np.testing.assert_array_equal(whole.exposure.first_step, parts.exposure.first_step)


def test_scores_of_candidates_are_bitwise_the_same(rng):
  inputs = rng.standard_normal((BATCH, 12)).astype(np.float32)
  labels = rng.integers(0, 5, BATCH).astype(np.int32)
  found = []
  for devices in DEVICES:
    setup = Setup("loss", devices=devices, parts=PARTS)
    rows = jax.device_put((inputs, labels), rows_sharding(setup.mesh))
    said = jax.jit(setup.learner.score)(setup.state.params, setup.state.variables, *rows)
    found.append(bits(said))
  assert found[1:] == found[:1] * 3
  whole = Setup("loss").learner.score(setup.state.params, setup.state.variables, inputs, labels)
  for name, value in said.items():
    np.testing.assert_allclose(value, whole[name], rtol=1e-5, atol=1e-6)  # of other shapes


def test_convolutions_are_bitwise_the_same(rng):
  # In a loop they are slow on CPU, so a device has a copy of the program for each of its parts.
  images = rng.standard_normal((32, 8, 8, 1)).astype(np.float32)
  model = models.make("cnn", rngs=nnx.Rngs(0), input_shape=(8, 8, 1), classes=5, products=False)
  graphdef, params = nnx.split(model)

  def function(params, images):
    loss = lambda params: (nnx.merge(graphdef, params)(images, train=True).logits ** 2).sum()
    return jax.grad(loss)(params), ()

  found = []
  for devices in DEVICES:
    mesh = jsel.make_mesh(jax.devices()[:devices])
    mapped = jax.jit(sum_of_parts(function, parts=PARTS, mesh=mesh, unroll=True))
    found.append(bits(mapped(params, jax.device_put(images, rows_sharding(mesh)))[0]))
  assert found[1:] == found[:1] * 3


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"deterministic_reductions": 6}, "=6 is no power of two that divides batch_size=96"),
    ({"deterministic_reductions": 64}, "set one of up to 32, or 0"),
    ({"deterministic_reductions": -1}, "=-1 is no power of two"),
    ({"deterministic_reductions": 4}, "4 parts are too few for 8 devices"),
    ({"deterministic_reductions": 8, "accumulate": 2}, "set accumulate=1"),
    ({"deterministic_reductions": 8, "sharding.fsdp": 2}, "set sharding.fsdp=1, not 2"),
    ({"deterministic_reductions": 8, "eval_batch_size": 100}, "choose a multiple of 8"),
  ],
)
def test_what_does_not_go_together_is_refused(options, message):
  config = base_config()
  config.batch_size = 96
  config.update_from_flattened_dict(options)
  with pytest.raises(ValueError, match=re.escape(message)):
    check_reductions(config, 8)


def test_deterministic_asks_xla_for_operations_that_repeat(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_some=1")
  repeat_bitwise()
  assert os.environ["XLA_FLAGS"] == "--xla_some=1 --xla_gpu_deterministic_ops=true"
