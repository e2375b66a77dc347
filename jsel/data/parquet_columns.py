"""Columns of parquet files as arrays, with what is wrong with them told."""

import contextlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jsel.data import files

KINDS = "bytes of PNG or JPEG images (binary, or a struct with a field bytes), or lists of float32"
PAGES = 2**23  # bytes of a column read at a time


@contextlib.contextmanager
def opened(path: str, *, in_order: bool = False) -> Iterator[pq.ParquetFile]:
  """The parquet file ``path``; what is broken in it is one line that names it.

  Args:
    path: local, or in an object store.
    in_order: for files larger than memory: a few pages are read at a time, where else all that
      is asked for is fetched at once.
  """
  with files.open_file(path) as handle:
    try:
      options = {"buffer_size": PAGES} if in_order else {"pre_buffer": True}
      with pq.ParquetFile(handle, **options) as file:
        yield file
    except (pa.ArrowException, OSError) as error:
      text = " ".join(str(error).split())
      raise ValueError(f"{path} is no whole parquet file ({text}): write it again") from error


def check_schema(schema: pa.Schema, input_column: str, label_column: str, *, path: str) -> None:
  """Raises where a column is missing or of a kind that is not read."""
  for key, column in (("input_column", input_column), ("label_column", label_column)):
    if column not in schema.names:
      raise ValueError(
        f"{path} has no column {column!r}: set --config.data.{key} to one of"
        f" {', '.join(schema.names)}"
      )
  kind = schema.field(input_column).type
  if not (is_encoded(kind) or is_features(kind)):
    is_list = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
    remedy = "cast it to lists of float32" if is_list else f"expected {KINDS}"
    raise ValueError(f"{path}: column {input_column!r} is {kind}: {remedy}")
  kind = schema.field(label_column).type
  if not pa.types.is_integer(kind):
    raise ValueError(f"{path}: column {label_column!r} is {kind}: labels are integers from 0")


def is_encoded(kind: pa.DataType) -> bool:
  """Whether a column of ``kind`` holds the bytes of files."""
  if pa.types.is_struct(kind):
    return any(kind.field(at).name == "bytes" for at in range(kind.num_fields))
  return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def is_features(kind: pa.DataType) -> bool:
  """Whether a column of ``kind`` holds lists of float32."""
  lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
  return any(is_list(kind) for is_list in lists) and pa.types.is_float32(kind.value_type)


def input_array(column: pa.Array, *, start: int, path: str) -> pa.Array | np.ndarray:
  """An array of bytes, or ``[n, d]`` float32.

  Args:
    column: of a kind that `check_schema` lets pass.
    start: what messages call the first row.
    path: of the file, for messages.

  Raises:
    ValueError: for a row without a value, or a list of another length than the first or with a gap.
  """
  if pa.types.is_struct(column.type):
    column = pc.struct_field(column, "bytes")  # pyrefly: ignore[missing-attribute]
  if column.null_count:
    row = start + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
    raise ValueError(f"{path}: row {row} has no value: drop or repair the row")
  if is_encoded(column.type):
    return column
  lengths = pc.list_value_length(column)  # pyrefly: ignore[missing-attribute]
  lengths = lengths.to_numpy(zero_copy_only=False)
  other = np.flatnonzero(lengths != lengths[:1])
  if other.size:
    raise ValueError(
      f"{path}: row {start + int(other[0])} has {lengths[other[0]]} features, row {start} has"
      f" {lengths[0]}: give every row as many"
    )
  values = column.flatten()
  if values.null_count:
    place = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
    row, column_number = divmod(place, int(lengths[0]))
    raise ValueError(
      f"{path}: column {column_number} of row {start + row} has no value: features must be finite,"
      " drop or repair the row"
    )
  return values.to_numpy().reshape(len(column), -1)


def label_array(column: pa.Array, *, path: str) -> np.ndarray:
  """Labels, ``[n]`` of their integer dtype."""
  if column.null_count:
    raise ValueError(f"{path}: {column.null_count} rows have no label: drop or repair them")
  return column.to_numpy()
