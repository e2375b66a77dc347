"""Rows of npy files, which stay where they are: memory maps, or byte ranges of an object store."""

from typing import Any

import numpy as np

from jsel.data import files, numpy_files
from jsel.data.arrays import checked_labels, row_shape
from jsel.data.digest import combined, files_sha256
from jsel.data.rows import checked_ids, checked_rows, describe


class NpyRows:
  """Rows of an npy file of inputs and one of labels (which are read whole, 4 bytes a row).

  A local file is memory-mapped, once in every process. Of a file in an object store each row is a
  range of bytes; neighbours among the ids are read as one. The hash is of the names, sizes and
  edges of both files (`digest.files_sha256`).

  Args:
    inputs: path of ``[n, d]`` float32, ``[n, h, w]`` or ``[n, h, w, c]`` uint8 or float32, or
      ``[n, l]`` int32 token ids.
    labels: path of ``[n]`` of any integer dtype.
    classes: labels must be below it; 0 leaves them unbounded.

  Raises:
    ValueError: if a file is missing or broken, or an array is not of such a kind.
  """

  def __init__(self, inputs: str, labels: str, *, classes: int = 0):
    self._path, self._labels_path, self._classes = inputs, labels, classes
    self.what = inputs.rsplit("/", 1)[-1]
    self._layout: numpy_files.Layout | None = None
    self._map: np.ndarray | None = None
    if files.is_remote(inputs):
      self._layout = numpy_files.npy_layout(inputs)
      shape, dtype = self._layout.shape, self._layout.dtype
    else:
      self._map = numpy_files.read_npy(inputs)
      shape, dtype = self._map.shape, self._map.dtype
    self.input_shape = row_shape(shape, dtype, what=self.what)
    self.input_dtype, self.size = dtype, shape[0]
    labels_array = numpy_files.read_npy(labels)
    self._labels = checked_labels(labels_array, what=self.what, classes=classes)
    if len(self._labels) != self.size:
      raise ValueError(
        f"{self.what}: {self.size} inputs but {len(self._labels)} labels: give one label for"
        " every row"
      )

  def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The examples ``ids`` (`Rows.take`)."""
    ids = checked_ids(ids, self.size, what=self.what)
    inputs = np.take(self._mapped(), ids, axis=0) if self._layout is None else self._fetch(ids)
    inputs = np.asarray(inputs).reshape(len(ids), *self.input_shape)
    return checked_rows(inputs, self._labels[ids], ids, what=self.what, classes=self._classes)

  def labels(self) -> np.ndarray:
    """All labels, ``[n]`` int32."""
    return self._labels

  def inputs(self) -> np.ndarray:
    """All inputs, ``[n, ...]``: the memory map of a local file, else read into memory."""
    array = numpy_files.read_npy(self._path) if self._layout else self._mapped()
    return array if array.ndim == len(self.input_shape) + 1 else array[..., None]

  def sha256(self) -> str:
    """Of both files' names, sizes and edges."""
    return combined("npy", files_sha256([self._path, self._labels_path]))

  def _mapped(self) -> np.ndarray:
    if self._map is None:
      self._map = numpy_files.read_npy(self._path)
    return self._map

  def _fetch(self, ids: np.ndarray) -> np.ndarray:
    """Rows by ranges of bytes; ids that follow each other, in any order, share a range."""
    assert self._layout is not None
    dtype, offset = self._layout.dtype, self._layout.offset
    row_bytes = int(np.prod(self._layout.shape[1:])) * dtype.itemsize
    wanted, back = np.unique(ids, return_inverse=True)
    breaks = np.flatnonzero(np.diff(wanted) != 1) + 1
    runs = [run for run in np.split(wanted, breaks) if run.size]
    starts = [offset + int(run[0]) * row_bytes for run in runs]
    stops = [offset + (int(run[-1]) + 1) * row_bytes for run in runs]
    pieces = files.read_ranges(self._path, starts, stops)
    rows = np.frombuffer(b"".join(pieces), dtype).reshape(len(wanted), *self._layout.shape[1:])
    return rows[back]

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {"_map": None}  # the map of a file is made anew in another process

  def __repr__(self) -> str:
    return f"NpyRows({self.what}, {describe(self)})"
