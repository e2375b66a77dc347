"""Inputs brought to zero mean and unit deviation by the statistics of the training set."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jsel.data.arrays import Dataset


def normalizer(dataset: Dataset) -> Callable[[jax.Array], jax.Array]:
  """``inputs -> float32``, by one mean and deviation a channel of images or a column of features.

  A constant channel or column becomes 0.
  """
  inputs = dataset.train.inputs
  over = tuple(range(inputs.ndim - 1)) if inputs.ndim == 4 else (0,)
  one_row = (1,) * (inputs.ndim - 1)
  fit = lambda x: (x / dataset.scale).astype(np.float32).reshape(*one_row, -1)
  mean = fit(inputs.mean(over, dtype=np.float64))
  deviation = fit(inputs.std(over, dtype=np.float64))
  inverse = np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1), 0)
  scale = np.float32(dataset.scale)
  inverse = inverse.astype(np.float32)
  return lambda inputs: (inputs.astype(jnp.float32) / scale - mean) * inverse
