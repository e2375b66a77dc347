"""Rows of parquet files: images as bytes, or features as lists, and labels."""

import threading
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from ml_collections import ConfigDict

from jsel.data import files, images
from jsel.data.arrays import checked_labels
from jsel.data.digest import combined, files_sha256
from jsel.data.parquet_columns import check_schema, input_array, label_array, opened
from jsel.data.parts import count_classes, open_parts, parts_sha256
from jsel.data.rows import RowsDataset, checked_ids, checked_rows, describe

KEPT_GROUPS = 4  # row groups in memory, in each process


def open_rows(config: ConfigDict) -> RowsDataset:
  """The rows of the parquet files ``config.train``, ``config.validation`` and ``config.test``.

  Each is a path or a glob, or several with commas between, local, gs:// or s3://; the files' rows
  follow each other. ``config.input_column`` and ``config.label_column`` name the columns;
  ``config.image_size`` and ``config.channels`` say what images are brought to (`images.decode`).
  With ``config.classes`` = 0 the number of classes is the largest label + 1; without a test part
  ``config.test_fraction`` is held out.

  Raises:
    ValueError: if a file is missing or broken, or a column is missing or of another kind.
  """

  def part(role: str) -> ParquetRows | None:
    if not config.get(role):
      return None
    return ParquetRows(
      files.expand(config[role], remedy=f"correct --config.data.{role}"),
      input_column=config.input_column,
      label_column=config.label_column,
      image_size=config.get("image_size", 0),
      channels=config.get("channels", 3),
      classes=config.get("classes", 0),
    )

  parts = open_parts(config, part)
  return RowsDataset(
    *parts,
    classes=count_classes(parts, config.get("classes", 0)),
    name="parquet",
    source=config.train,
    scale=255.0 if parts.train.input_dtype == np.uint8 else 1.0,
    sha256=parts_sha256(parts),
  )


class Group(NamedTuple):
  """One row group of one file."""

  path: str
  number: int  # of the group in its file


