"""What every source promises, over all of them: the same rows in every form."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jsel.data
from jsel.data import prepare
from jsel.data.rows import read_labels
from jsel.training.config import base_config

FORMS = (
  "npz",
  "npz tokens",
  "npy",
  "npy images",
  "npy tokens",
  "parquet features",
  "parquet lists",
  "parquet images",
  "parquet structs",
  "image_folder",
  "tfds",
  "tfds features",
  "array_record",
  "array_record images",
  "array_record features",
  "array_record tokens",
)


def write_parquet(folder, column, labels):
  """Two files, row groups of 7, so that a batch crosses both."""
  table = pa.table({"image": column, "label": labels})
  half = table.num_rows // 2
  pq.write_table(table.slice(0, half), folder / "a-0.parquet", row_group_size=7)
  pq.write_table(table.slice(half), folder / "a-1.parquet", row_group_size=7)
  return {"name": "parquet", "train": f"{folder}/a-*.parquet"}


@pytest.fixture
def source(request, tmp_path, pictures, vectors, image_folder, make_png, make_tfds):
  """``(keys of config.data, inputs, labels)`` of the rows in one form."""
  form = request.param
  (images, classes), (features, labels) = pictures, vectors
  encoded = [make_png(image) for image in images]
  if form.endswith("tokens"):
    features = (10 * np.abs(features)).astype(np.int32)
    features[::2, -2:] = -1
  if form.startswith("array_record"):
    of = {"name": "image_folder", "train": str(image_folder)}
    if form in ("array_record features", "array_record tokens"):
      np.savez(tmp_path / "rows.npz", inputs=features, labels=labels)
      of = {"name": "own", "train": str(tmp_path / "rows.npz")}
    dataset = jsel.data.open_rows(config(**of))
    write = lambda part: prepare.prepare(
      dataset._replace(train=part, test=part),
      str(tmp_path / "set"),
      shards=3,
      encoding="image" if form == "array_record images" else "raw",
      overwrite=False,
      synthetic=False,
    )
    write(dataset.train._rows)  # all rows, before a part is held out
    keys = {"name": "array_record", "train": str(tmp_path / "set" / "train")}
    return (keys, images, classes) if of["name"] == "image_folder" else (keys, features, labels)
  if form.startswith("npz"):
    np.savez(tmp_path / "rows.npz", inputs=features, labels=labels)
    return {"name": "own", "train": str(tmp_path / "rows.npz")}, features, labels
  if form.startswith("npy"):
    inputs, labels = (images, classes) if form == "npy images" else (features, labels)
    np.save(tmp_path / "x.npy", inputs)
    np.save(tmp_path / "y.npy", labels)
    paths = {"train": str(tmp_path / "x.npy"), "train_labels": str(tmp_path / "y.npy")}
    return {"name": "own", **paths}, inputs, labels
  if form == "parquet features":
    column = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    return write_parquet(tmp_path, column, labels), features, labels
  if form == "parquet lists":
    return write_parquet(tmp_path, pa.array(list(features)), labels), features, labels
  if form == "parquet images":
    return write_parquet(tmp_path, pa.array(encoded, pa.binary()), classes), images, classes
  if form == "parquet structs":
    column = pa.array([{"bytes": piece, "path": None} for piece in encoded])
    return write_parquet(tmp_path, column, classes), images, classes
  if form == "image_folder":
    return {"name": "image_folder", "train": str(image_folder)}, images, classes
  import tensorflow_datasets as tfds

  folder = tmp_path / "data"
  keys = {"name": "tfds", "tfds_name": "mine", "dir": str(folder), "train": "train"}
  label = tfds.features.ClassLabel(num_classes=4)
  if form == "tfds":
    spec = tfds.features.FeaturesDict(
      {"image": tfds.features.Image(shape=(None, None, 3)), "label": label}
    )
    rows = [{"image": piece, "label": c} for piece, c in zip(encoded, classes, strict=True)]
    make_tfds(folder / "mine" / "1.0.0", {"train": rows}, spec)
    return keys, images, classes
  spec = tfds.features.FeaturesDict(
    {"x": tfds.features.Tensor(shape=(6,), dtype=np.float32), "y": label}
  )
  rows = [{"x": x, "y": y} for x, y in zip(features, labels, strict=True)]
  make_tfds(folder / "mine" / "1.0.0", {"train": rows}, spec)
  return {**keys, "input_column": "x", "label_column": "y"}, features, labels


def config(**keys):
  """The section data with its defaults."""
  section = base_config().data
  section.update({"test_fraction": 0.2, **keys})
  return section


all_forms = pytest.mark.parametrize("source", FORMS, indirect=True)


@all_forms
def test_rows_are_those_that_were_written(source, rng):
  keys, inputs, labels = source
  found = jsel.data.open_rows(config(**keys))
  whole = found.train._rows  # of which the test part is held out
  assert (whole.size, whole.input_shape) == (len(labels), inputs.shape[1:])
  assert whole.input_dtype == inputs.dtype
  assert found.scale == (255 if inputs.dtype == np.uint8 else 1)
  assert found.classes in (labels.max() + 1, 4)
  for ids in (
    rng.integers(0, whole.size, 64),
    np.arange(whole.size)[::-1],
    np.array([3], np.int32),
  ):
    batch = whole.take(ids)
    np.testing.assert_array_equal(batch["inputs"], inputs[ids])
    np.testing.assert_array_equal(batch["labels"], labels[ids])
    assert batch["labels"].dtype == np.int32
    assert batch["inputs"].dtype == inputs.dtype
    batch["inputs"][:] = 0  # the caller's own: what is read next is not changed by it
  assert whole.take(np.zeros(0, np.int64))["inputs"].shape == (0, *inputs.shape[1:])
  np.testing.assert_array_equal(read_labels(whole), labels)


@all_forms
def test_what_is_loaded_is_what_is_read_by_row(source):
  keys, inputs, _ = source
  section = config(**keys, validation_fraction=0.25, split_seed=5)
  found, loaded = jsel.data.open_rows(section), jsel.data.load(section)
  seen = []
  for part in ("train", "validation", "test"):
    rows, arrays = getattr(found, part), getattr(loaded, part)
    batch = rows.take(np.arange(rows.size))
    np.testing.assert_array_equal(batch["inputs"], arrays.inputs)
    np.testing.assert_array_equal(batch["labels"], arrays.labels)
    np.testing.assert_array_equal(read_labels(rows), arrays.labels)
    seen += [*map(bytes, arrays.inputs)]
  assert sorted(seen) == sorted(map(bytes, inputs))  # every row once
  assert (found.classes, found.name, found.scale) == (loaded.classes, loaded.name, loaded.scale)


@all_forms
def test_rows_are_pickled_small_and_read_alike(source):
  keys, _, _ = source
  rows = jsel.data.open_rows(config(**keys)).train
  ids = np.arange(rows.size)
  before = rows.take(ids)
  data = pickle.dumps(rows)
  after = pickle.loads(data).take(ids)
  for name in before:
    np.testing.assert_array_equal(before[name], after[name])
  if keys["train"].endswith(".npz"):
    return  # it is in memory
  assert len(data) < 12000
  assert len(repr(rows)) < 300


@all_forms
def test_threads_read_side_by_side(source, rng):
  keys, inputs, labels = source
  rows = jsel.data.open_rows(config(**keys)).train._rows
  batches = [rng.integers(0, rows.size, 16) for _ in range(24)]
  with ThreadPoolExecutor(4) as pool:
    for ids, batch in zip(batches, pool.map(rows.take, batches), strict=True):
      np.testing.assert_array_equal(batch["inputs"], inputs[ids])
      np.testing.assert_array_equal(batch["labels"], labels[ids])


@all_forms
def test_ids_that_are_not_there_are_refused(source):
  keys, _, _ = source
  rows = jsel.data.open_rows(config(**keys)).train
  for ids, message in (
    (np.array([0, rows.size]), f"there is no row {rows.size}: ids are from 0 to {rows.size - 1}"),
    (np.array([-1]), "there is no row -1"),
    (np.array([0.0]), "dtype float64"),
    (np.array([[0]]), r"shape \(1, 1\)"),
  ):
    with pytest.raises(ValueError, match=message):
      rows.take(ids)


@all_forms
def test_the_hash_is_of_the_data_and_the_parts(source):
  keys, _, _ = source
  digest = lambda **more: jsel.data.open_rows(config(**{**keys, **more})).sha256
  first = digest()
  assert len(first) == 64
  assert digest() == first
  assert len({first, digest(split_seed=1), digest(test_fraction=0.4)}) == 3


def test_sets_in_memory_are_rows_too():
  section = config(name="digits", validation_fraction=0.1)
  found, loaded = jsel.data.open_rows(section), jsel.data.load(section)
  for part in ("train", "validation", "test"):
    rows, arrays = getattr(found, part), getattr(loaded, part)
    ids = np.arange(rows.size)[::-3]
    np.testing.assert_array_equal(rows.take(ids)["inputs"], arrays.inputs[ids])
    np.testing.assert_array_equal(rows.take(ids)["labels"], arrays.labels[ids])
  assert (found.classes, found.scale, found.name) == (10, 16, "digits")


def test_parts_are_given_or_held_out_but_not_both(tmp_path, vectors):
  np.savez(tmp_path / "rows.npz", inputs=vectors[0], labels=vectors[1])
  np.savez(tmp_path / "other.npz", inputs=vectors[0][:, :5], labels=vectors[1])
  keys = {"name": "own", "train": str(tmp_path / "rows.npz")}
  given = config(**keys, validation=keys["train"], test=keys["train"])
  assert jsel.data.open_rows(given).validation.size == 50
  given.validation_fraction = 0.1
  with pytest.raises(
    ValueError, match=r"validation names rows and .*fraction=0.1 asks to hold out"
  ):
    jsel.data.open_rows(given)
  with pytest.raises(ValueError, match=r"data.test are float32\(5,\), those of .* float32\(6,\)"):
    jsel.data.open_rows(config(**keys, test=str(tmp_path / "other.npz")))
