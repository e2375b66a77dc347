"""Rows of sets that `python -m jsel.data.prepare` has written as array_record."""

import json
import threading
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from ml_collections import ConfigDict

from jsel.data import cache, files, images, numpy_files, records
from jsel.data.digest import combined
from jsel.data.moments import Moments
from jsel.data.parts import open_parts, parts_sha256
from jsel.data.rows import RowsDataset, checked_ids, checked_rows, describe

# One record is read at a time: nothing ahead of it, and little beside it.
READER = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 4096}
PREPARE = "python -m jsel.data.prepare --config.data.name=... --out=DIR"


def open_rows(config: ConfigDict) -> RowsDataset:
  """The prepared parts ``config.train``, ``config.validation`` and ``config.test``.

  Each is the folder of a part, or a glob of such folders or of their shards, or several with commas
  between; without ``config.train``, the folders train, validation and test in ``config.dir``. What
  is in an object store is copied to ``config.cache_dir`` first (`cache.local_copy`).
  ``config.image_size`` brings encoded images to another size than they were prepared for. Without a
  test part ``config.test_fraction`` is held out.

  Raises:
    ValueError: if a part is missing or not complete, with the command that prepares it, or if a
      file is missing, cut short or changed in size.
  """
  infos: list[records.Info] = []

  def part(role: str) -> ArrayRecordRows | None:
    patterns = config.get(role)
    if not patterns and config.get("dir") and not (role != "train" and config.get("train")):
      folder = files.join(config.dir, role)
      patterns = folder if role == "train" or files.exists(folder) else ""
    if not patterns:
      return None
    shards = find_shards(patterns, key=role, cache_dir=config.get("cache_dir", ""))
    infos.extend(shard.info for shard in shards)
    return ArrayRecordRows(shards, what=patterns, image_size=config.get("image_size", 0))

  parts = open_parts(config, part)
  first = infos[0]
  for info in infos:
    if (info.name, info.classes, info.scale) != (first.name, first.classes, first.scale):
      raise ValueError(
        f"{info.name} {info.part} has {info.classes} classes and scale {info.scale:g}, {first.name}"
        f" {first.part} {first.classes} and {first.scale:g}: give parts of one set"
      )
  return RowsDataset(
    *parts,
    classes=first.classes,
    name=first.name,
    source=first.source,
    scale=first.scale,
    sha256=parts_sha256(parts),
  )


class ShardOf(NamedTuple):
  """A file of records and the part that it belongs to."""

  folder: str  # local
  info: records.Info
  shard: records.Shard
  first: int  # its first row in the part


def find_shards(patterns: str, *, key: str, cache_dir: str) -> list[ShardOf]:
  """The shards that ``patterns`` names, each checked to be there in its full size."""
  found: list[ShardOf] = []
  remedy = f"correct --config.data.{key} or --config.data.dir, or prepare it with `{PREPARE}`"
  opened: dict[str, tuple[str, records.Info]] = {}  # a glob may name many shards of one folder
  for path in files.expand(patterns, remedy=remedy):
    is_folder = files.is_folder(path)
    source, _, name = (path, "", "") if is_folder else path.rpartition("/")
    if source not in opened:
      info = read_info(source)
      is_remote = files.is_remote(source)
      opened[source] = cache.local_copy(source, info, cache_dir) if is_remote else source, info
      check_files(*opened[source])
    folder, info = opened[source]
    first = 0
    for shard in info.shards:
      if is_folder or shard.file == name:
        found.append(ShardOf(folder, info, shard, first))
      first += shard.rows
    if not is_folder and name not in [shard.file for shard in info.shards]:
      raise ValueError(f"{path} is no file of records that {source}/info.json names")
  return found


def read_info(folder: str) -> records.Info:
  """What info.json in ``folder`` says."""
  path = files.join(folder, "info.json")
  if not files.exists(path):
    raise ValueError(
      f"{folder} has no info.json: its preparation was cut short or never done, prepare it with"
      f" `{PREPARE}`"
    )
  try:
    values = json.loads(files.read(path))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise ValueError(f"{path} is broken ({error}): prepare the set again") from error
  return records.from_json(values, what=path)


def check_files(folder: str, info: records.Info) -> None:
  """Raises where a file is missing or has another size: array_record takes such one for empty."""
  found = files.find(folder)
  for shard in (*info.shards, info.labels):
    size = found.get(shard.file)
    if size != shard.bytes:
      state = "is missing" if size is None else f"has {size} bytes"
      raise ValueError(
        f"{files.join(folder, shard.file)} {state}, info.json says {shard.bytes} bytes: it was cut"
        " short or changed, copy it or prepare the set again"
      )


