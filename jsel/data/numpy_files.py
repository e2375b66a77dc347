"""Arrays from npy and npz files; nothing is ever unpickled."""

import io
import math
import os
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from jsel.data import files

NPY, ZIP = b"\x93NUMPY", b"PK"  # how the files begin
# What NumPy and zipfile raise for files that are cut short or changed.
BROKEN = (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)
HEADER = 1 << 14  # bytes; NumPy itself refuses a header of more than 10,000


class Layout(NamedTuple):
  """Where the array of an npy file lies in it."""

  shape: tuple[int, ...]
  dtype: np.dtype
  offset: int  # bytes before the first element; elements are in C order


def read_npy(path: str | os.PathLike[str]) -> np.ndarray:
  """The array in ``path``, memory-mapped; read into memory from an object store.

  Raises:
    ValueError: if the file is missing, broken, or holds Python objects.
  """
  path = os.fspath(path)
  if beginning(path).startswith(ZIP):
    raise ValueError(f"{path} is no npy file but an archive: name it .npz")
  try:
    if files.is_remote(path):
      return np.load(io.BytesIO(files.read(path)), allow_pickle=False)
    return np.lib.format.open_memmap(path, mode="r")
  except BROKEN as error:
    raise ValueError(reason(path, error)) from error


def npy_layout(path: str) -> Layout:
  """Shape, dtype and offset of the npy file ``path`` from its first bytes.

  Raises:
    ValueError: as `read_npy`, and if the array is in Fortran order, whose rows are scattered.
  """
  size = files.size(path)
  start = io.BytesIO(files.read_ranges(path, [0], [min(size, HEADER)])[0])
  if beginning(path).startswith(ZIP):
    raise ValueError(f"{path} is no npy file but an archive: name it .npz")
  try:
    version = np.lib.format.read_magic(start)
    if version not in ((1, 0), (2, 0)):
      raise ValueError(f"version {version} of the npy format")
    read_header = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, is_fortran, dtype = read_header(start)
    if dtype.hasobject:
      raise ValueError("Object arrays")
    expected = start.tell() + math.prod(shape) * dtype.itemsize
    if size != expected:
      raise ValueError(f"it has {size} bytes, its header says {expected}")
  except BROKEN as error:
    raise ValueError(reason(path, error)) from error
  if is_fortran and len(shape) > 1:
    raise ValueError(f"{path} is in Fortran order: save np.ascontiguousarray of it")
  return Layout(shape, dtype, start.tell())


def read_npz(path: str | os.PathLike[str], names: tuple[str, ...]) -> list[np.ndarray]:
  """The arrays ``names`` of the archive ``path``, in memory.

  Raises:
    ValueError: if the file is missing or broken, lacks an array, or an array holds objects.
  """
  path = os.fspath(path)
  if beginning(path).startswith(NPY):
    raise ValueError(f"{path} is no npz archive but one array: name it .npy")
  # Opened here, because np.load leaves a broken archive open.
  with io.BytesIO(files.read(path)) if files.is_remote(path) else open(path, "rb") as file:
    try:
      archive = np.load(file, allow_pickle=False)
      absent = [name for name in names if name not in archive.files]
      arrays = [] if absent else [archive[name] for name in names]
    except BROKEN as error:
      raise ValueError(reason(path, error)) from error
  if absent:
    raise ValueError(
      f"{path} has no array {absent[0]!r}: expected {', '.join(names)}, "
      f"got {', '.join(archive.files) or 'none'}"
    )
  return arrays


def npz_sizes(path: str) -> dict[str, int]:
  """The arrays in the archive ``path`` by name, and their bytes in memory.

  Raises:
    ValueError: if the file is missing or broken.
  """
  try:
    with files.open_file(path) as file, zipfile.ZipFile(file) as archive:
      return {m.filename.removesuffix(".npy"): m.file_size for m in archive.infolist()}
  except BROKEN as error:
    raise ValueError(reason(path, error)) from error


def beginning(path: str) -> bytes:
  """The first bytes of ``path``, those of an npy file or of an archive."""
  start = files.read_ranges(path, [0], [min(len(NPY), files.size(path))])[0]
  if not start.startswith((NPY, ZIP)):
    raise ValueError(
      f"{path} is no npy or npz file, and pickles are never read: use np.save or np.savez"
    )
  return start


def reason(path: str, error: BaseException) -> str:
  """What to tell of a file that NumPy would not read."""
  text = " ".join(str(error).split())
  if "Object arrays" in text or "Python objects" in text:
    return f"{path} holds Python objects, which are never unpickled: save numbers of one dtype"
  return f"{path} is broken or cut short ({text}): write it again"
