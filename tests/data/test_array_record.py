"""Prepared sets: their form, read by Grain's own reader, and what happens when files change."""

import json
import re
import struct

import grain
import numpy as np
import pytest
from ml_collections import ConfigDict

import jsel.data
from jsel.data import array_record, prepare, records
from jsel.data.normalize import normalizer
from jsel.data.rows import RowsDataset, SubsetRows
from jsel.data.synthetic import SyntheticRows


def write(rows, out, *, encoding="raw", shards=3, test=None, classes=4, overwrite=False):
  dataset = RowsDataset(rows, None, test or rows, classes, "mine", "a test", 1.0, "")
  prepare.prepare(
    dataset,
    str(out),
    shards=shards,
    encoding=encoding,
    overwrite=overwrite,
    synthetic=False,
  )


def open_rows(folder, **keys):
  return jsel.data.open_rows(ConfigDict({"name": "array_record", "dir": str(folder), **keys}))


@pytest.fixture
def vector_rows(vectors):
  return jsel.data.ArrayRows(*vectors, what="vectors")


@pytest.fixture
def prepared(tmp_path, vector_rows):
  write(vector_rows, tmp_path / "set")
  return tmp_path / "set"


def shards_of(folder):
  return sorted(folder.glob("*.array_record"))


def test_grain_reads_the_records_as_their_form_says(prepared, vectors):
  source = grain.sources.ArrayRecordDataSource(
    [str(path) for path in shards_of(prepared / "train")]
  )
  dataset = grain.MapDataset.source(source).seed(0).shuffle()
  assert len(dataset) == 50
  rows = {(struct.unpack("<4si6f", dataset[at])) for at in range(50)}
  inputs, labels = vectors
  assert rows == {
    (b"jsr1", int(label), *row.tolist()) for row, label in zip(inputs, labels, strict=True)
  }


def test_grain_batches_take_in_threads_and_in_order(prepared, vectors):
  rows = open_rows(prepared).train
  batches = grain.MapDataset.range(rows.size).seed(0).shuffle().batch(16).map(rows.take)
  ids = grain.MapDataset.range(rows.size).seed(0).shuffle().batch(16)
  read = batches.to_iter_dataset(grain.ReadOptions(num_threads=3, prefetch_buffer_size=3))
  for wanted, batch in zip(ids.to_iter_dataset(), read, strict=True):
    np.testing.assert_array_equal(batch["inputs"], vectors[0][wanted])
    np.testing.assert_array_equal(batch["labels"], vectors[1][wanted])


def test_info_tells_what_was_written(prepared, vectors):
  info = json.loads((prepared / "train" / "info.json").read_text())
  inputs, labels = vectors
  assert (info["format"], info["version"], info["name"]) == ("jsel.array_record", 1, "mine")
  assert (info["rows"], info["shape"], info["dtype"], info["classes"]) == (50, [6], "float32", 4)
  assert (info["synthetic"], info["part"], info["encoding"]) == (False, "train", "raw")
  assert [shard["rows"] for shard in info["shards"]] == [16, 17, 17]
  np.testing.assert_allclose(info["mean"], inputs.astype(np.float64).mean(0), rtol=1e-12)
  np.testing.assert_allclose(info["deviation"], inputs.astype(np.float64).std(0), rtol=1e-12)
  np.testing.assert_array_equal(np.load(prepared / "train" / "labels.npy"), labels)


def test_the_hash_of_records_does_not_depend_on_shards(tmp_path, prepared, vector_rows, vectors):
  read = lambda folder: json.loads((folder / "train" / "info.json").read_text())["sha256"]
  write(vector_rows, tmp_path / "one", shards=1)
  assert read(tmp_path / "one") == read(prepared)
  changed = vectors[0].copy()
  changed[49, 5] += 1
  write(jsel.data.ArrayRows(changed, vectors[1]), tmp_path / "other")
  assert read(tmp_path / "other") != read(prepared)
  assert open_rows(tmp_path / "one").sha256 != open_rows(tmp_path / "other").sha256


