"""Arrays from npy and npz files; nothing is ever unpickled."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

NPY, ZIP = b"\x93NUMPY", b"PK"  # how the files begin
# What NumPy and zipfile raise for files that are cut short or changed.
BROKEN = (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)


def read_npy(path: Path) -> np.ndarray:
  """The array in ``path``, memory-mapped.

  Raises:
    ValueError: if the file is missing, broken, or holds Python objects.
  """
  if beginning(path).startswith(ZIP):
    raise ValueError(f"{path} is no npy file but an archive: name it .npz")
  try:
    return np.lib.format.open_memmap(path, mode="r")
  except BROKEN as error:
    raise ValueError(reason(path, error)) from error


def read_npz(path: Path, names: tuple[str, ...]) -> list[np.ndarray]:
  """The arrays ``names`` of the archive ``path``.

  Raises:
    ValueError: if the file is missing or broken, lacks an array, or an array holds objects.
  """
  if beginning(path).startswith(NPY):
    raise ValueError(f"{path} is no npz archive but one array: name it .npy")
  # Opened here, because np.load leaves a broken archive open.
  with path.open("rb") as file:
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


def beginning(path: Path) -> bytes:
  """The first bytes of ``path``, those of an npy file or of an archive."""
  if not path.is_file():
    raise ValueError(f"there is no file {path}: correct the path")
  with path.open("rb") as file:
    start = file.read(len(NPY))
  if not start.startswith((NPY, ZIP)):
    raise ValueError(
      f"{path} is no npy or npz file, and pickles are never read: use np.save or np.savez"
    )
  return start


def reason(path: Path, error: BaseException) -> str:
  """What to tell of a file that NumPy would not read."""
  text = " ".join(str(error).split())
  if "Object arrays" in text or "Python objects" in text:
    return f"{path} holds Python objects, which are never unpickled: save numbers of one dtype"
  return f"{path} is broken or cut short ({text}): write it again"
