"""Weights that the rows of a pool have of their own, in every feed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jsel
from jsel import models
from jsel.training import losses
from tests.training import test_streaming as streaming

BATCH, CLASSES, SIZE = streaming.BATCH, streaming.CLASSES, streaming.SIZE
RATE = 0.5
# A third each of 2, 0 and 1: of mean 1, as a subset's weights are.
WEIGHTS = np.resize(np.float32([2, 0, 1]), SIZE)


@pytest.fixture(autouse=True)
def _standard_promotion():
  # Optax and Flax do not keep to strict promotion themselves.
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


def begun(feed, name, devices, weights=WEIGHTS, accumulate=1):
  """A run by plain gradient descent, before its first step."""
  config = streaming.configuration(name, feed)
  config.accumulate = accumulate
  config.optimizer.name, config.optimizer.schedule = "sgd", "constant"
  config.optimizer.momentum, config.optimizer.weight_decay = 0.0, 0.0
  config.optimizer.learning_rate = RATE
  run = streaming.Run(config, devices)
  if weights is not None:
    split = jsel.sharding.rows_sharding(run.mesh)
    column = jax.device_put(jsel.pad_rows(weights), split)
    run.pool = run.pool._replace(rows={**run.pool.rows, "weight": column})
  return run


def descended(params, rows):
  """``params`` after a step on the mean loss of the ``BATCH`` rows ``rows``, each as often as it
  is there."""
  inputs, labels = streaming.clusters()
  make = lambda: models.make(
    "mlp", rngs=nnx.Rngs(0), input_shape=(streaming.FEATURES,), classes=CLASSES, hidden=(16,)
  )
  graphdef, _, variables = nnx.split(make(), nnx.Param, ...)

  def total(params):
    model = nnx.merge(graphdef, params, variables)
    outputs = model(jnp.asarray(inputs[rows]), valid=jnp.ones(len(rows), bool), train=True)
    return losses.classification(outputs, jnp.asarray(labels[rows]))["loss"].sum() / BATCH

  return jax.tree.map(lambda p, g: p - RATE * g, params, jax.grad(total)(params))


@pytest.mark.parametrize(
  ("feed", "name", "devices", "accumulate"),
  [
    ("resident", "full", 1, 2),
    ("planned", "rs2", 8, 1),
    ("super_batch", "rs2", 8, 1),
  ],
)
def test_weight_2_is_the_gradient_of_two_rows_and_0_of_none(feed, name, devices, accumulate):
  run = begun(feed, name, devices, accumulate=accumulate)
  before = jax.tree.map(np.array, run.state.params)
  run.go(1)
  trained = np.flatnonzero(streaming.exposure_of(run)["times_selected"])
  assert trained.size == BATCH
  assert set(WEIGHTS[trained]) == {0, 1, 2}
  expected = descended(before, np.repeat(trained, WEIGHTS[trained].astype(int)))
  # Sums of 32 float32 products of order 1, in another order.
  close = lambda found, expected: np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
  jax.tree.map(close, jax.device_get(run.state.params), expected)


def test_weights_and_those_of_the_selector_multiply():
  # After an epoch infobatch leaves out rows of low loss, and weighs what it keeps of them by more.
  run = begun("resident", "infobatch", 1)
  run.go(14)
  assert run.step == 14
  columns = jax.device_get(run.state.plan.weight)
  assert set(np.unique(columns)) - {0, 1}
  before, times = jax.tree.map(np.array, run.state.params), streaming.exposure_of(run)
  own = np.array(columns)[:SIZE]
  run.go(15)
  after = streaming.exposure_of(run)
  trained = np.flatnonzero(after["times_selected"] - times["times_selected"])
  product = own[trained] * WEIGHTS[trained]
  assert len(set(product)) > 3
  inputs, labels = streaming.clusters()
  graphdef, variables = run.setup.learner.graphdef, run.state.variables

  def total(params):
    model = nnx.merge(graphdef, params, variables)
    outputs = model(jnp.asarray(inputs[trained]), valid=jnp.ones(BATCH, bool), train=True)
    loss = losses.classification(outputs, jnp.asarray(labels[trained]))["loss"]
    return (product * loss).sum() / BATCH

  expected = jax.tree.map(lambda p, g: p - RATE * g, before, jax.grad(total)(before))
  # As above.
  close = lambda found, expected: np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
  jax.tree.map(close, jax.device_get(run.state.params), expected)
  assert optax.tree.norm(jax.tree.map(np.subtract, before, expected)) > 0.01
