"""Rows of arrays, parts of rows, and what is refused of a row."""

import pickle

import numpy as np
import pytest

from jsel.data.arrays import Split
from jsel.data.parts import hold_out_rows
from jsel.data.rows import ArrayRows, SubsetRows, blocks, read_all, read_labels
from jsel.data.split import hold_out


def with_value(array, index, value):
  array[index] = value
  return array


@pytest.mark.parametrize(
  ("inputs", "labels", "message"),
  [
    (np.zeros((5, 2), np.float32), [0, 1, 2, 1, 0], r"mine: label 2 of row 2 is not in \[0, 2\)"),
    (np.zeros((5, 2), np.float32), [0, 1, 0, -1, 0], r"mine: label -1 of row 3 is not in \[0, 2\)"),
    (with_value(np.zeros((5, 2), np.float32), (3, 1), np.nan), [0] * 5, "column 1 of row 3 is nan"),
    (with_value(np.zeros((5, 2), np.float32), (2, 0), np.inf), [0] * 5, "column 0 of row 2 is inf"),
    (np.full((5, 2, 2, 1), 1.5, np.float32), [0] * 5, r"pixel \(0, 0, 0\) of row 4 is 1.5"),
  ],
)
def test_a_broken_row_is_named_by_its_id(inputs, labels, message):
  rows = ArrayRows(inputs, np.array(labels), what="mine", classes=2)
  with pytest.raises(ValueError, match=message) as error:
    rows.take(np.array([4, 3, 2]))
  assert "\n" not in str(error.value)
  # Of rows held out of others it is the id in the file that people can look up.
  with pytest.raises(ValueError, match=message):
    SubsetRows(rows, np.array([2, 3, 4])).take(np.array([2, 1, 0]))
  good = rows.take(np.array([0, 1])) if inputs.ndim == 2 else {"labels": np.zeros(2)}
  assert len(good["labels"]) == 2


def test_lengths_must_agree():
  with pytest.raises(ValueError, match="3 inputs but 2 labels"):
    ArrayRows(np.zeros((3, 1), np.float32), np.zeros(2, np.int32))


def test_rows_are_held_out_as_arrays_are(rng):
  split = Split(
    rng.standard_normal((200, 3)).astype(np.float32), rng.integers(0, 5, 200).astype(np.int32)
  )
  for arrays, rows in zip(
    hold_out(split, 0.3, seed=4), hold_out_rows(ArrayRows(*split), 0.3, seed=4), strict=True
  ):
    np.testing.assert_array_equal(read_all(rows).inputs, arrays.inputs)
    np.testing.assert_array_equal(read_labels(rows), arrays.labels)


def test_a_part_of_a_part_is_a_part(rng):
  inputs = rng.standard_normal((100, 2)).astype(np.float32)
  outer = rng.permutation(100)[:60]
  inner = rng.permutation(60)[:20]
  rows = SubsetRows(SubsetRows(ArrayRows(inputs, np.arange(100)), outer), inner)
  np.testing.assert_array_equal(rows.take(np.arange(20))["labels"], outer[inner])
  np.testing.assert_array_equal(read_labels(rows), outer[inner])
  with pytest.raises(ValueError, match="holds arrays, no encoded images"):
    rows.encoded(np.array([0]))


def test_a_subset_of_rows_that_are_not_there_is_refused():
  with pytest.raises(ValueError, match="there is no row 3"):
    SubsetRows(ArrayRows(np.zeros((3, 1), np.float32), np.zeros(3, np.int32)), np.array([0, 3]))


@pytest.mark.parametrize(
  ("row", "count"), [((1,), 1024), ((224, 224, 3), 222), ((2**13, 2**13), 1)]
)
def test_blocks_hold_what_fits(row, count):
  class Shape:
    size, input_shape, input_dtype = 2500, row, np.dtype(np.uint8)

  ids = list(blocks(Shape()))
  assert len(ids[0]) == count
  np.testing.assert_array_equal(np.concatenate(ids), np.arange(2500))
  np.testing.assert_array_equal(np.concatenate(list(blocks(Shape(), 7, 500))), np.arange(7, 500))


def test_the_hash_of_arrays_is_of_all_bytes_and_of_a_part_of_its_ids(rng):
  inputs, labels = rng.standard_normal((10, 2)).astype(np.float32), np.arange(10)
  rows = ArrayRows(inputs, labels)
  changed = with_value(inputs.copy(), (5, 1), 0)
  hashes = {
    rows.sha256(),
    ArrayRows(changed, labels).sha256(),
    ArrayRows(inputs, labels[::-1]).sha256(),
    SubsetRows(rows, np.arange(10)).sha256(),
    SubsetRows(rows, np.arange(9)).sha256(),
    SubsetRows(rows, np.arange(10)[::-1]).sha256(),
  }
  assert len(hashes) == 6
  assert ArrayRows(inputs.copy(), labels.astype(np.int32)).sha256() == rows.sha256()


def test_rows_of_arrays_are_pickled():
  rows = SubsetRows(ArrayRows(np.eye(3, dtype=np.float32), np.arange(3)), np.array([2, 0]))
  again = pickle.loads(pickle.dumps(rows))
  np.testing.assert_array_equal(again.take(np.array([1, 0]))["labels"], [0, 2])
  assert repr(again) == "SubsetRows(ArrayRows(rows, 3 x [3] float32), 2 of them)"
