"""Rows of token ids: what is read, what is refused, and that nothing takes them for numbers."""

import numpy as np
import pytest
from ml_collections import ConfigDict

import jsel.data
from jsel.data.arrays import BLOCK_ROWS, checked
from jsel.data.normalize import normalizer
from jsel.data.prepare import prepare
from jsel.data.rows import ArrayRows
from jsel.data.vocabulary import vocabulary


@pytest.fixture
def tokens(rng):
  rows = rng.integers(0, 50, (40, 6)).astype(np.int32)
  rows[np.arange(6) >= rng.integers(1, 7, (40, 1))] = -1
  return rows, np.arange(40) % 4


@pytest.fixture
def archive(tmp_path, tokens):
  path = tmp_path / "tokens.npz"
  np.savez(path, inputs=tokens[0], labels=tokens[1])
  return path


def own(path, **options):
  return ConfigDict({"name": "own", "train": str(path), "test_fraction": 0.25, **options})


def with_value(rows, index, value):
  rows = rows.copy()
  rows[index] = value
  return rows


ONES = np.ones((5, 3), np.int32)


@pytest.mark.parametrize(
  ("inputs", "message"),
  [
    (with_value(ONES, (3, 1), -2), r"column 1 of row 3 is -2: token ids are from 0, and -1 is"),
    (with_value(ONES, (2, 0), -1), r"row 2 has token 1 in column 1, after padding: move its -1"),
    (ONES[..., None], r"shape \(5, 3, 1\) and dtype int32: expected .* ids \[n, l\] in int32"),
    (ONES[:, 0], r"shape \(5,\) and dtype int32"),
    (ONES.astype(np.int64), r"dtype int64: save features as float32, .* token ids as int32"),
  ],
)
def test_rows_that_are_no_texts_are_refused_with_the_first(inputs, message):
  with pytest.raises(ValueError, match=f"^mine: .*{message}") as error:
    checked(inputs, np.zeros(5, np.int64), what="mine")
  assert "\n" not in str(error.value)
  if inputs.dtype == np.int32 and inputs.ndim == 2:
    rows = ArrayRows(inputs, np.zeros(5, np.int64), what="mine")
    with pytest.raises(ValueError, match=f"^mine: .*{message}"):
      rows.take(np.arange(5))


def test_a_bad_token_is_found_beyond_the_first_block():
  inputs = with_value(np.ones((BLOCK_ROWS + 10, 2), np.int32), (BLOCK_ROWS + 3, 1), -7)
  with pytest.raises(ValueError, match=f"column 1 of row {BLOCK_ROWS + 3} is -7"):
    checked(inputs, np.zeros(len(inputs), np.int64), what="mine")


def test_token_ids_of_ones_own_are_read_as_they_are(archive, tokens, tmp_path):
  found = jsel.data.load(own(archive))
  assert (found.train.inputs.dtype, found.scale) == (np.int32, 1)
  together = np.concatenate([found.train.inputs, found.test.inputs])
  assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, tokens[0].tolist()))
  np.save(tmp_path / "x.npy", tokens[0])
  np.save(tmp_path / "y.npy", tokens[1])
  read = jsel.data.open_rows(own(tmp_path / "x.npy", train_labels=str(tmp_path / "y.npy")))
  batch = read.train.take(np.arange(read.train.size))
  np.testing.assert_array_equal(batch["inputs"], found.train.inputs)


def test_a_prepared_set_keeps_them(archive, tmp_path):
  found = jsel.data.open_rows(own(archive))
  options = {"shards": 2, "encoding": "raw", "overwrite": False, "synthetic": False}
  prepare(found, str(tmp_path / "set"), **options)
  again = jsel.data.load(ConfigDict({"name": "array_record", "dir": str(tmp_path / "set")}))
  expected = jsel.data.load(own(archive))
  np.testing.assert_array_equal(again.train.inputs, expected.train.inputs)
  np.testing.assert_array_equal(again.test.inputs, expected.test.inputs)
  assert again.train.inputs.dtype == np.int32


def test_ids_are_not_normalized_and_all_parts_count_for_the_vocabulary(archive, tokens):
  for found in (jsel.data.load(own(archive)), jsel.data.open_rows(own(archive))):
    np.testing.assert_array_equal(normalizer(found)(tokens[0]), tokens[0])
    assert vocabulary(found) == tokens[0].max() + 1
  largest = with_value(tokens[0], (0, 0), 99)
  train, test = (ArrayRows(rows, tokens[1]) for rows in (tokens[0], largest))
  assert vocabulary(found._replace(train=train, test=test)) == 100
  digits = jsel.data.load(ConfigDict({"name": "digits"}))
  assert vocabulary(digits) == 0
