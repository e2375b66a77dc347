"""Sets of TensorFlow Datasets: found, read in any split, and what is told of broken ones.

Most tests read a set that is written here in the form that TFDS writes, without TensorFlow. One
reads Fashion-MNIST as TFDS itself has prepared it, where JSEL_TFDS_DIR names the folder.
"""

import os
import pathlib
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

import jsel.data
from jsel.data import tfds

PREPARED = os.environ.get("JSEL_TFDS_DIR", "")


def open_rows(**keys):
  defaults = {"name": "tfds", "input_column": "image", "label_column": "label"}
  return jsel.data.open_rows(ConfigDict({**defaults, "test_fraction": 0.2, **keys}))


@pytest.fixture(autouse=True)
def no_system_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "system"))


@pytest.fixture
def spec():
  from tensorflow_datasets import features

  return features.FeaturesDict(
    {
      "image": features.Image(shape=(12, 10, 3)),
      "label": features.ClassLabel(num_classes=3),
      "words": features.Text(),
    }
  )


@pytest.fixture
def rows(pictures, make_png):
  return [
    {"image": make_png(image), "label": label, "words": b"some"}
    for image, label in zip(*pictures, strict=True)
  ]


@pytest.fixture
def data_dir(tmp_path, make_tfds, spec, rows):
  """Set "mine" in versions 1.2.0 and 1.10.0, "both/one" and "both/two" with a config."""
  folder = tmp_path / "data"
  make_tfds(folder / "mine" / "1.2.0", {"train": rows[:5]}, spec)
  make_tfds(folder / "mine" / "1.10.0", {"train": rows[5:], "test": rows[:5]}, spec)
  return str(folder)


def test_the_newest_version_is_read_and_any_can_be_named(data_dir, pictures):
  found = open_rows(tfds_name="mine", dir=data_dir)
  assert (found.train.size, found.test.size, found.classes) == (25, 5, 3)
  assert found.source == "TensorFlow Datasets mine/1.10.0"
  np.testing.assert_array_equal(found.train.take(np.arange(25))["inputs"], pictures[0][5:])
  np.testing.assert_array_equal(found.test.take(np.arange(5))["labels"], pictures[1][:5])
  assert open_rows(tfds_name="mine:1.2.0", dir=data_dir).train.size == 4  # one held out
  assert open_rows(tfds_name="mine", dir=f"{data_dir}/mine/1.2.0").train.size == 4


def test_splits_are_those_of_tfds(data_dir, pictures):
  found = open_rows(
    tfds_name="mine", dir=data_dir, train="train[:80%]", validation="train[80%:]", test="test[2:]"
  )
  assert (found.train.size, found.validation.size, found.test.size) == (20, 5, 3)
  np.testing.assert_array_equal(found.validation.take(np.arange(5))["inputs"], pictures[0][25:])
  np.testing.assert_array_equal(found.test.take(np.array([2, 0]))["inputs"], pictures[0][[4, 2]])
  whole = open_rows(tfds_name="mine", dir=data_dir)
  assert found.sha256 != whole.sha256


def test_a_set_with_configs_names_them(tmp_path, make_tfds, spec, rows):
  for name in ("one", "two"):
    version = make_tfds(tmp_path / "both" / "1.0.0", {"train": rows}, spec)
    (tmp_path / "data" / "both" / name).mkdir(parents=True)
    version.rename(tmp_path / "data" / "both" / name / "1.0.0")
  data_dir = str(tmp_path / "data")
  with pytest.raises(
    ValueError, match=r"both has configs: set .*tfds_name to one, e.g. both/one or b"
  ):
    open_rows(tfds_name="both", dir=data_dir)
  assert open_rows(tfds_name="both/two", dir=data_dir).train.size == 24


def test_images_are_brought_to_a_size(data_dir):
  assert open_rows(tfds_name="mine", dir=data_dir, image_size=8).train.input_shape == (8, 8, 3)


