"""Random access to the examples of one split, whether they are in memory or not."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from jsel.data.arrays import Split, checked, fingerprint
from jsel.data.digest import combined
from jsel.data.token_rows import check_tokens, is_tokens

# What is read together by whoever reads all rows.
READ_ROWS, READ_BYTES = 1024, 1 << 25


class Rows(Protocol):
  """Examples that are read by their ids.

  An implementation imports no JAX, has a short ``repr``, can be read from several threads at once,
  and can be pickled without its open files: Grain's worker processes receive it that way.
  """

  size: int  # number of examples
  input_shape: tuple[int, ...]  # of one example: [d] features, [h, w, c] images or [l] token ids
  input_dtype: np.dtype  # uint8 images, float32, or int32 token ids

  def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The examples ``ids``, in their order.

    Args:
      ids: ``[b]`` of any integer dtype, in [0, size), in any order, repeats allowed.

    Returns:
      ``{"inputs": [b, *input_shape] of input_dtype, "labels": int32[b]}``, arrays of the caller's
      own.

    Raises:
      ValueError: for an id out of range, and for a row that is broken, whose label is no class or
        whose values are not finite, with the row's id.
    """
    ...


class RowsDataset(NamedTuple):
  """A data set that is read row by row; `jsel.data.arrays.Dataset` with Rows for its splits."""

  train: Rows
  validation: Rows | None  # None where the config asks for none
  test: Rows
  classes: int
  name: str  # "digits", "imagenet", ...
  source: str  # where the rows come from, for people
  scale: float  # inputs / scale is in [0, 1] for images: 255 or 16 for uint8; else 1
  sha256: str  # of the data; what goes into it, each source says
  weights: np.ndarray | None = None  # [n] float32 of the losses of train, of mean 1; None: all 1
  source_rows: np.ndarray | None = None  # [n] of train, in the source; None: all of it in order


class ArrayRows:
  """Rows of arrays that are in memory, or of memory maps.

  Pickling copies the arrays: `jsel.data.npy.NpyRows` hands the path of a file on instead.

  Args:
    inputs: ``[n, d]`` float32, ``[n, h, w, c]`` uint8 or float32, or ``[n, l]`` int32 token ids.
    labels: ``[n]`` of any integer dtype.
    what: what messages call these rows.
    classes: labels must be below it; 0 leaves them unbounded.

  >>> rows = ArrayRows(np.arange(6, dtype=np.float32).reshape(3, 2), np.array([0, 1, 0]))
  >>> rows.take(np.array([2, 0]))["inputs"].tolist()
  [[4.0, 5.0], [0.0, 1.0]]
  """

  def __init__(
    self, inputs: np.ndarray, labels: np.ndarray, *, what: str = "rows", classes: int = 0
  ):
    if len(inputs) != len(labels):
      raise ValueError(f"{what}: {len(inputs)} inputs but {len(labels)} labels: give one for each")
    self.size = len(inputs)
    self.input_shape = tuple(inputs.shape[1:])
    self.input_dtype = inputs.dtype
    self._inputs, self._labels = inputs, labels
    self.what, self._classes = what, classes

  def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The examples ``ids`` (`Rows.take`)."""
    ids = checked_ids(ids, self.size, what=self.what)
    return checked_rows(
      # An array of the caller's own, and a plain one of a memory map too.
      np.asarray(np.take(self._inputs, ids, axis=0)),
      np.asarray(np.take(self._labels, ids)),
      ids,
      what=self.what,
      classes=self._classes,
    )

  def labels(self) -> np.ndarray:
    """All labels, ``[n]`` int32."""
    return np.asarray(self._labels).astype(np.int32)

  def inputs(self) -> np.ndarray:
    """All inputs, ``[n, ...]``."""
    return self._inputs

  def sha256(self) -> str:
    """Of all bytes."""
    return fingerprint(Split(self._inputs, self.labels()))

  def __repr__(self) -> str:
    return f"ArrayRows({self.what}, {describe(self)})"


class SubsetRows:
  """The rows ``ids`` of other rows, numbered from 0.

  Messages about a broken row give its number in the rows that it comes from.

  >>> rows = ArrayRows(np.arange(4, dtype=np.float32)[:, None], np.array([0, 1, 0, 1]))
  >>> SubsetRows(rows, np.array([1, 3])).take(np.array([1]))["inputs"].tolist()
  [[3.0]]
  """

  def __init__(self, rows: Rows, ids: np.ndarray):
    ids = checked_ids(ids, rows.size, what=repr(rows))
    self.size = len(ids)
    self.input_shape, self.input_dtype = rows.input_shape, rows.input_dtype
    self._rows = rows
    self.image_size = getattr(rows, "image_size", 0)  # of encoded images
    self._ids = ids.astype(np.int32 if rows.size < 2**31 else np.int64)

  def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The examples ``ids`` (`Rows.take`)."""
    return self._rows.take(self._ids[checked_ids(ids, self.size, what=repr(self))])

  def encoded(self, ids: np.ndarray) -> list[bytes]:
    """The bytes of the images ``ids`` as they are.

    Raises:
      ValueError: if the rows are no encoded images.
    """
    if not hasattr(self._rows, "encoded"):
      raise ValueError(f"{self._rows!r} holds arrays, no encoded images")
    return self._rows.encoded(self._ids[checked_ids(ids, self.size, what=repr(self))])

  def labels(self) -> np.ndarray:
    """All labels, ``[n]`` int32."""
    return read_labels(self._rows)[self._ids]

  def sha256(self) -> str:
    """Of the ids and the hash of the rows that they are of."""
    whole = self._rows.sha256()  # pyrefly: ignore[missing-attribute]
    ids = hashlib.sha256(self._ids.astype("<i8").tobytes()).hexdigest()
    return combined("subset", whole, ids)

  def origin(self) -> tuple[np.ndarray, int]:
    """Their numbers, ``[n]``, where they come from in the end, and how many rows that has."""
    if not isinstance(self._rows, SubsetRows):
      return self._ids, self._rows.size
    ids, size = self._rows.origin()
    return ids[self._ids], size

  def __repr__(self) -> str:
    return f"SubsetRows({self._rows!r}, {self.size:,} of them)"