def test_globs_join_parts_and_pick_shards(tmp_path, prepared, vectors):
  keys = {"name": "array_record", "test_fraction": 0.2}
  train = lambda pattern: array_record.ArrayRecordRows(
    array_record.find_shards(str(pattern), key="train", cache_dir=""), what="mine", image_size=0
  )
  both = train(f"{prepared}/train,{prepared}/test")
  assert both.size == 100
  np.testing.assert_array_equal(both.take(np.array([99, 49]))["inputs"], vectors[0][[49, 49]])
  np.testing.assert_array_equal(both.labels(), np.tile(vectors[1], 2))
  some = train(f"{prepared}/train/train-0000[12]-*")
  np.testing.assert_array_equal(some.take(np.arange(34))["inputs"], vectors[0][16:])
  np.testing.assert_array_equal(some.labels(), vectors[1][16:])
  assert both.moments() is None
  assert some.moments() is None
  assert len({both.sha256(), some.sha256(), train(prepared / "train").sha256()}) == 3
  found = jsel.data.open_rows(ConfigDict({**keys, "train": str(prepared / "train")}))
  assert (found.train.size, found.test.size) == (40, 10)


@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_shard_cut_short_is_named(prepared, kept):
  path = shards_of(prepared / "train")[1]
  data = path.read_bytes()
  path.write_bytes(data[: int(kept * len(data))])
  with pytest.raises(
    ValueError, match=rf"{path.name} has {int(kept * len(data))} bytes, info.json s"
  ):
    open_rows(prepared)


@pytest.mark.parametrize("name", ["train-00001-of-00003.array_record", "labels.npy"])
def test_a_missing_file_is_named(prepared, name):
  (prepared / "train" / name).unlink()
  with pytest.raises(ValueError, match=rf"{name} is missing, info.json says \d+ bytes"):
    open_rows(prepared)


def test_changed_bytes_are_found_or_change_nothing(prepared, vectors, rng):
  path = shards_of(prepared / "test")[2]
  data = path.read_bytes()
  places = np.flatnonzero(np.frombuffer(data, np.uint8))  # the rest is padding
  refused = []
  for place in rng.choice(places, 60, replace=False):
    changed = bytearray(data)
    changed[place] ^= 0x55
    path.write_bytes(changed)
    rows = open_rows(prepared).test
    rows.take(np.arange(20))
    try:
      batch = rows.take(np.arange(33, 50))
    except ValueError as error:
      refused.append(str(error))
    else:
      np.testing.assert_array_equal(batch["inputs"], vectors[0][33:])
  assert len(refused) > 30
  told = re.compile(
    r".*/test: a record among rows 33 to 49 in test-00002.* is broken \(.*\): copy it again.*"
  )
  assert all(map(told.fullmatch, refused))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      None,
      "train has no info.json: its preparation was cut short or never done, prepare it with `py",
    ),
    ("{", "info.json is broken"),
    ({"version": 2}, "jsel.array_record version 2, expected jsel.array_record version 1"),
    ({"rows": 51}, "the rows of its shards are not the rows of the part"),
    ({"encoding": "pickle"}, "encoding 'pickle' is none of raw, image"),
    ({"more": 1}, "unexpected keyword argument 'more'"),
    ({"shape": [7]}, "row 0 has 24 bytes, expected 28: prepare the set again"),
    (
      {"classes": 5},
      "mine test has 4 classes and scale 1, mine train 5 and 1: give parts of one set",
    ),
    ({"classes": 3}, r"label 3 of row \d+ is not in \[0, 3\)"),
  ],
)
def test_an_info_that_does_not_fit_is_named(prepared, changes, message):
  path = prepared / "train" / "info.json"
  values = json.loads(path.read_text())
  if changes is None:
    path.unlink()
  elif isinstance(changes, str):
    path.write_text(changes)
  else:
    path.write_text(json.dumps({**values, **changes}))
  keys = {"test_fraction": 0.2, "train": str(prepared / "train")}
  keys = {} if changes == {"classes": 5} else keys
  with pytest.raises(ValueError, match=message) as error:
    open_rows(prepared, **keys).train.take(np.arange(40))
  assert "\n" not in str(error.value)


