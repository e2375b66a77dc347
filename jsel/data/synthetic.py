"""Made-up images of the shape of real sets, for runs that try out sizes and speeds."""

import numpy as np

from jsel.data.rows import checked_ids, checked_rows, describe

# name: (shape of a row, classes)
SHAPES = {"imagenet": ((224, 224, 3), 1000), "smoke": ((32, 32, 3), 10)}
GRID = 8  # each class is a picture of 8x8 colours
NOISE = 64  # grey levels


class SyntheticRows:
  """Images of uint8, each the picture of its class plus noise: learnable, and of no meaning.

  A row is a function of the seed and its id alone, on any machine and NumPy (raw bits of PCG64).

  Args:
    name: of `SHAPES`.
    size: number of rows.
    first: id of the first, so that two parts share classes but no row.
    seed: of pictures, labels and noise.

  >>> SyntheticRows("smoke", 4).take(np.array([3, 0]))["inputs"].shape
  (2, 32, 32, 3)
  """

  def __init__(self, name: str, size: int, *, first: int = 0, seed: int = 0):
    self.input_shape, self.classes = SHAPES[name]
    self.input_dtype, self.size, self.what = np.dtype(np.uint8), size, f"synthetic {name}"
    self._first, self._seed = first, seed
    channels = self.input_shape[2]
    levels = np.random.PCG64(seed).random_raw(self.classes * GRID * GRID * channels)
    pictures = (levels % (256 - NOISE)).astype(np.uint8)
    self._pictures = pictures.reshape(self.classes, GRID, GRID, channels)

  def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The examples ``ids`` (`Rows.take`)."""
    ids = checked_ids(ids, self.size, what=self.what)
    height, width, _ = self.input_shape
    inputs = np.empty((len(ids), *self.input_shape), np.uint8)
    labels = np.empty(len(ids), np.int64)
    values = inputs[0].size if len(ids) else 0
    for at, row in enumerate(ids):
      bits = np.random.PCG64([self._seed, self._first + int(row)]).random_raw(1 + -(-values // 8))
      labels[at] = bits[0] % self.classes
      # As little-endian bytes, so that a row is the same on every machine.
      noise = bits[1:].astype("<u8", copy=False).view(np.uint8)[:values] % NOISE
      picture = self._pictures[labels[at]].repeat(height // GRID, 0).repeat(width // GRID, 1)
      np.add(picture, noise.reshape(self.input_shape), out=inputs[at])
    return checked_rows(inputs, labels, ids, what=self.what, classes=self.classes)

  def __repr__(self) -> str:
    return f"SyntheticRows({self.what}, {describe(self)})"
