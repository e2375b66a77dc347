"""Parquet files: row groups, columns that are refused, and rows that are broken."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict

import jsel.data
from jsel.data import parquet, parquet_columns


def rows_of(*paths, **options):
  defaults = {"input_column": "x", "label_column": "y", "image_size": 0, "channels": 3}
  return parquet.ParquetRows([str(path) for path in paths], **{"classes": 0, **defaults, **options})


@pytest.fixture
def path(tmp_path):
  return tmp_path / "rows.parquet"


def write(path, x, y=None, **options):
  y = pa.array(np.arange(len(x)) % 3) if y is None else y
  pq.write_table(pa.table({"x": x, "y": y}), path, **options)


@pytest.fixture
def groups_read(monkeypatch):
  """How many row groups were read from files."""
  counts = []
  original = pq.ParquetFile.read_row_group

  def read_row_group(self, number, **options):
    counts.append(number)
    return original(self, number, **options)

  monkeypatch.setattr(pq.ParquetFile, "read_row_group", read_row_group)
  return counts


def test_a_row_group_is_read_once_for_a_batch_and_kept(path, vectors, groups_read):
  write(path, pa.array(list(vectors[0])), row_group_size=10)
  rows = rows_of(path)
  groups_read.clear()
  rows.take(np.array([31, 12, 35, 10, 39, 12]))
  assert sorted(groups_read) == [1, 3]
  rows.take(np.arange(10, 20))
  assert len(groups_read) == 2
  rows.take(np.arange(50))
  rows.take(np.arange(50))
  assert len(rows._kept) == parquet.KEPT_GROUPS


def test_labels_are_read_without_the_inputs(path, vectors, groups_read):
  write(path, pa.array(list(vectors[0])), pa.array(vectors[1].astype(np.int8)), row_group_size=10)
  rows = rows_of(path)
  groups_read.clear()
  labels = rows.labels()
  assert not groups_read
  assert labels.dtype == np.int32
  np.testing.assert_array_equal(labels, vectors[1])


def test_classes_are_counted(path, vectors):
  write(path, pa.array(list(vectors[0])))
  keys = {"name": "parquet", "train": str(path), "test": str(path)}
  keys |= {"input_column": "x", "label_column": "y"}
  assert jsel.data.open_rows(ConfigDict(keys)).classes == 3
  assert jsel.data.open_rows(ConfigDict({**keys, "classes": 5})).classes == 5
  rows = jsel.data.open_rows(ConfigDict({**keys, "classes": 2})).train
  with pytest.raises(ValueError, match=r"label 2 of row 2 is not in \[0, 2\)"):
    rows.take(np.arange(3))


floats = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32()))


@pytest.mark.parametrize(
  ("x", "y", "options", "message"),
  [
    (
      floats,
      None,
      {"input_column": "z"},
      "no column 'z': set --config.data.input_column to one of",
    ),
    (
      floats,
      None,
      {"label_column": "z"},
      "no column 'z': set --config.data.label_column to one of",
    ),
    (pa.array([[1.0], [2.0]]), None, {}, "'x' is list<.*double>: cast it to lists of float32"),
    (pa.array(["a", "b"]), None, {}, "'x' is string: expected bytes of PNG or JPEG images"),
    (floats, pa.array([0.0, 1.0]), {}, "'y' is double: labels are integers from 0"),
    (floats, pa.array([0, None]), {}, "1 rows have no label"),
    (pa.array([[1.0], None], pa.list_(pa.float32())), None, {}, "row 1 has no value"),
    (pa.array([[1.0], [None]], pa.list_(pa.float32())), None, {}, "column 0 of row 1 has no value"),
    (
      pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32())),
      None,
      {},
      "row 1 has 2 features, row 0 h",
    ),
    (pa.array([[np.nan], [1.0]], pa.list_(pa.float32())), None, {}, "column 0 of row 0 is nan"),
    (pa.array([b"png", b"x"]), None, {}, "row 0 is no whole PNG or JPEG"),
    (pa.array([b"png", None]), None, {}, "row 1 has no value"),
    (floats[:0], pa.array([], pa.int64()), {}, "has no rows"),
  ],
)
def test_what_cannot_be_read_is_named(path, x, y, options, message):
  write(path, x, y)
  with pytest.raises(ValueError, match=message) as error:
    rows_of(path, **options).take(np.arange(2))
  assert "\n" not in str(error.value)


def test_files_of_other_width_are_named(tmp_path):
  for number, width in enumerate((2, 3)):
    write(tmp_path / f"{number}.parquet", pa.array([[0.0] * width] * 4, pa.list_(pa.float32())))
  rows = rows_of(tmp_path / "0.parquet", tmp_path / "1.parquet")
  with pytest.raises(ValueError, match="row 5 has 3 features, row 0 has 2"):
    rows.take(np.array([0, 5]))


@pytest.mark.parametrize("kept", [0, 4, 0.5, 0.95])
def test_a_file_cut_short_is_named(path, vectors, kept):
  write(path, pa.array(list(vectors[0])))
  data = path.read_bytes()
  path.write_bytes(data[: int(kept * len(data)) if kept < 1 else kept])
  with pytest.raises(ValueError, match=r"rows.parquet is no whole parquet file") as error:
    rows_of(path)
  assert "\n" not in str(error.value)


def test_a_group_with_flipped_bytes_is_named(path, vectors):
  write(path, pa.array(list(vectors[0])), row_group_size=10, compression="zstd")
  rows = rows_of(path)
  start = pq.ParquetFile(path).metadata.row_group(3).column(0).data_page_offset
  data = bytearray(path.read_bytes())
  data[start : start + 40] = bytes(byte ^ 0xFF for byte in data[start : start + 40])
  path.write_bytes(data)
  rows.take(np.arange(10))
  with pytest.raises(ValueError, match=r"rows.parquet is no whole parquet file"):
    rows.take(np.array([35]))


def test_missing_files_are_named(tmp_path):
  keys = {"name": "parquet", "input_column": "x", "label_column": "y", "test_fraction": 0.5}
  with pytest.raises(
    ValueError, match=r"there is no .*gone-\*.parquet: correct --config.data.train"
  ):
    jsel.data.open_rows(ConfigDict({**keys, "train": str(tmp_path / "gone-*.parquet")}))
  with pytest.raises(ValueError, match=r"--config.data.train names no file"):
    jsel.data.open_rows(ConfigDict(keys))


def test_the_hash_sees_a_footer_that_changed(tmp_path, vectors):
  paths = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
  for path in paths:
    write(path, pa.array(list(vectors[0])))
  digest = lambda *paths: rows_of(*paths).sha256()
  hashes = {digest(*paths), digest(paths[0]), digest(paths[1]), digest(*paths[::-1])}
  assert len(hashes) == 4
  write(paths[1], pa.array(list(vectors[0] + 1)))
  assert digest(*paths) not in hashes


def test_kinds_of_columns():
  assert parquet_columns.is_encoded(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
  assert not parquet_columns.is_encoded(pa.struct([("path", pa.string())]))
  assert parquet_columns.is_features(pa.list_(pa.float32(), 3))
  assert not parquet_columns.is_features(pa.list_(pa.float64(), 3))