def test_a_feature_without_classes_counts_them(tmp_path, make_tfds):
  from tensorflow_datasets import features

  spec = features.FeaturesDict(
    {
      "image": features.Tensor(shape=(2,), dtype=np.float32),
      "label": features.Scalar(dtype=np.int64),
    }
  )
  rows = [{"image": np.zeros(2, np.float32), "label": c} for c in (0, 6, 1, 0, 6, 1, 0)]
  make_tfds(tmp_path / "data" / "mine" / "1.0.0", {"train": rows, "test": rows}, spec)
  assert open_rows(tfds_name="mine", dir=f"{tmp_path}/data").classes == 7
  found = open_rows(tfds_name="mine", dir=f"{tmp_path}/data", classes=5)
  with pytest.raises(ValueError, match=r"mine/1.0.0 train: label 6 of row 1 is not in \[0, 5\)"):
    found.train.take(np.arange(3))


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    ({"tfds_name": ""}, "tfds_name is empty"),
    (
      {"tfds_name": "gone"},
      r"gone is not in .*data or .*system: prepare it with `python -c .*'gone'",
    ),
    ({"tfds_name": "mine:9.9.9"}, r"mine:9.9.9 is not in .*: prepare it with"),
    ({"train": "valid"}, r"mine/1.10.0: Unknown split 'valid'.*: splits are train, test"),
    ({"train": "train[:"}, r"Error parsing split 'train\[:'"),
    ({"train": "train[:0]"}, r"split 'train\[:0\]' has no rows"),
    (
      {"input_column": "picture"},
      "no feature 'picture': set .*input_column to one of .*image",
    ),
    ({"label_column": "words"}, "feature 'words' is .*, no integer label"),
    ({"input_column": "words"}, r"inputs have (dtype object|shape)"),
    ({"dir": "gs://bucket/data"}, "are read from local disks only, copy the folder"),
  ],
)
def test_what_is_not_there_is_named(data_dir, keys, message):
  with pytest.raises(ValueError, match=message) as error:
    open_rows(**{"tfds_name": "mine", "dir": data_dir, **keys})
  assert "\n" not in str(error.value)


def test_another_set_in_the_folder_is_refused(data_dir):
  with pytest.raises(ValueError, match=r"1.2.0 holds mine, not other: correct --config.data.dir"):
    open_rows(tfds_name="other", dir=f"{data_dir}/mine/1.2.0")


@pytest.mark.parametrize("kept", [0, 0.5])
def test_a_file_cut_short_is_named(data_dir, kept):
  path = next(pathlib.Path(data_dir).glob("mine/1.10.0/mine-test*"))
  data = path.read_bytes()
  path.write_bytes(data[: int(kept * len(data))])
  with pytest.raises(
    ValueError, match=r"1.10.0 could not be read \(mine-test.* is missing or cut sho"
  ):
    open_rows(tfds_name="mine", dir=data_dir)


def test_a_preparation_cut_short_says_so(data_dir):
  (pathlib.Path(data_dir) / "mine" / "1.10.0" / "dataset_info.json").unlink()
  with pytest.raises(
    ValueError, match=r"its preparation was cut short: delete the folder and prepare"
  ):
    open_rows(tfds_name="mine", dir=data_dir)


def test_tensorflow_is_not_imported(data_dir):
  open_rows(tfds_name="mine", dir=data_dir).train.take(np.arange(3))
  assert "tensorflow" not in sys.modules


@pytest.mark.skipif(
  not PREPARED,
  reason="set JSEL_TFDS_DIR=DIR after, where tensorflow-cpu is installed, "
  + tfds.prepare_command("fashion_mnist", "DIR"),
)
def test_fashion_mnist_as_tfds_prepares_it_is_fashion_mnist():
  found = jsel.data.load(
    ConfigDict(
      {
        "name": "tfds",
        "tfds_name": "fashion_mnist",
        "dir": PREPARED,
        "input_column": "image",
        "label_column": "label",
      }
    )
  )
  original = jsel.data.load(ConfigDict({"name": "fashion_mnist"}))
  # TFDS shuffles: the same rows with the same labels, in another order.
  rows = lambda part: sorted(
    image.tobytes() + bytes([label]) for image, label in zip(*part, strict=True)
  )
  for part in ("train", "test"):
    assert rows(getattr(found, part)) == rows(getattr(original, part))
  assert found.classes == 10
