"""What a source gives: checked arrays on the host."""

import hashlib
from typing import NamedTuple

import numpy as np

from jsel.data.token_rows import check_tokens, is_tokens

# Rows looked at together: a memory-mapped file larger than memory is read in pieces.
BLOCK_ROWS = 8192


class Split(NamedTuple):
  """Examples and their classes; a row's id is its position."""

  # [n, d] float32 features, [n, h, w, c] uint8 or float32 images, or [n, l] int32 token ids
  inputs: np.ndarray
  labels: np.ndarray  # [n] int32 in [0, classes)


class Dataset(NamedTuple):
  """A data set on the host."""

  train: Split
  validation: Split | None  # cut from the train rows; None where the config asks for none
  test: Split
  classes: int
  name: str  # "digits", "fashion_mnist", ...
  source: str  # where the rows came from, for people
  scale: float  # inputs / scale is in [0, 1] for images: 255 or 16 for uint8; else 1
  sha256: str  # of shapes, dtypes and bytes of all inputs and labels in their order
  weights: np.ndarray | None = None  # [n] float32 of the losses of train, of mean 1; None: all 1
  source_rows: np.ndarray | None = None  # [n] of train, in the source; None: all of it in order


def checked(inputs: np.ndarray, labels: np.ndarray, *, what: str, classes: int = 0) -> Split:
  """``inputs`` and ``labels`` as a `Split`, or an error that names the first bad row.

  Args:
    inputs: ``[n, d]`` float32 features, ``[n, h, w]`` or ``[n, h, w, c]`` uint8 images, or float32
      images in [0, 1], to which a missing channel axis is added, or ``[n, l]`` int32 token ids,
      -1 for the padding after them.
    labels: ``[n]`` of any integer dtype.
    what: what the messages call these rows, e.g. "train.npz".
    classes: labels must be below it; 0 leaves them unbounded.

  Raises:
    ValueError: for a wrong dtype, shape or length, an empty set, a label out of range, NaN or
      Inf in features, float pixels outside of [0, 1], or rows that are no texts.

  >>> checked(np.zeros((2, 8, 8), np.uint8), np.array([0, 1]), what="mine").inputs.shape
  (2, 8, 8, 1)
  >>> checked(np.zeros((2, 3), np.float32), np.array([0, -1]), what="mine")
  Traceback (most recent call last):
  ValueError: mine: label -1 of row 1 is negative: classes are numbered from 0
  """
  if len(row_shape(inputs.shape, inputs.dtype, what=what)) == inputs.ndim:
    inputs = inputs[..., None]
  labels = checked_labels(labels, what=what, classes=classes)
  if len(labels) != len(inputs):
    raise ValueError(
      f"{what}: {len(inputs)} inputs but {len(labels)} labels: give one label for every row"
    )
  if inputs.dtype != np.uint8:
    check_values(inputs, what=what)
  return Split(inputs, labels)


def row_shape(shape: tuple[int, ...], dtype: np.dtype, *, what: str) -> tuple[int, ...]:
  """The shape of one row of inputs ``[n, ...]``, with a channel axis for images.

  Raises:
    ValueError: as `checked` does for dtype and shape.

  >>> row_shape((2, 8, 8), np.dtype(np.uint8), what="mine")
  (8, 8, 1)
  """
  if dtype not in (np.uint8, np.float32, np.int32):
    raise ValueError(
      f"{what}: inputs have dtype {dtype}: save features as float32, images as uint8 and token ids"
      " as int32"
    )
  axes = {np.dtype(np.uint8): (3, 4), np.dtype(np.float32): (2, 3, 4), np.dtype(np.int32): (2,)}
  if len(shape) not in axes[np.dtype(dtype)]:
    raise ValueError(
      f"{what}: inputs have shape {shape} and dtype {dtype}: expected features "
      "[n, d] in float32, images [n, h, w] or [n, h, w, c] in uint8 or token ids [n, l] in int32"
    )
  if 0 in shape:
    raise ValueError(f"{what}: inputs of shape {shape} are empty: give at least one row")
  return (*shape[1:], 1) if len(shape) == 3 else shape[1:]


def checked_labels(labels: np.ndarray, *, what: str, classes: int) -> np.ndarray:
  """``labels`` as int32 in [0, classes)."""
  if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f"{what}: labels have shape {labels.shape} and dtype {labels.dtype}: "
      "expected one integer a row, shape [n]"
    )
  negative = np.flatnonzero(labels < 0)
  if negative.size:
    row = int(negative[0])
    raise ValueError(
      f"{what}: label {labels[row]} of row {row} is negative: classes are numbered from 0"
    )
  bound = classes or np.iinfo(np.int32).max
  beyond = np.flatnonzero(labels >= bound)
  if beyond.size:
    row = int(beyond[0])
    raise ValueError(
      f"{what}: label {labels[row]} of row {row} is not below the number of classes, {bound}: "
      "correct the label or --config.data.classes"
    )
  return labels.astype(np.int32)


def check_values(inputs: np.ndarray, *, what: str) -> None:
  """Raises where float32 ``inputs`` are not finite or pixels outside of [0, 1], int32 no texts."""
  pixels = inputs.ndim == 4
  for start in range(0, len(inputs), BLOCK_ROWS):
    block = inputs[start : start + BLOCK_ROWS]
    if is_tokens(inputs.dtype):
      check_tokens(block, what=what, ids=start + np.arange(len(block)))
      continue
    good = (block >= 0) & (block <= 1) if pixels else np.isfinite(block)
    if good.all():
      continue
    row, *place = (int(i) for i in np.argwhere(~good)[0])
    value = block[(row, *place)]
    if pixels:
      raise ValueError(
        f"{what}: pixel {tuple(place)} of row {start + row} is {value}: "
        "float images must be in [0, 1], divide them or save them as uint8"
      )
    raise ValueError(
      f"{what}: column {place[0]} of row {start + row} is {value}: "
      "features must be finite, drop or repair the row"
    )


def fingerprint(*splits: Split | None) -> str:
  """SHA-256 of the splits in their order.

  >>> rows = Split(np.zeros((2, 3), np.float32), np.zeros(2, np.int32))
  >>> fingerprint(rows, None) == fingerprint(rows, rows)
  False
  """
  digest = hashlib.sha256()
  for split in splits:
    for array in split or ():
      # The header keeps [2, 3] apart from [3, 2], and a row moved from one split to the next.
      digest.update(f"{array.dtype.str}{array.shape}".encode())
      for start in range(0, len(array), BLOCK_ROWS):
        digest.update(np.ascontiguousarray(array[start : start + BLOCK_ROWS]))
    digest.update(b";")
  return digest.hexdigest()
