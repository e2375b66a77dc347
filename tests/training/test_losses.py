"""The classification loss: label smoothing against its definition, and what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsel.models import Outputs
from jsel.training.losses import classification

ROWS, FEATURES, CLASSES = 6, 4, 5


@pytest.fixture(autouse=True)
def _standard_promotion():
  # Optax does not keep to strict promotion itself.
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


@pytest.fixture
def batch(rng):
  features = rng.standard_normal((ROWS, FEATURES)).astype(np.float32)
  kernel = rng.standard_normal((FEATURES, CLASSES)).astype(np.float32)
  return features, kernel, rng.integers(0, CLASSES, ROWS).astype(np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_with_the_smoothed_target(batch, smoothing):
  features, kernel, labels = batch
  found = classification(Outputs(features @ kernel, features), labels, label_smoothing=smoothing)
  logits = np.float64(features @ kernel)
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  target = np.full((ROWS, CLASSES), smoothing / CLASSES)
  target[np.arange(ROWS), labels] += 1 - smoothing
  np.testing.assert_allclose(found["loss"], -(target * log_p).sum(1), rtol=1e-5)
  # What selectors are told of the label is not smoothed.
  np.testing.assert_allclose(
    found["probability"], np.exp(log_p)[np.arange(ROWS), labels], rtol=1e-5
  )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_grad_norm_is_that_of_the_loss_by_the_last_layer(batch, smoothing):
  features, kernel, labels = batch

  def loss(layer, row):
    outputs = Outputs(features[row][None] @ layer[0] + layer[1], features[row][None])
    return classification(outputs, labels[row][None], label_smoothing=smoothing)["loss"][0]

  found = classification(Outputs(features @ kernel, features), labels, label_smoothing=smoothing)
  for row in range(ROWS):
    gradient = jax.grad(loss)((jnp.asarray(kernel), jnp.zeros((1, CLASSES))), row)
    norm = np.sqrt(sum(np.sum(np.float64(leaf) ** 2) for leaf in gradient))
    np.testing.assert_allclose(found["grad_norm"][row], norm, rtol=1e-5)


def test_a_smoothing_of_all_is_refused(batch):
  features, kernel, labels = batch
  with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\), got 1"):
    classification(Outputs(features @ kernel, features), labels, label_smoothing=1.0)
