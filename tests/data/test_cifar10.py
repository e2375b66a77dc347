"""CIFAR-10 from stand-ins: an npz archive, and an array_record set as TFDS writes it."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

import jsel.data


def rows(rng, n):
  return rng.integers(0, 256, (n, 32, 32, 3)).astype(np.uint8), np.arange(n) % 10


@pytest.fixture
def parts(rng):
  return {"train": rows(rng, 30), "test": rows(rng, 20)}


def write_npz(path, parts, **changes):
  (x_train, y_train), (x_test, y_test) = parts["train"], parts["test"]
  arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
  np.savez(path, **{**arrays, **changes})


def image_rows(make_png, split, images, labels):
  """Rows as TFDS has them, image files and all."""
  pairs = enumerate(zip(images, labels, strict=True))
  return [
    {"id": f"{split}_{number:05d}".encode(), "image": make_png(image), "label": label}
    for number, (image, label) in pairs
  ]


@pytest.fixture
def prepared(tmp_path, parts, make_tfds, make_png):
  import tensorflow_datasets as tfds

  features = tfds.features.FeaturesDict(
    {
      "id": tfds.features.Text(),
      "image": tfds.features.Image(shape=(32, 32, 3)),
      "label": tfds.features.ClassLabel(num_classes=10),
    }
  )
  rows = {split: image_rows(make_png, split, *part) for split, part in parts.items()}
  return make_tfds(tmp_path / "cifar10" / "3.0.2", rows, features)


@pytest.fixture(autouse=True)
def no_system_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "system"))


def load(folder, **more):
  return jsel.data.load(ConfigDict({"name": "cifar10", "dir": str(folder), **more}))


def check(found, parts):
  for split in ("train", "test"):
    np.testing.assert_array_equal(getattr(found, split).inputs, parts[split][0])
    np.testing.assert_array_equal(getattr(found, split).labels, parts[split][1])
  assert (found.scale, found.classes, found.name) == (255, 10, "cifar10")


def test_an_archive_is_read_by_its_path_or_its_folder(tmp_path, parts):
  write_npz(tmp_path / "cifar10.npz", parts)
  check(load(tmp_path / "cifar10.npz"), parts)
  check(load(tmp_path), parts)


def test_labels_of_keras_are_flattened(tmp_path, parts):
  write_npz(tmp_path / "cifar10.npz", parts, y_train=parts["train"][1][:, None])
  check(load(tmp_path), parts)


def test_a_prepared_set_is_read_without_tensorflow(tmp_path, prepared, parts):
  found = load(tmp_path)
  check(found, parts)
  assert found.source.endswith("TensorFlow Datasets 3.0.2")
  check(load(prepared), parts)


def test_the_system_folder_is_looked_in_last(tmp_path, parts, prepared):
  prepared.parent.rename(tmp_path / "moved")
  (tmp_path / "system").mkdir()
  (tmp_path / "moved").rename(tmp_path / "system" / "cifar10")
  check(load(""), parts)


def test_absent_data_print_the_command_that_prepares_them(tmp_path):
  with pytest.raises(
    ValueError, match=r"CIFAR-10 is not in .*`python -c .*file_format='array_reco"
  ):
    load(tmp_path)


def test_a_preparation_cut_short_says_so(tmp_path, prepared):
  (prepared / "dataset_info.json").unlink()
  with pytest.raises(ValueError, match=r"no dataset_info.json, its preparation was cut short: del"):
    load(tmp_path)


def test_a_set_prepared_in_another_format_says_so(tmp_path, prepared):
  info = json.loads((prepared / "dataset_info.json").read_text())
  (prepared / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
  with pytest.raises(ValueError, match=r"file format is tfrecord, not array_record"):
    load(tmp_path)


def test_a_missing_record_file_is_told(tmp_path, prepared):
  next(prepared.glob("*test*")).unlink()
  with pytest.raises(ValueError, match=r"3.0.2 could not be read .* prepare it again with"):
    load(tmp_path)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"x_train": np.zeros((30, 3, 32, 32), np.uint8)}, r"\(30, 3, 32, 32\), expected uint8"),
    ({"x_test": np.zeros((20, 32, 32, 3), np.float32)}, r"cifar10.npz test: images are float32"),
    ({"y_train": np.full(30, 10)}, r"cifar10.npz train: label 10 of row 0"),
  ],
)
def test_other_images_or_labels_are_refused(tmp_path, parts, changes, message):
  write_npz(tmp_path / "cifar10.npz", parts, **changes)
  with pytest.raises(ValueError, match=message):
    load(tmp_path)
