"""Rows of npy files that stay on disk: checked when they are taken."""

import numpy as np
import pytest

from jsel.data.npy import NpyRows


@pytest.fixture
def paths(tmp_path, vectors):
  np.save(tmp_path / "x.npy", vectors[0])
  np.save(tmp_path / "y.npy", vectors[1])
  return str(tmp_path / "x.npy"), str(tmp_path / "y.npy")


def test_the_file_stays_where_it_is(paths, vectors):
  rows = NpyRows(*paths)
  assert isinstance(rows.inputs(), np.memmap)
  batch = rows.take(np.array([3, 1]))
  assert not isinstance(batch["inputs"], np.memmap)
  # A row that changes in the file changes in what is read: nothing was kept.
  changed = np.lib.format.open_memmap(paths[0], mode="r+")
  changed[3] = 7
  changed.flush()
  assert (rows.take(np.array([3]))["inputs"] == 7).all()


def test_a_broken_row_is_found_when_it_is_taken_and_not_before(paths, vectors):
  inputs = vectors[0].copy()
  inputs[40, 3] = np.inf
  np.save(paths[0], inputs)
  rows = NpyRows(*paths)
  rows.take(np.arange(40))
  with pytest.raises(ValueError, match=r"x.npy: column 3 of row 40 is inf"):
    rows.take(np.array([41, 40]))


@pytest.mark.parametrize(
  ("x", "y", "message"),
  [
    (
      np.zeros((3, 2)),
      np.zeros(3, int),
      "x.npy: inputs have dtype float64: save features as float32",
    ),
    (np.zeros(3, np.float32), np.zeros(3, int), r"inputs have shape \(3,\)"),
    (np.zeros((), np.float32), np.zeros(3, int), r"inputs have shape \(\)"),
    (np.zeros((3, 2), np.float32), np.zeros(4, int), "3 inputs but 4 labels"),
    (np.zeros((3, 2), np.float32), np.array([0, 1, -1]), "label -1 of row 2 is negative"),
    (np.zeros((3, 2), np.float32), np.array([0, 1, 2]), "label 2 of row 2 is not below .* 2"),
    (np.zeros((3, 2), np.float32), np.zeros(3), "dtype float64: expected one integer a row"),
  ],
)
def test_arrays_that_do_not_fit_are_refused(paths, x, y, message):
  np.save(paths[0], x)
  np.save(paths[1], y)
  with pytest.raises(ValueError, match=message):
    NpyRows(*paths, classes=2)


def test_fortran_order_is_read_from_disk(paths, vectors):
  np.save(paths[0], np.asfortranarray(vectors[0]))
  np.testing.assert_array_equal(NpyRows(*paths).take(np.arange(50))["inputs"], vectors[0])


def test_the_hash_is_of_names_sizes_and_edges(paths, vectors, tmp_path):
  first = NpyRows(*paths).sha256()
  assert NpyRows(*paths).sha256() == first
  for name, array in (("x.npy", vectors[0] + 1), ("y.npy", (vectors[1] + 1) % 4)):
    kept = (tmp_path / name).read_bytes()
    np.save(tmp_path / name, array)
    assert NpyRows(*paths).sha256() != first
    (tmp_path / name).write_bytes(kept)
  assert NpyRows(*paths).sha256() == first
