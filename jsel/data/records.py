"""The form of a prepared set: what a record holds, and what info.json says of a part.

A part of a set (train, validation or test) is a folder:

    train-00000-of-00008.array_record ...   the rows in order, a record each, group_size 1
    labels.npy                              int32[n], so that labels are known without the inputs
    info.json                               written last: a folder without it is not complete

A record is 8 bytes of header, the four bytes ``jsr1`` and the label as little-endian int32, and the
row. With encoding "raw" the row is the bytes of its array, little-endian in C order, of the shape
and dtype that info.json has; with "image" it is a PNG or JPEG file as it was, decoded when it is
read. Nothing in it is ever unpickled or executed.
"""

import struct
from typing import Any, NamedTuple

import numpy as np

MAGIC = b"jsr1"
HEADER = struct.Struct("<4si")
FORMAT, VERSION = "jsel.array_record", 1
ENCODINGS = ("raw", "image")
PARTS = ("train", "validation", "test")


class Shard(NamedTuple):
  """A file of records."""

  file: str  # name in the folder
  rows: int
  bytes: int
  sha256: str  # of the file


class Info(NamedTuple):
  """What info.json says."""

  name: str  # of the set, e.g. "imagenet"
  part: str  # "train", "validation" or "test"
  source: str  # where the rows came from, for people
  synthetic: bool  # whether they were made up
  rows: int
  classes: int
  encoding: str  # one of `ENCODINGS`
  shape: tuple[int, ...]  # of a row as it is taken, [d] or [h, w, c]
  dtype: str  # of a row as it is taken: "uint8", "float32" or "int32"
  scale: float  # inputs / scale is in [0, 1] for images: 255 or 16 for uint8; else 1
  image_size: int  # pixels of a side that encoded images are brought to; 0 for raw rows
  mean: tuple[float, ...]  # of each channel of images or column of features, as taken
  deviation: tuple[float, ...]  # likewise
  sha256: str  # of all records in order, whatever the shards
  labels: Shard  # the file of labels
  shards: tuple[Shard, ...]


def pack(label: int, row: bytes) -> bytes:
  """A record.

  >>> label, row = unpack(pack(7, b"row"))
  >>> label, bytes(row)
  (7, b'row')
  """
  return HEADER.pack(MAGIC, label) + row


def unpack(record: bytes) -> tuple[int, np.ndarray]:
  """Label and row of a record, the row as ``uint8[bytes]``.

  Raises:
    ValueError: if it is none.
  """
  if len(record) < HEADER.size or record[:4] != MAGIC:
    raise ValueError(f"no record of this format, it begins with 0x{record[:8].hex()}")
  return HEADER.unpack_from(record)[1], np.frombuffer(record, np.uint8, offset=HEADER.size)


def to_json(info: Info) -> dict[str, Any]:
  """``info`` as info.json holds it."""
  shards = [shard._asdict() for shard in info.shards]
  head = {"format": FORMAT, "version": VERSION}
  return head | info._asdict() | {"labels": info.labels._asdict(), "shards": shards}


def from_json(values: Any, *, what: str) -> Info:
  """The `Info` in ``values``.

  Raises:
    ValueError: if they are of another format or version, or lack something.
  """
  try:
    values = dict(values)
    found = (values.pop("format"), values.pop("version"))
    if found != (FORMAT, VERSION):
      raise ValueError(f"it is {found[0]} version {found[1]}, expected {FORMAT} version {VERSION}")
    for name in ("shape", "mean", "deviation"):
      values[name] = tuple(values[name])
    values["labels"] = Shard(**values["labels"])
    values["shards"] = tuple(Shard(**shard) for shard in values["shards"])
    info = Info(**values)
    if info.encoding not in ENCODINGS:
      raise ValueError(f"encoding {info.encoding!r} is none of {', '.join(ENCODINGS)}")
    if sum(shard.rows for shard in info.shards) != info.rows:
      raise ValueError("the rows of its shards are not the rows of the part")
    np.dtype(info.dtype)
  except (TypeError, KeyError, ValueError) as error:
    text = " ".join(str(error).split())
    raise ValueError(
      f"{what} is not what python -m jsel.data.prepare writes ({text}): prepare the set again"
    ) from error
  return info
