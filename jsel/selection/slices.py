"""Arrays in files, of which ranges of rows are read."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from jsel.data import files, numpy_files
from jsel.training.amounts import readable


class Slices:
  """An array of which rows are read when they are asked for, ``x[start:stop]``."""

  def __init__(
    self, shape: tuple[int, ...], dtype: np.dtype, read: Callable[[int, int], np.ndarray]
  ):
    self.shape, self.dtype, self.ndim = tuple(shape), dtype, len(shape)
    self._read = read

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, rows: slice) -> np.ndarray:
    start, stop, _ = rows.indices(self.shape[0])
    return self._read(start, stop)


def npy_rows(path: str) -> np.ndarray | Slices:
  """The array of an npy file: a memory map, or ranges of bytes of an object store.

  Raises:
    ValueError: if the file is missing, broken, or holds Python objects.
  """
  if not files.is_remote(path):
    return numpy_files.read_npy(path)
  layout = numpy_files.npy_layout(path)
  row = int(np.prod(layout.shape[1:])) * layout.dtype.itemsize

  def read(start: int, stop: int) -> np.ndarray:
    edges = [layout.offset + start * row], [layout.offset + stop * row]
    raw = files.read_ranges(path, *edges)[0]
    return np.frombuffer(raw, layout.dtype).reshape(stop - start, *layout.shape[1:])

  return Slices(layout.shape, layout.dtype, read)


def safetensors_arrays(path: str) -> tuple[list[str], Callable[[str], Any]]:
  """The names in a safetensors file, and what gives the array of one; in memory if it is remote.

  Raises:
    ValueError: if the file is broken.
  """
  from safetensors import SafetensorError, safe_open  # an extra
  from safetensors.numpy import load

  try:
    if files.is_remote(path):
      arrays = load(files.read(path))
      return list(arrays), arrays.__getitem__
    with files.reading(path):
      opened = safe_open(path, framework="np")
  except SafetensorError as error:
    raise ValueError(f"{path} is broken or cut short ({error}): write it again") from error

  def array(name: str) -> Slices:
    rows = opened.get_slice(name)
    first = rows[:1]
    return Slices(tuple(rows.get_shape()), first.dtype, lambda start, stop: rows[start:stop])

  return list(opened.keys()), array


def npz_arrays(path: str) -> tuple[list[str], Callable[[str], np.ndarray]]:
  """The names in an npz archive, and what gives the array of one, which is read whole.

  Raises:
    ValueError: if the file is broken, or larger than memory.
  """
  sizes = numpy_files.npz_sizes(path)
  largest, memory = max(sizes.values(), default=0), memory_bytes()
  if largest > memory:
    raise ValueError(
      f"{path}: arrays of an npz are read whole, one has {readable(largest)} and there are"
      f" {readable(memory)}: save it as .npy or .safetensors, of which rows are read as needed"
    )
  return list(sizes), lambda name: numpy_files.read_npz(path, (name,))[0]


def memory_bytes() -> int:
  """Of this machine."""
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
