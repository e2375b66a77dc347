"""Inputs brought to zero mean and unit deviation by the statistics of the training set."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jsel.data import moments
from jsel.data.arrays import Dataset
from jsel.data.rows import ArrayRows, RowsDataset
from jsel.data.token_rows import is_tokens


def normalizer(dataset: Dataset | RowsDataset) -> Callable[[jax.Array], jax.Array]:
  """``inputs -> float32``, by one mean and deviation a channel of images or a column of features.

  A constant channel or column becomes 0. The statistics are of all train rows: a prepared set has
  them stored, of other rows every one is read. Token ids are names and no numbers: they stay int32
  as they are.
  """
  rows = ArrayRows(*dataset.train) if isinstance(dataset, Dataset) else dataset.train
  if is_tokens(rows.input_dtype):
    return lambda inputs: inputs
  found = moments.of_rows(rows)
  one_row = (1,) * len(rows.input_shape)
  fit = lambda x: (x / dataset.scale).astype(np.float32).reshape(*one_row, -1)
  mean, deviation = fit(found.mean), fit(found.deviation)
  inverse = np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1), 0)
  scale = np.float32(dataset.scale)
  inverse = inverse.astype(np.float32)
  return lambda inputs: (inputs.astype(jnp.float32) / scale - mean) * inverse
