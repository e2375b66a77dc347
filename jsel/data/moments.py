"""Mean and deviation of each channel of images or column of features, a block of rows at a time."""

from typing import NamedTuple

import numpy as np

from jsel.data.rows import Rows, blocks


class Moments(NamedTuple):
  """Count, mean and summed squared distance from it; start with `empty`."""

  count: int  # values of each channel or column
  mean: np.ndarray  # [c] or [d] float64
  squares: np.ndarray  # [c] or [d] float64

  @property
  def deviation(self) -> np.ndarray:
    """Standard deviation, ``[c]`` or ``[d]`` float64."""
    return np.sqrt(self.squares / self.count)


def empty(input_shape: tuple[int, ...]) -> Moments:
  """Of no rows.

  >>> moments = update(empty((2,)), np.array([[1.0, 0.0], [3.0, 0.0]], np.float32))
  >>> moments.mean.tolist(), moments.deviation.tolist()
  ([2.0, 0.0], [1.0, 0.0])
  """
  return Moments(0, np.zeros(input_shape[-1]), np.zeros(input_shape[-1]))


def update(moments: Moments, inputs: np.ndarray) -> Moments:
  """``moments`` with those of the rows ``inputs`` ``[b, d]`` or ``[b, h, w, c]`` added.

  References:
    Chan, Golub, LeVeque, *Algorithms for computing the sample variance*, 1983.
  """
  values = inputs.reshape(-1, inputs.shape[-1])
  count = len(values)
  if inputs.dtype == np.uint8:
    # Exact, and eight times as fast as sums in float64.
    levels = np.arange(256.0)
    counts = np.stack([np.bincount(channel, minlength=256) for channel in values.T])
    mean = counts @ levels / count
    squares = (counts * (levels - mean[:, None]) ** 2).sum(1)
  else:
    mean = values.mean(0, dtype=np.float64)
    squares = values.var(0, dtype=np.float64) * count
  total = moments.count + count
  apart = mean - moments.mean
  return Moments(
    total,
    moments.mean + apart * (count / total),
    moments.squares + squares + apart**2 * (moments.count * count / total),
  )


def of_rows(rows: Rows) -> Moments:
  """Of all rows: what a prepared set has stored, else by reading every row once."""
  if hasattr(rows, "moments"):
    stored = rows.moments()
    if stored is not None:
      return stored
  moments = empty(rows.input_shape)
  for ids in blocks(rows):
    moments = update(moments, rows.take(ids)["inputs"])
  return moments
