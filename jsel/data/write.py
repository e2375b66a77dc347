"""Writes rows as one part of a prepared set (`records` has its form)."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

import jsel.data.moments
from jsel.data import images, records
from jsel.data.rows import Rows, blocks, read_labels

# Single records are read at random: a group of more would be read and thrown away. Pixels and PNG
# or JPEG files hardly get smaller by compression, which costs more than it takes to read them.
OPTIONS = "group_size:1,uncompressed"
CHUNK = 1 << 22  # bytes hashed at a time


def write_part(
  rows: Rows,
  folder: Path,
  *,
  name: str,
  part: str,
  source: str,
  classes: int,
  scale: float,
  encoding: str,
  shards: int,
  synthetic: bool,
  written: Callable[[Path], None] = lambda path: None,
  progress: Callable[[int], None] = lambda rows: None,
) -> records.Info:
  """Writes all ``rows`` in their order into files in ``folder``; info.json is for the caller.

  Every row is read, checked and, where it is an encoded image, decoded once. Takes memory for about
  32 MiB of rows.

  Args:
    rows: what to write; with encoding "image" they need ``encoded`` and ``image_size``.
    folder: an existing local folder.
    name: of the set.
    part: "train", "validation" or "test".
    source: where the rows come from, for people.
    classes: their number.
    scale: inputs / scale is in [0, 1] for images.
    encoding: "raw" or "image" (`records`).
    shards: number of files, at most one a row; they differ by one row at most.
    synthetic: whether the rows were made up.
    written: called with each file when it is complete.
    progress: called with the number of rows written.

  Returns:
    What info.json has to say.

  Raises:
    ValueError: if there are fewer rows than shards, the encoding does not fit the rows, or a row is
      broken, with its id.
  """
  if not 1 <= shards <= rows.size:
    raise ValueError(
      f"--shards={shards} files for the {rows.size} rows of {part}: choose 1 to {rows.size}"
    )
  if encoding not in records.ENCODINGS:
    raise ValueError(f"--encoding={encoding} is none of {', '.join(records.ENCODINGS)}")
  if encoding == "image" and not hasattr(rows, "encoded"):
    raise ValueError(f"{rows!r} holds arrays, no encoded images: use --encoding=raw")
  image_size = rows.image_size if encoding == "image" else 0  # pyrefly: ignore[missing-attribute]
  moments = jsel.data.moments.empty(rows.input_shape)
  labels = read_labels(rows) if encoding == "image" else np.empty(rows.size, np.int32)
  digest = hashlib.sha256(f"{encoding} {rows.input_shape} {rows.input_dtype}".encode())
  ends = [rows.size * at // shards for at in range(1, shards + 1)]
  found: list[records.Shard] = []
  start = 0
  for number, end in enumerate(ends):
    path = folder / f"{part}-{number:05d}-of-{shards:05d}.array_record"
    writer = ArrayRecordWriter(str(path), OPTIONS)
    try:
      for ids in blocks(rows, start, end):
        inputs, records_of = block(rows, ids, labels, encoding=encoding, image_size=image_size)
        moments = jsel.data.moments.update(moments, inputs)
        for record in records_of:
          digest.update(len(record).to_bytes(8, "little"))
          digest.update(record)
          writer.write(record)
        progress(int(ids[-1]) + 1)
    finally:
      writer.close()
    found.append(describe_file(path, rows=end - start))
    written(path)
    start = end
  labels_path = folder / "labels.npy"
  np.save(labels_path, labels, allow_pickle=False)
  labels_file = describe_file(labels_path, rows=rows.size)
  written(labels_path)
  return records.Info(
    name=name,
    part=part,
    source=source,
    synthetic=synthetic,
    rows=rows.size,
    classes=classes,
    encoding=encoding,
    shape=tuple(rows.input_shape),
    dtype=np.dtype(rows.input_dtype).name,
    scale=scale,
    image_size=image_size,
    mean=tuple(moments.mean.tolist()),
    deviation=tuple(moments.deviation.tolist()),
    sha256=digest.hexdigest(),
    labels=labels_file,
    shards=tuple(found),
  )


def block(
  rows: Rows, ids: np.ndarray, labels: np.ndarray, *, encoding: str, image_size: int
) -> tuple[np.ndarray, Iterator[bytes]]:
  """The inputs of the rows ``ids`` and their records; fills in ``labels`` of raw rows."""
  if encoding == "image":
    encoded = rows.encoded(ids)  # pyrefly: ignore[missing-attribute]
    inputs = images.decode_rows(
      encoded, ids, shape=tuple(rows.input_shape), size=image_size, what=repr(rows)
    )
  else:
    batch = rows.take(ids)
    inputs, labels[ids] = batch["inputs"], batch["labels"]
    little = np.ascontiguousarray(inputs, inputs.dtype.newbyteorder("<"))
    encoded = (row.tobytes() for row in little)
  pairs = zip(labels[ids].tolist(), encoded, strict=True)
  return inputs, (records.pack(label, row) for label, row in pairs)


def describe_file(path: Path, *, rows: int) -> records.Shard:
  """Size and SHA-256 of a file, which is on the disk when this returns."""
  digest = hashlib.sha256()
  with path.open("rb") as file:
    os.fsync(file.fileno())
    while piece := file.read(CHUNK):
      digest.update(piece)
    return records.Shard(path.name, rows, file.tell(), digest.hexdigest())