def read_labels(rows: Rows) -> np.ndarray:
  """The labels of all rows, ``[n]`` int32, without the inputs where the source can do that.

  >>> read_labels(ArrayRows(np.zeros((2, 3), np.float32), np.array([1, 0]))).tolist()
  [1, 0]
  """
  if hasattr(rows, "labels"):
    return rows.labels()
  return np.concatenate([rows.take(ids)["labels"] for ids in blocks(rows)])


def read_all(rows: Rows) -> Split:
  """All rows as checked arrays, in memory or memory-mapped where the source is.

  >>> read_all(ArrayRows(np.zeros((2, 3), np.float32), np.array([1, 0]))).labels.tolist()
  [1, 0]
  """
  if hasattr(rows, "inputs"):
    return checked(rows.inputs(), read_labels(rows), what=getattr(rows, "what", repr(rows)))
  inputs = np.empty((rows.size, *rows.input_shape), rows.input_dtype)
  labels = np.empty(rows.size, np.int32)
  for ids in blocks(rows):
    batch = rows.take(ids)
    inputs[ids[0] : ids[-1] + 1], labels[ids[0] : ids[-1] + 1] = batch["inputs"], batch["labels"]
  return Split(inputs, labels)


def blocks(rows: Rows, start: int = 0, end: int | None = None) -> Iterator[np.ndarray]:
  """The ids [start, end) (to the last if None), as many at a time as are 32 MiB, 1024 at most.

  >>> [len(ids) for ids in blocks(ArrayRows(np.zeros((1500, 1), np.float32), np.zeros(1500, int)))]
  [1024, 476]
  """
  row_bytes = int(np.prod(rows.input_shape)) * np.dtype(rows.input_dtype).itemsize
  count = max(1, min(READ_ROWS, READ_BYTES // row_bytes))
  end = rows.size if end is None else end
  for first in range(start, end, count):
    yield np.arange(first, min(first + count, end))


def describe(rows: Rows) -> str:
  """Number, shape and dtype, for a ``repr``."""
  return f"{rows.size:,} x {list(rows.input_shape)} {np.dtype(rows.input_dtype).name}"


def checked_ids(ids: np.ndarray, size: int, *, what: str) -> np.ndarray:
  """``ids`` as an array of integers in [0, size), or an error that names the first that is not."""
  ids = np.asarray(ids)
  if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
    raise ValueError(f"{what}: ids have shape {ids.shape} and dtype {ids.dtype}, expected int[b]")
  if ids.size and (ids.min() < 0 or ids.max() >= size):
    bad = ids[(ids < 0) | (ids >= size)][0]
    raise ValueError(f"{what}: there is no row {bad}: ids are from 0 to {size - 1}")
  return ids


def checked_rows(
  inputs: np.ndarray, labels: np.ndarray, ids: np.ndarray, *, what: str, classes: int
) -> dict[str, np.ndarray]:
  """A batch as `Rows.take` returns it, or an error that names the first row which is broken.

  Args:
    inputs: ``[b, ...]`` uint8, float32 or int32.
    labels: ``[b]`` of any integer dtype.
    ids: ``[b]`` what messages call the rows.
    what: what messages call the source.
    classes: labels must be in [0, classes); 0 leaves them unbounded above.
  """
  bound = classes or np.iinfo(np.int32).max
  if labels.size and (labels.min() < 0 or labels.max() >= bound):
    row = int(np.flatnonzero((labels < 0) | (labels >= bound))[0])
    raise ValueError(
      f"{what}: label {labels[row]} of row {ids[row]} is not in [0, {bound}): correct the label"
      " or --config.data.classes"
    )
  if is_tokens(inputs.dtype):
    check_tokens(inputs, what=what, ids=ids)
  if inputs.dtype == np.float32:
    pixels = inputs.ndim == 4
    good = (inputs >= 0) & (inputs <= 1) if pixels else np.isfinite(inputs)
    if not good.all():
      row, *place = (int(i) for i in np.argwhere(~good)[0])
      where = f"pixel {tuple(place)}" if pixels else f"column {place[0]}"
      remedy = (
        "float images must be in [0, 1], divide them or save them as uint8"
        if pixels
        else "features must be finite, drop or repair the row"
      )
      raise ValueError(f"{what}: {where} of row {ids[row]} is {inputs[(row, *place)]}: {remedy}")
  return {"inputs": inputs, "labels": labels.astype(np.int32)}
