"""What the model says of a whole split or pool, with rows that only pad."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import jsel
from jsel import models
from jsel.data.rows import ArrayRows
from jsel.selectors import Pool
from jsel.sharding import rows_sharding
from jsel.training import losses
from jsel.training.collect import collect, read_batches, resident_batches
from jsel.training.evaluate import ReadBatches, evaluation_batches, make_evaluation
from jsel.training.gradients import Learner

SIZE, CLASSES = 150, 4


@pytest.fixture(autouse=True)
def _standard_promotion():
  # Flax does not keep to strict promotion itself.
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


@pytest.fixture
def split(rng):
  return rng.standard_normal((SIZE, 7)).astype(np.float32), np.arange(SIZE, dtype=np.int32) % 4


@pytest.fixture
def model():
  return models.make("mlp", rngs=nnx.Rngs(0), input_shape=(7,), classes=CLASSES, hidden=(8,))


def placed(model, devices):
  """A mesh and the model's parts, the parameters on all of it."""
  mesh = jsel.make_mesh(jax.devices()[:devices])
  graphdef, params, variables = nnx.split(model, nnx.Param, ...)
  params = jax.device_put(params, jsel.sharding.replicated(mesh))
  return mesh, graphdef, params, variables


def said_of(model, inputs):
  """Logits and penultimate features by the formula, in float64."""
  dense = lambda x, layer: x @ np.float64(layer.kernel[...]) + np.float64(layer.bias[...])
  features = np.maximum(dense(np.float64(inputs), model.layers[0]), 0)
  return dense(features, model.head), features


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [32, 150, 1024])
def test_loss_and_accuracy_are_means_over_the_true_rows(split, model, devices, batch_size):
  inputs, labels = split
  mesh, graphdef, params, variables = placed(model, devices)
  evaluate = make_evaluation(graphdef, losses.classification, lambda x: 2 * x, mesh=mesh)
  batch_size = -(-batch_size // devices) * devices
  batches = evaluation_batches(inputs, labels, batch_size=batch_size, mesh=mesh)
  assert len({batch.inputs.shape for batch in batches}) == 1
  assert sum(int(batch.valid.sum()) for batch in batches) == SIZE
  found = evaluate(params, variables, batches)
  rows = ArrayRows(inputs, labels)
  read = ReadBatches(rows, batch_size=batch_size, mesh=mesh, threads=2, ahead=2)
  assert evaluate(params, variables, read)["accuracy"] == found["accuracy"]
  logits, _ = said_of(model, 2 * inputs)
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  # Float32 means of 150 numbers.
  assert found["loss"] == pytest.approx(-log_p[np.arange(SIZE), labels].mean(), rel=1e-5)
  assert found["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean(), rel=1e-6)


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [64, 200, 512])
def test_collected_outputs_stand_in_the_rows_of_the_pool(split, model, devices, batch_size, read):
  inputs, labels = split
  mesh, graphdef, params, variables = placed(model, devices)
  rows = {"inputs": jsel.pad_rows(inputs), "labels": jsel.pad_rows(labels)}
  pool = Pool(rows, np.arange(len(rows["labels"])) < SIZE)
  pool = jax.device_put(pool, rows_sharding(mesh))
  same = lambda x: x
  learner = Learner(
    graphdef, losses.classification, lambda key, x, ids: x, same, optax.sgd(0.1), mesh
  )
  if read:
    options = {"size": 512, "threads": 2, "ahead": 2}
    batches = read_batches(ArrayRows(*split), batch_size=batch_size, mesh=mesh, **options)
  else:
    batches = resident_batches(pool, batch_size=batch_size, mesh=mesh)
  names = ("features", "loss")
  got = collect(learner, params, variables, batches, names, size=512, mesh=mesh)
  assert got["features"].shape == (512, 8)
  assert got["features"].sharding.is_equivalent_to(rows_sharding(mesh), 2)
  logits, features = said_of(model, inputs)
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  # Products of 7 and 8 terms in float32.
  np.testing.assert_allclose(got["features"][:SIZE], features, rtol=1e-4, atol=1e-5)
  want = -log_p[np.arange(SIZE), labels]
  np.testing.assert_allclose(got["loss"][:SIZE], want, rtol=1e-4, atol=1e-5)
