"""Files that are on this machine or in an object store (gs://, s3://), through fsspec."""

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import IO, Any

import fsspec

# The extra of this package that brings fsspec's driver for an address.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def is_remote(path: str) -> bool:
  """Whether ``path`` is in an object store.

  >>> is_remote("gs://bucket/train.parquet"), is_remote("data/train.parquet")
  (True, False)
  """
  return "://" in path


def join(folder: str, *names: str) -> str:
  """``folder/name/...``, also of an address.

  >>> join("s3://bucket/set/", "train", "info.json")
  's3://bucket/set/train/info.json'
  """
  return "/".join([folder.rstrip("/"), *names])


def filesystem(path: str) -> tuple[Any, str]:
  """fsspec's file system of ``path``, and the path as that wants it.

  Raises:
    ValueError: if the kind of address is unknown or its driver is not installed.
  """
  if not is_remote(path):
    path = os.path.abspath(os.path.expanduser(path))
  scheme = path.split("://", 1)[0]
  try:
    return fsspec.url_to_fs(path)
  except ImportError as error:
    extra = EXTRAS.get(scheme)
    remedy = f"pip install 'jsel[{extra}]'" if extra else f"install its driver ({error})"
    raise ValueError(f"{path}: the driver of {scheme}:// is not installed: {remedy}") from error
  except ValueError as error:
    raise ValueError(
      f"{path}: fsspec knows no {scheme}://, use gs://, s3:// or a local path"
    ) from error


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
  """Turns what a file system raises into one line that names ``path``."""
  try:
    yield
  except FileNotFoundError as error:
    raise ValueError(f"there is no file {path}: correct the path") from error
  except IsADirectoryError as error:
    raise ValueError(f"{path} is a folder, expected a file") from error
  except PermissionError as error:
    raise ValueError(f"{path} may not be read ({error}): check its permissions") from error
  except Exception as error:  # each driver has errors of its own
    if not is_remote(path):
      raise
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    raise ValueError(
      f"{path} cannot be reached ({text}): check the address, the credentials and the network"
    ) from error


def expand(patterns: str, *, remedy: str) -> list[str]:
  """The paths that ``patterns`` names: paths or globs, separated by commas, a glob's sorted.

  Args:
    patterns: as the user gave it.
    remedy: what messages advise where nothing is found.

  Raises:
    ValueError: if a pattern matches nothing.
  """
  paths = []
  for pattern in (piece.strip() for piece in patterns.split(",")):
    system, inner = filesystem(pattern)
    with reading(pattern):
      system.invalidate_cache()  # listings are kept, and another process may have written since
      if glob.has_magic(inner):
        found = sorted(system.glob(inner))
      else:
        found = [inner] if system.exists(inner) else []
    if not found:
      raise ValueError(f"there is no {pattern}: {remedy}")
    paths += [system.unstrip_protocol(path) if is_remote(pattern) else path for path in found]
  return paths


def is_folder(path: str) -> bool:
  """Whether ``path`` is a folder, or has keys below it."""
  system, inner = filesystem(path)
  with reading(path):
    return system.isdir(inner)


def exists(path: str) -> bool:
  """Whether there is a file or folder ``path``."""
  system, inner = filesystem(path)
  with reading(path):
    system.invalidate_cache()
    return system.exists(inner)


def size(path: str) -> int:
  """Bytes of the file ``path``."""
  system, inner = filesystem(path)
  with reading(path):
    info = system.info(inner)
  if info["type"] == "directory":
    raise ValueError(f"{path} is a folder, expected a file")
  return int(info["size"])


def read(path: str) -> bytes:
  """The whole file."""
  system, inner = filesystem(path)
  with reading(path):
    return system.cat_file(inner)


def read_ranges(path: str, starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
  """The bytes [start, stop) of ``path``, all ranges at once where the driver can do that."""
  system, inner = filesystem(path)
  with reading(path):
    pieces = system.cat_ranges([inner] * len(starts), list(starts), list(stops), on_error="raise")
  return [bytes(piece) for piece in pieces]


def read_many(paths: Sequence[str]) -> list[bytes]:
  """The whole of each file, all at once where the driver can do that."""
  if not paths:
    return []
  if not is_remote(paths[0]):
    pieces = []
    for path in paths:
      with reading(path), open(path, "rb") as file:
        pieces.append(file.read())
    return pieces
  whole = [None] * len(paths)
  system, _ = filesystem(paths[0])
  inner = [filesystem(path)[1] for path in paths]
  with reading(paths[0] if len(paths) == 1 else f"one of {paths[0]} to {paths[-1]}"):
    # Not cat, which takes brackets in a name for a glob.
    return [bytes(piece) for piece in system.cat_ranges(inner, whole, whole, on_error="raise")]


def open_file(path: str) -> IO[bytes]:
  """``path`` opened for reading at random places: what is asked for is read, and no more."""
  system, inner = filesystem(path)
  with reading(path):
    return system.open(inner, "rb", cache_type="none")


def find(folder: str) -> dict[str, int]:
  """The files in ``folder`` and in its folders, by path relative to it, and their bytes; sorted."""
  system, inner = filesystem(folder)
  if not is_remote(folder):
    # Not fsspec's listing, which takes a kilobyte a file.
    found = dict(list_local(inner)) if os.path.isdir(inner) else {}
    return {path: found[path] for path in sorted(found)}
  with reading(folder):
    system.invalidate_cache()
    infos = system.find(inner, detail=True)
  start = len(inner.rstrip("/")) + 1
  return {path[start:]: int(infos[path]["size"]) for path in sorted(infos)}


def list_local(folder: str, prefix: str = "") -> Iterator[tuple[str, int]]:
  """Path relative to ``folder`` and bytes of its files and, if no prefix is given, its folders'."""
  with os.scandir(folder) as entries:
    for entry in entries:
      if entry.is_file():
        yield f"{prefix}{entry.name}", entry.stat().st_size
      elif not prefix and entry.is_dir():
        yield from list_local(entry.path, f"{entry.name}/")


def put(local: str, path: str) -> None:
  """Puts the file ``local`` at the address ``path`` whole: readers see all of it or nothing.

  An object store shows a key when its upload is complete.
  """
  system, inner = filesystem(path)
  with reading(path):
    system.put_file(local, inner)


def remove(path: str) -> None:
  """Deletes the file ``path``, or the local folder."""
  system, inner = filesystem(path)
  if not is_remote(path) and os.path.isdir(inner):
    shutil.rmtree(inner)
    return
  with reading(path):
    system.rm_file(inner)
