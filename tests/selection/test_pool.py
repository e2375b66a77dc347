"""Pools in files: the same rows whatever holds them, from any row on."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from jsel.selection import pool as pools
from jsel.selection import slices
from jsel.selection.pool import open_pool


@pytest.fixture
def x(rng):
  return rng.standard_normal((1000, 8)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, x):
  ids = np.arange(1000)
  table = pa.table({"embedding": pa.array(list(x)), "id": ids})
  pq.write_table(table[:600], tmp_path / "a.parquet", row_group_size=170)
  pq.write_table(table[600:], tmp_path / "b.parquet", row_group_size=170)
  np.save(tmp_path / "x.npy", x)
  np.savez(tmp_path / "x.npz", embedding=x, id=ids)
  save_file({"embedding": x, "id": ids}, tmp_path / "x.safetensors")
  return tmp_path


@pytest.mark.parametrize("name", ["[ab].parquet", "x.npy", "x.npz", "x.safetensors"])
@pytest.mark.parametrize("start", [0, 128, 640, 896])
def test_blocks_from_any_row(name, start, folder, x, monkeypatch):
  monkeypatch.setattr(pools, "ROWS", 100)
  pool = open_pool(f"{folder}/{name}", {}, key="pool")
  blocks = list(pool.blocks(128, start))
  assert [len(block) for block in blocks[:-1]] == [128] * (len(blocks) - 1)
  np.testing.assert_array_equal(np.concatenate(blocks), x[start:])
  if not name.endswith("npy"):
    assert pool.columns["id"].to_pylist() == list(range(1000))


@pytest.mark.parametrize("name", ["[ab].parquet", "x.npy", "x.npz", "x.safetensors"])
@pytest.mark.parametrize("start", [0, 256])
def test_parts_of_blocks_are_those_of_the_blocks(name, start, folder, x, monkeypatch):
  monkeypatch.setattr(pools, "ROWS", 50)
  pool = open_pool(f"{folder}/{name}", {}, key="pool")
  whole = list(pool.blocks(128, start))
  for first, end in [(0, 32), (32, 128), (96, 128)]:  # of the last block the third one has no row
    parts = list(pool.blocks(128, start, own=(first, end)))
    assert len(parts) == len(whole)
    for part, block in zip(parts, whole, strict=True):
      np.testing.assert_array_equal(part, block[first:end])


def test_row_groups_without_the_own_rows_are_not_read(tmp_path, x, monkeypatch):
  pq.write_table(pa.table({"embedding": list(x)}), tmp_path / "x.parquet", row_group_size=32)
  pool = open_pool(f"{tmp_path}/x.parquet", {}, key="pool")
  read = []
  array = pools.input_array

  def counted(column, *, start, path):
    read.append((start, len(column)))
    return array(column, start=start, path=path)

  monkeypatch.setattr(pools, "input_array", counted)
  parts = list(pool.blocks(128, own=(64, 96)))
  np.testing.assert_array_equal(parts[1], x[192:224])
  assert read == [(start, 32) for start in range(64, 1000, 128)]


def test_local_arrays_stay_in_their_files(folder):
  for name in ("x.npy", "x.safetensors"):
    part = open_pool(f"{folder}/{name}", {}, key="pool").parts[0]
    assert isinstance(part._x, np.memmap | slices.Slices)


def test_a_remote_npy_is_read_by_ranges(x):
  import fsspec

  with fsspec.open("memory://bucket/x.npy", "wb") as file:
    np.save(file, x)
  rows = slices.npy_rows("memory://bucket/x.npy")
  assert isinstance(rows, slices.Slices)
  np.testing.assert_array_equal(rows[300:317], x[300:317])


def test_an_npz_larger_than_memory_is_refused(folder, monkeypatch):
  monkeypatch.setattr(slices, "memory_bytes", lambda: 10_000)
  with pytest.raises(ValueError, match=r"31\.4 KiB and there are 9\.77 KiB: save it as \.npy"):
    open_pool(f"{folder}/x.npz", {}, key="pool")


@pytest.mark.parametrize("name", ["a.parquet", "x.npy", "x.npz", "x.safetensors"])
def test_a_file_that_is_cut_short_is_named(name, folder):
  path = folder / name
  path.write_bytes(path.read_bytes()[:-200])
  with pytest.raises(ValueError, match=f"{name}.*(write it again|no whole)"):
    open_pool(str(path), {}, key="pool")