class ParquetRows:
  """Rows of parquet files, read by whole row groups.

  Inputs are bytes of PNG or JPEG images (a binary column, or a struct with a field ``bytes``) or
  features (lists of one length, or fixed-size lists, of float32). Labels are integers.

  Parquet has no rows of its own, only row groups: one row costs the reading of its group, and a
  batch of random ids costs as many groups as it touches. The last four groups stay in memory. Rows
  in order are fast, random ones as slow as the groups are large: `python -m jsel.data.prepare`
  turns such files into array_record, where any row costs the same.

  The hash is of the files' names, sizes and edges (`digest.files_sha256`), among which is the
  footer with the counts and statistics of all groups, and of the columns that are read.

  Args:
    paths: of the files, in the order of their rows.
    input_column: name of the column of inputs.
    label_column: name of the column of labels.
    image_size: pixels of a side that images are brought to; 0: all have the first one's shape.
    channels: of images: 3, or 1 for grey.
    classes: labels must be below it; 0 leaves them unbounded.

  Raises:
    ValueError: if a file is missing or broken, or a column is missing or of another kind.
  """

  def __init__(
    self,
    paths: list[str],
    *,
    input_column: str,
    label_column: str,
    image_size: int,
    channels: int,
    classes: int,
  ):
    self.what = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    self._paths, self._classes, self.image_size = paths, classes, image_size
    self._input_column, self._label_column = input_column, label_column
    self._groups: list[Group] = []
    sizes = []
    for path in paths:
      with opened(path) as file:
        check_schema(file.schema_arrow, input_column, label_column, path=path)
        for number in range(file.num_row_groups):
          self._groups.append(Group(path, number))
          sizes.append(file.metadata.row_group(number).num_rows)
    self._ends = np.cumsum(sizes, dtype=np.int64)
    self.size = int(self._ends[-1]) if sizes else 0
    if not self.size:
      raise ValueError(f"{self.what} has no rows")
    self._reset()
    first, _ = self._read(int(np.flatnonzero(sizes)[0]))
    self._is_image = isinstance(first, pa.Array)
    if self._is_image:
      self.input_dtype = np.dtype(np.uint8)
      self.input_shape = images.shape_of(
        first[0].as_py(), size=image_size, channels=channels, what=self.what
      )
    else:
      self.input_dtype, self.input_shape = first.dtype, first.shape[1:]
    self._sha256 = combined(
      "parquet",
      files_sha256(paths),
      f"{input_column} {label_column} {image_size} {channels}",
    )

  def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The examples ``ids`` (`Rows.take`)."""
    ids = checked_ids(ids, self.size, what=self.what)
    inputs = np.empty((len(ids), *self.input_shape), self.input_dtype)
    labels = np.empty(len(ids), np.int64)
    groups = np.searchsorted(self._ends, ids, side="right")
    for group in np.unique(groups):
      at = np.flatnonzero(groups == group)
      columns, group_labels = self._read(int(group))
      rows = ids[at] - (self._ends[group] - len(group_labels))
      labels[at] = group_labels[rows]
      if self._is_image:
        encoded = (columns[int(row)].as_py() for row in rows)
        inputs[at] = images.decode_rows(
          encoded, ids[at], shape=self.input_shape, size=self.image_size, what=self.what
        )
      else:
        if columns.shape[1:] != self.input_shape:
          raise ValueError(
            f"{self.what}: row {ids[at[0]]} has {columns.shape[1]} features, row 0 has"
            f" {self.input_shape[0]}: give every row as many"
          )
        inputs[at] = columns[rows]
    return checked_rows(inputs, labels, ids, what=self.what, classes=self._classes)

  def encoded(self, ids: np.ndarray) -> list[bytes]:
    """The bytes of the images ``ids`` as they are.

    Raises:
      ValueError: if the inputs are no images.
    """
    if not self._is_image:
      raise ValueError(f"{self.what}: column {self._input_column} holds features, not images")
    groups = np.searchsorted(self._ends, ids, side="right")
    found = []
    for at, group in zip(ids, groups, strict=True):
      column, labels = self._read(int(group))
      found.append(column[int(at - (self._ends[group] - len(labels)))].as_py())
    return found

  def labels(self) -> np.ndarray:
    """All labels, ``[n]`` int32; reads that column alone."""
    pieces = []
    for path in self._paths:
      with opened(path) as file:
        column = file.read(columns=[self._label_column]).column(0)
      pieces.append(label_array(column.combine_chunks(), path=path))
    return checked_labels(np.concatenate(pieces), what=self.what, classes=self._classes)

  def sha256(self) -> str:
    """Of the files' names, sizes and edges, and of the columns that are read."""
    return self._sha256

  def _read(self, group: int) -> tuple[Any, np.ndarray]:
    """The inputs of a row group, an array of bytes or of float32, and its labels."""
    with self._lock:
      if group in self._kept:
        self._kept.move_to_end(group)
        return self._kept[group]
      path, number = self._groups[group]
      with opened(path) as file:
        table = file.read_row_group(number, columns=[self._input_column, self._label_column])
      inputs = table.column(self._input_column).combine_chunks()
      labels = table.column(self._label_column).combine_chunks()
      start = int(self._ends[group]) - table.num_rows
      columns = input_array(inputs, start=start, path=path), label_array(labels, path=path)
      self._kept[group] = columns
      if len(self._kept) > KEPT_GROUPS:
        self._kept.popitem(last=False)
      return columns

  def _reset(self) -> None:
    self._kept: OrderedDict[int, tuple[Any, np.ndarray]] = OrderedDict()
    self._lock = threading.Lock()

  def __getstate__(self) -> dict[str, Any]:
    return {name: x for name, x in self.__dict__.items() if name not in ("_kept", "_lock")}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._reset()

  def __repr__(self) -> str:
    return f"ParquetRows({self.what}, {describe(self)})"
