"""Checked arrays, the stratified split, and the data set's hash."""

import numpy as np
import pytest
from ml_collections import ConfigDict

import jsel.data
from jsel.data.arrays import BLOCK_ROWS, Split, checked, fingerprint
from jsel.data.split import hold_out, stratified


def features(n=6, d=3):
  return np.arange(n * d, dtype=np.float32).reshape(n, d)


def labels(n=6):
  return np.arange(n) % 3


def test_good_rows_pass_unchanged():
  split = checked(features(), labels(), what="mine", classes=3)
  np.testing.assert_array_equal(split.inputs, features())
  np.testing.assert_array_equal(split.labels, labels())
  assert split.labels.dtype == np.int32


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_get_a_channel_axis(dtype):
  assert checked(np.zeros((6, 4, 5), dtype), labels(), what="mine").inputs.shape == (6, 4, 5, 1)


def with_value(array, index, value):
  array[index] = value
  return array


@pytest.mark.parametrize(
  ("inputs", "given", "message"),
  [
    (features().astype(np.float64), labels(), r"dtype float64: save features as float32"),
    (features().astype(np.int64), labels(), r"dtype int64"),
    (features().astype(np.uint8), labels(), r"shape \(6, 3\) and dtype uint8: expected features"),
    (np.zeros(6, np.float32), labels(), r"shape \(6,\)"),
    (np.zeros((0, 3), np.float32), labels(0), r"shape \(0, 3\) are empty"),
    (features(), labels(5), r"6 inputs but 5 labels"),
    (features(), labels().astype(np.float32), r"labels have shape \(6,\) and dtype float32"),
    (features(), labels()[:, None], r"labels have shape \(6, 1\)"),
    (features(), labels() > 0, r"dtype bool"),
    (features(), with_value(labels(), [2, 4], -1), r"label -1 of row 2 is negative"),
    (features(), with_value(labels(), [3, 5], 7), r"label 7 of row 3 is not below .* 3"),
    (features(), with_value(labels(), 1, 2**40), r"label 1099511627776 of row 1"),
    (with_value(features(), (4, 1), np.nan), labels(), r"column 1 of row 4 is nan"),
    (with_value(features(), (5, 2), -np.inf), labels(), r"column 2 of row 5 is -inf"),
    (np.full((6, 2, 2), 1.5, np.float32), labels(), r"pixel \(0, 0, 0\) of row 0 is 1.5"),
    (np.full((6, 2, 2), np.nan, np.float32), labels(), r"pixel \(0, 0, 0\) of row 0 is nan"),
  ],
)
def test_bad_rows_are_refused_with_the_first(inputs, given, message):
  with pytest.raises(ValueError, match=f"^mine: .*{message}") as error:
    checked(inputs, given, what="mine", classes=3)
  assert "\n" not in str(error.value)


def test_a_bad_value_is_found_beyond_the_first_block():
  n = BLOCK_ROWS + 10
  inputs = with_value(np.zeros((n, 2), np.float32), (n - 2, 1), np.inf)
  with pytest.raises(ValueError, match=f"column 1 of row {n - 2} is inf"):
    checked(inputs, np.zeros(n, np.int64), what="mine")


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.77])
def test_each_class_is_held_out_in_proportion(rng, fraction):
  skewed = rng.choice(4, 997, p=[0.6, 0.25, 0.1, 0.05]).astype(np.int32)
  kept, held = stratified(skewed, fraction, seed=1)
  np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(997))
  assert len(held) == round(997 * fraction)
  off = np.bincount(skewed[held]) - fraction * np.bincount(skewed)
  assert np.abs(off).max() < 1


def test_the_seed_decides_who_is_held_out():
  many = np.zeros(1000, np.int32)
  held = stratified(many, 0.5, seed=1)[1]
  np.testing.assert_array_equal(held, stratified(many, 0.5, seed=1)[1])
  # 250 of 500 are shared by chance, with a deviation of 8.
  assert 200 < len(np.intersect1d(held, stratified(many, 0.5, seed=2)[1])) < 300


def test_the_split_never_changes():
  # A golden value: another NumPy must not move rows between train and test.
  held = stratified(np.arange(20, dtype=np.int32) % 2, 0.3, seed=0)[1]
  assert held.tolist() == [2, 3, 8, 11, 13, 18]


def test_rows_and_labels_stay_together():
  kept, held = hold_out(Split(features(30), (labels(30)).astype(np.int32)), 0.2, seed=0)
  for part in (kept, held):
    np.testing.assert_array_equal((part.inputs[:, 0] / 3).astype(int) % 3, part.labels)


@pytest.mark.parametrize(
  ("fraction", "message"),
  [(0, "got 0"), (1, "got 1"), (0.01, "holds out none"), (0.9, "all 2 rows of class 0")],
)
def test_a_fraction_that_empties_a_part_is_refused(fraction, message):
  with pytest.raises(ValueError, match=message):
    stratified(np.array([0, 0, 1, 1], np.int32), fraction, seed=0)


def test_the_hash_sees_every_change():
  split = Split(features(), labels().astype(np.int32))
  hashes = {
    fingerprint(split, None, split),
    fingerprint(split, split, None),
    fingerprint(split, None, None),
    fingerprint(split._replace(inputs=with_value(features(), (0, 0), 1)), None, split),
    fingerprint(split._replace(labels=split.labels[::-1]), None, split),
    fingerprint(split._replace(inputs=features().reshape(6, 3, 1, 1)), None, split),
    fingerprint(Split(features()[::-1], split.labels[::-1]), None, split),
  }
  assert len(hashes) == 7
  assert all(len(digest) == 64 for digest in hashes)


def test_the_hash_does_not_depend_on_memory_layout():
  split = Split(features(), labels().astype(np.int32))
  fortran = split._replace(inputs=np.asfortranarray(split.inputs))
  assert fingerprint(fortran) == fingerprint(split)


def digits(**more):
  return jsel.data.load(ConfigDict({"name": "digits", "split_seed": 0, **more}))


def test_digits_are_all_there():
  found = digits(validation_fraction=0.1)
  parts = (found.train, found.validation, found.test)
  assert [len(part.labels) for part in parts] == [1294, 144, 359]
  assert found.scale == max(part.inputs.max() for part in parts) == 16
  assert found.train.inputs.dtype == np.uint8
  from sklearn.datasets import load_digits

  images = np.concatenate([part.inputs.reshape(-1, 64) for part in parts])
  rows = lambda x: sorted(map(tuple, x.astype(int).tolist()))
  assert rows(images) == rows(load_digits()["data"])


def test_the_same_config_gives_the_same_hash_and_another_seed_another():
  found = digits()
  assert digits().sha256 == found.sha256
  assert found.validation is None
  others = (digits(split_seed=1).sha256, digits(validation_fraction=0.1).sha256)
  assert len({found.sha256, *others}) == 3


def test_the_nearest_name_is_told():
  with pytest.raises(ValueError, match=r"no data set 'fashion', did you mean 'fashion_mnist'\?"):
    jsel.data.load(ConfigDict({"name": "fashion"}))
