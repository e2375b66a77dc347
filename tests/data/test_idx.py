"""idx files, whole and broken, and Fashion-MNIST made of them."""

import gzip
import struct

import numpy as np
import pytest
from ml_collections import ConfigDict

import jsel.data
from jsel.data import fashion_mnist, idx


def encoded(array, code=0x08):
  header = struct.pack(">HBB", 0, code, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
  return header + array.tobytes()


@pytest.fixture
def images(rng):
  return rng.integers(0, 256, (5, 4, 3)).astype(np.uint8)


@pytest.fixture(params=["raw", "gz"])
def write(request, tmp_path):
  def write(data, name="images"):
    gz = request.param == "gz"
    path = tmp_path / (f"{name}.gz" if gz else name)
    path.write_bytes(gzip.compress(data) if gz else data)
    return path

  return write


def test_an_array_comes_back(write, images):
  np.testing.assert_array_equal(idx.read(write(encoded(images)), ndim=3), images)


@pytest.mark.parametrize(("code", "dtype"), [(0x09, "i1"), (0x0B, ">i2"), (0x0C, ">i4")])
def test_other_types_come_in_native_order(write, code, dtype):
  array = np.array([[-3, 2, 100]], dtype)
  got = idx.read(write(encoded(array, code)), ndim=2)
  np.testing.assert_array_equal(got, array)
  assert got.dtype.isnative
  assert got.dtype == np.dtype(dtype).newbyteorder("=")


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda data: data[:-7], "expected 60 bytes after the header, got 53"),
    (lambda data: data + b"x", "expected 60 bytes after the header, got more than 60"),
    (lambda data: data[:10], "cut short in its header: expected 16 bytes, got 10"),
    (lambda data: data[:3], "begins with 0x000008, expected 0x0000"),
    (lambda data: b"", "begins with 0x,"),
    (lambda data: b"\x80" + data[1:], "is no idx file: it begins with 0x80000803"),
    (lambda data: data[:2] + b"\x07" + data[3:], "begins with 0x00000703"),
    (lambda data: data[:3] + b"\x01" + data[4:], "has 1 dimensions, expected 3"),
    # A header that claims 2**96 bytes must not take them.
    (lambda data: data[:4] + b"\xff" * 12 + data[16:], "bytes after the header, got 60"),
  ],
)
def test_a_broken_file_is_named_with_the_numbers(write, images, damage, message):
  path = write(damage(encoded(images)))
  with pytest.raises(ValueError, match=message) as error:
    idx.read(path, ndim=3)
  assert path.name in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "damage",
  [lambda data: data[:-20], lambda data: b"plain" + data, lambda data: data[:30] + b"\0" * 20],
)
def test_a_broken_gzip_is_named(tmp_path, images, damage):
  path = tmp_path / "images.gz"
  path.write_bytes(damage(gzip.compress(encoded(images))))
  with pytest.raises(ValueError, match=r"images.gz is not a whole gzip file"):
    idx.read(path, ndim=3)


@pytest.fixture
def folder(tmp_path, rng):
  for prefix, n in (("train", 40), ("t10k", 20)):
    pixels = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)
    classes = (np.arange(n) % 10).astype(np.uint8)
    for kind, array in (("images", pixels), ("labels", classes)):
      name = f"{prefix}-{kind}-idx{array.ndim}-ubyte"
      (tmp_path / f"{name}.gz").write_bytes(gzip.compress(encoded(array)))
  return tmp_path


def config(folder):
  return ConfigDict({"name": "fashion_mnist", "dir": str(folder), "validation_fraction": 0.25})


def test_fashion_mnist_is_read_from_the_given_folder(folder):
  found = jsel.data.load(config(folder))
  assert found.train.inputs.shape == (30, 28, 28, 1)
  assert found.test.inputs.shape == (20, 28, 28, 1)
  np.testing.assert_array_equal(np.bincount(found.validation.labels), np.ones(10))
  np.testing.assert_array_equal(found.test.labels, np.arange(20) % 10)
  assert (found.scale, found.classes) == (255, 10)


def test_a_missing_file_of_the_four_is_named(folder):
  (folder / "t10k-labels-idx1-ubyte.gz").unlink()
  with pytest.raises(ValueError, match=r"has no t10k-labels-idx1-ubyte\.gz"):
    jsel.data.load(config(folder))


def test_swapped_files_are_found(folder):
  (folder / "train-labels-idx1-ubyte.gz").rename(folder / "t10k-labels-idx1-ubyte.gz")
  (folder / "t10k-labels-idx1-ubyte.gz").rename(folder / "train-labels-idx1-ubyte.gz")
  (folder / "train-images-idx3-ubyte.gz").rename(folder / "train-labels-idx1-ubyte.gz")
  (folder / "t10k-images-idx3-ubyte.gz").rename(folder / "train-images-idx3-ubyte.gz")
  with pytest.raises(ValueError, match=r"has 3 dimensions, expected 1: are images and labels swap"):
    jsel.data.load(config(folder))


def test_missing_data_print_the_command_that_installs_them(tmp_path, monkeypatch):
  monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", tmp_path / "system")
  with pytest.raises(ValueError, match=r"`apt-get update && apt-get install -y dataset-fashion-mn"):
    jsel.data.load(config(tmp_path))


@pytest.mark.skipif(not fashion_mnist.SYSTEM_FOLDER.is_dir(), reason=fashion_mnist.INSTALL)
def test_the_installed_set_is_whole():
  found = jsel.data.load(ConfigDict({"name": "fashion_mnist"}))
  np.testing.assert_array_equal(np.bincount(found.train.labels), np.full(10, 6000))
  np.testing.assert_array_equal(np.bincount(found.test.labels), np.full(10, 1000))
  assert found.train.labels[:5].tolist() == [9, 0, 0, 3, 0]  # as published