def test_a_set_that_is_not_there_prints_the_command(tmp_path):
  with pytest.raises(
    ValueError, match=r"there is no .*train: correct .* prepare it with `python -m"
  ):
    open_rows(tmp_path)
  with pytest.raises(ValueError, match=r"--config.data.train names no file"):
    jsel.data.open_rows(ConfigDict({"name": "array_record"}))


def test_images_are_kept_as_they_are_and_brought_to_any_size(tmp_path, image_folder, pictures):
  rows = jsel.data.image_folder.ImageFolderRows(str(image_folder), image_size=8, channels=3)
  write(rows, tmp_path / "set", encoding="image")
  found = open_rows(tmp_path / "set").train
  assert found.input_shape == (8, 8, 3)
  np.testing.assert_array_equal(
    found.take(np.arange(30))["inputs"], rows.take(np.arange(30))["inputs"]
  )
  assert found.encoded(np.array([7])) == rows.encoded(np.array([7]))
  other = open_rows(tmp_path / "set", image_size=6).train
  same = jsel.data.image_folder.ImageFolderRows(str(image_folder), image_size=6, channels=3)
  np.testing.assert_array_equal(
    other.take(np.arange(30))["inputs"], same.take(np.arange(30))["inputs"]
  )
  assert found.moments() is not None
  assert other.moments() is None
  write(rows, tmp_path / "raw")
  with pytest.raises(
    ValueError, match=r"image_size=6, but the rows were prepared as raw \[8, 8, 3"
  ):
    open_rows(tmp_path / "raw", image_size=6)


def test_a_set_is_normalized_by_what_info_says(tmp_path, rng):
  inputs = rng.integers(0, 256, (500, 4, 4, 3)).astype(np.uint8)
  inputs[..., 2] = 9  # a constant channel becomes 0
  rows = jsel.data.ArrayRows(inputs, np.arange(500) % 4)
  write(rows, tmp_path / "set")
  found = open_rows(tmp_path / "set")
  from_info = normalizer(found)(inputs)
  x = inputs.astype(np.float64)
  mean, deviation = x.mean((0, 1, 2)), x.std((0, 1, 2))
  expected = (x - mean) / np.where(deviation > 0, deviation, 1)
  np.testing.assert_allclose(from_info, expected, atol=1e-5)
  part = found._replace(train=SubsetRows(found.train, np.arange(100)))
  by_reading = np.asarray(normalizer(part)(inputs[:100]))
  np.testing.assert_allclose(by_reading[..., :2].mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(by_reading[..., :2].std((0, 1, 2)), 1, atol=1e-5)


def test_a_record_is_no_pickle_and_says_so():
  label, row = records.unpack(records.pack(2**31 - 1, b"x"))
  assert (label, bytes(row)) == (2**31 - 1, b"x")
  for broken in (b"", b"jsr1", b"\x80\x05abcdefgh"):
    with pytest.raises(ValueError, match="no record of this format"):
      records.unpack(broken)


def test_made_up_rows_are_a_function_of_their_id():
  rows = SyntheticRows("smoke", 100)
  batch = rows.take(np.array([40, 3, 40]))
  np.testing.assert_array_equal(batch["inputs"][0], batch["inputs"][2])
  assert (batch["inputs"][0] != batch["inputs"][1]).any()
  later = SyntheticRows("smoke", 100, first=37).take(np.array([3]))
  np.testing.assert_array_equal(later["inputs"][0], batch["inputs"][0])
  # A golden value: another NumPy must not change a set that somebody has measured with.
  assert batch["inputs"][0, :2, :2, 0].tolist() == [[186, 199], [202, 212]]
  labels = rows.take(np.arange(100))["labels"]
  assert set(labels) == set(range(10))
