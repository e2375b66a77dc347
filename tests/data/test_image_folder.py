"""Folders of images: order, classes, sizes, and what is told of those that cannot be read."""

import numpy as np
import pytest
from ml_collections import ConfigDict

import jsel.data
from jsel.data.image_folder import ImageFolderRows


def rows_of(folder, size=0):
  return ImageFolderRows(str(folder), image_size=size, channels=3)


def open_rows(**keys):
  return jsel.data.open_rows(ConfigDict({"name": "image_folder", **keys}))


def test_classes_are_numbered_by_name_and_rows_by_path(image_folder):
  rows = rows_of(image_folder)
  assert rows.names == ["a", "b", "c"]
  np.testing.assert_array_equal(rows.labels(), np.repeat(np.arange(3), 10))


def test_parts_are_found_below_dir(image_folder, tmp_path):
  (tmp_path / "set").mkdir()
  image_folder.rename(tmp_path / "set" / "train")
  with pytest.raises(ValueError, match=r"no test rows: set --config.data.test"):
    open_rows(dir=str(tmp_path / "set"))
  (tmp_path / "set" / "train" / "c").rename(tmp_path / "set" / "c")
  (tmp_path / "set" / "test").mkdir()
  (tmp_path / "set" / "c").rename(tmp_path / "set" / "test" / "c")
  with pytest.raises(ValueError, match=r"test has other classes than the train part \(a, b, c\)"):
    open_rows(dir=str(tmp_path / "set"))
  (tmp_path / "set" / "test" / "a").mkdir()
  (tmp_path / "set" / "test" / "b").mkdir()
  for name in "ab":
    (tmp_path / "set" / "test" / "c" / f"02{'ab'.index(name)}.png").rename(
      tmp_path / "set" / "test" / name / "x.png"
    )
  for number in range(22, 24):
    (tmp_path / "set" / "train" / "c").mkdir(exist_ok=True)
    (tmp_path / "set" / "test" / "c" / f"0{number}.png").rename(
      tmp_path / "set" / "train" / "c" / f"{number}.PNG"
    )
  found = open_rows(dir=str(tmp_path / "set"))
  assert (found.train.size, found.test.size, found.classes) == (22, 8, 3)


def test_a_size_brings_all_to_one_shape(image_folder, make_png):
  (image_folder / "a" / "odd [1].png").write_bytes(make_png(np.zeros((9, 30, 3), np.uint8)))
  with pytest.raises(ValueError, match=r"row 10 has 9x30 pixels, others have 12x10: set"):
    rows_of(image_folder).take(np.arange(12))
  batch = rows_of(image_folder, size=8).take(np.arange(31))
  assert batch["inputs"].shape == (31, 8, 8, 3)
  assert not batch["inputs"][10].any()


def test_a_broken_image_is_named_when_it_is_taken(image_folder):
  path = image_folder / "b" / "012.png"
  path.write_bytes(path.read_bytes()[:60])
  rows = rows_of(image_folder)
  rows.take(np.array([11, 13]))
  with pytest.raises(ValueError, match="row 12 is no whole PNG or JPEG"):
    rows.take(np.array([11, 12, 13]))


def test_folders_without_images_are_refused(tmp_path):
  with pytest.raises(ValueError, match="gone has no images: expected CLASS/NAME"):
    rows_of(tmp_path / "gone")
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "notes.txt").write_text("")
  (tmp_path / "loose.png").write_bytes(b"")
  with pytest.raises(ValueError, match="has no images"):
    rows_of(tmp_path)
  with pytest.raises(ValueError, match=r"no train rows: --config.data.train names no file"):
    open_rows()


def test_the_hash_sees_names_and_sizes(image_folder):
  first = rows_of(image_folder).sha256()
  assert rows_of(image_folder, size=8).sha256() != first
  path = image_folder / "a" / "000.png"
  path.rename(image_folder / "b" / "000.png")
  moved = rows_of(image_folder).sha256()
  assert moved != first
  (image_folder / "b" / "000.png").rename(path)
  assert rows_of(image_folder).sha256() == first
  path.write_bytes(path.read_bytes() + b"x")
  assert rows_of(image_folder).sha256() not in (first, moved)
