"""The idx format of the MNIST family, raw or gzipped, read without trusting it."""

import gzip
import math
import zlib
from pathlib import Path
from typing import IO

import numpy as np

# Third byte of the magic number -> element type; idx is big-endian.
DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
CHUNK = 1 << 20


def read(path: Path, *, ndim: int) -> np.ndarray:
  """The array in the idx file ``path`` (gunzipped if its name ends in .gz), in native byte order.

  Memory is taken for bytes that are there, never for what the header claims.

  Raises:
    ValueError: if the file is no idx file of ``ndim`` dimensions, is cut short or too long, or
      is broken gzip; names the file and the numbers.
  """
  try:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
      return parse(file, ndim=ndim, what=path.name)
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise ValueError(
      f"{path} is not a whole gzip file ({error}): fetch or install it again"
    ) from error


def parse(file: IO[bytes], *, ndim: int, what: str) -> np.ndarray:
  """The array in an open idx file."""
  header = file.read(4 + 4 * ndim)
  if len(header) < 4 or header[:2] != b"\0\0" or header[2] not in DTYPES:
    raise ValueError(
      f"{what} is no idx file: it begins with 0x{header[:4].hex()}, expected 0x0000, a type of "
      f"{', '.join(f'0x{code:02x}' for code in DTYPES)} and the number of dimensions"
    )
  if header[3] != ndim:
    raise ValueError(
      f"{what} has {header[3]} dimensions, expected {ndim}: are images and labels swapped?"
    )
  if len(header) < 4 + 4 * ndim:
    raise ValueError(
      f"{what} is cut short in its header: expected {4 + 4 * ndim} bytes, got {len(header)}"
    )
  dtype = np.dtype(DTYPES[header[2]])
  shape = tuple(int(size) for size in np.frombuffer(header, ">u4", offset=4))
  expected = math.prod(shape) * dtype.itemsize
  body = bytearray()
  # One byte more than expected is asked for, so that a file that is too long shows.
  while len(body) <= expected and (piece := file.read(min(CHUNK, expected + 1 - len(body)))):
    body += piece
  if len(body) != expected:
    actual = f"more than {expected}" if len(body) > expected else f"{len(body)}"
    raise ValueError(
      f"{what} claims shape {shape}, expected {expected} bytes after the header, got {actual}: "
      "fetch or install it again"
    )
  return np.frombuffer(body, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