class ArrayRecordRows:
  """Rows of prepared shards; any row costs the same.

  Raw rows are copied once, encoded images decoded, when they are taken. Labels and moments are
  known without reading records. The hash is of what info.json says of the records (SHA-256 of all
  of them, taken while they were written) and of the shards' sizes, which are checked against the
  files; a record whose bytes were changed since fails when it is read, by array_record's checksums.

  Args:
    shards: of `find_shards`, in the order of their rows.
    what: what messages call them.
    image_size: pixels of a side for encoded images; 0: as they were prepared.

  Raises:
    ValueError: if shards differ in shape, dtype or encoding, or image_size is given for raw rows.
  """

  def __init__(self, shards: list[ShardOf], *, what: str, image_size: int):
    self.what = what
    info = shards[0].info
    for other in (shard.info for shard in shards):
      kinds = [(i.encoding, i.shape, i.dtype, i.image_size) for i in (info, other)]
      if kinds[0] != kinds[1]:
        raise ValueError(f"{what}: rows are of two kinds, {kinds[0]} and {kinds[1]}: prepare alike")
    if image_size not in (0, info.shape[0]) and info.encoding == "raw":
      raise ValueError(
        f"{what}: --config.data.image_size={image_size}, but the rows were prepared as raw"
        f" {list(info.shape)}: set it to 0, or prepare the set in that size"
      )
    self._encoding, self.image_size = info.encoding, image_size or info.image_size
    self.input_dtype = np.dtype(info.dtype)
    is_resized = self._encoding == "image" and self.image_size
    self.input_shape = (
      (self.image_size, self.image_size, info.shape[2]) if is_resized else info.shape
    )
    self._classes, self._shards = info.classes, shards
    self._ends = np.cumsum([shard.shard.rows for shard in shards])
    self.size = int(self._ends[-1])
    self._reset()
    # Of several parts or some of the shards, or in another size, the moments are not known.
    is_whole = [shard.shard for shard in shards] == list(info.shards)
    self._is_as_prepared = is_whole and self.input_shape == info.shape

  def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The examples ``ids`` (`Rows.take`)."""
    ids = checked_ids(ids, self.size, what=self.what)
    labels, rows = self._read(ids)
    if self._encoding == "image":
      inputs = images.decode_rows(
        rows, ids, shape=self.input_shape, size=self.image_size, what=self.what
      )
    else:
      row_bytes = int(np.prod(self.input_shape)) * self.input_dtype.itemsize
      places = np.empty((len(ids), row_bytes), np.uint8)
      for at, row in enumerate(rows):
        if len(row) != row_bytes:
          raise ValueError(
            f"{self.what}: row {ids[at]} has {len(row)} bytes, expected {row_bytes}: prepare the"
            " set again"
          )
        places[at] = row
      little = places.view(self.input_dtype.newbyteorder("<"))
      inputs = little.reshape(len(ids), *self.input_shape).astype(self.input_dtype, copy=False)
    return checked_rows(inputs, labels, ids, what=self.what, classes=self._classes)

  def encoded(self, ids: np.ndarray) -> list[bytes]:
    """The bytes of the images ``ids`` as they are.

    Raises:
      ValueError: if the rows are raw.
    """
    if self._encoding != "image":
      raise ValueError(f"{self.what} holds raw rows, no encoded images")
    return [bytes(row) for row in self._read(checked_ids(ids, self.size, what=self.what))[1]]

  def labels(self) -> np.ndarray:
    """All labels, ``[n]`` int32, from the files of labels."""
    pieces = []
    for shard in self._shards:
      labels = numpy_files.read_npy(files.join(shard.folder, shard.info.labels.file))
      pieces.append(labels[shard.first : shard.first + shard.shard.rows])
    return np.concatenate(pieces)

  def moments(self) -> Moments | None:
    """Of all rows as info.json has them; None of some of the shards or in another size."""
    info = self._shards[0].info
    if not self._is_as_prepared:
      return None
    count = info.rows * int(np.prod(info.shape[:-1]))
    deviation = np.array(info.deviation)
    return Moments(count, np.array(info.mean), deviation**2 * count)

  def sha256(self) -> str:
    """Of the records' hash and the shards' sizes in info.json, and the size of images."""
    told = [
      f"{s.info.sha256} {s.info.part} {s.first} {s.shard.rows} {s.shard.bytes}"
      for s in self._shards
    ]
    return combined("array_record", *told, f"{self.input_shape}")

  def _read(self, ids: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Labels and bytes of the rows ``ids``."""
    numbers = np.searchsorted(self._ends, ids, side="right")
    labels, rows = np.empty(len(ids), np.int64), [np.empty(0, np.uint8)] * len(ids)
    for number in np.unique(numbers).tolist():
      places = np.flatnonzero(numbers == number)
      shard = self._shards[number]
      within = ids[places] - (self._ends[number] - shard.shard.rows)
      try:
        found = self._reader(number).read(within.tolist())
      except (RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise ValueError(
          f"{self.what}: a record among rows {ids[places].min()} to {ids[places].max()} in"
          f" {shard.shard.file} is broken ({text}): copy it again, or prepare the set again"
        ) from error
      for at, record in zip(places.tolist(), found, strict=True):
        try:
          labels[at], rows[at] = records.unpack(record)
        except ValueError as error:
          raise ValueError(
            f"{self.what}: row {ids[at]} is {error}: prepare the set again"
          ) from error
    return labels, rows

  def _reader(self, number: int) -> Any:
    """The reader of a shard, which threads may share, opened when it is first read from."""
    reader = self._readers.get(number)
    if reader is None:
      with self._lock:
        if number not in self._readers:
          shard = self._shards[number]
          path = files.join(shard.folder, shard.shard.file)
          self._readers[number] = ArrayRecordReader(path, **READER)
        reader = self._readers[number]
    return reader

  def _reset(self) -> None:
    self._readers: dict[int, Any] = {}
    self._lock = threading.Lock()

  def __getstate__(self) -> dict[str, Any]:
    return {name: x for name, x in self.__dict__.items() if name not in ("_readers", "_lock")}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._reset()

  def __repr__(self) -> str:
    return f"ArrayRecordRows({self.what}, {describe(self)})"
