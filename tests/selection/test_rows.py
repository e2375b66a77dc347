"""The rows of a subset as they are in the pool's files, what they consist of, and the picture."""

import json

import matplotlib.image
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath

from jsel.selection import picture, rows
from jsel.selection.balance import balance
from jsel.selection.pool import ArrayPart, Pool, open_pool
from jsel.selection.subset import Subset


@pytest.fixture
def folder(tmp_path):
  return epath.Path(tmp_path)


def table(rng, start, count):
  return pa.table(
    {
      "embedding": pa.array(list(rng.random((count, 4)).astype(np.float32))),
      "text": [f"row {i}" for i in range(start, start + count)],
      "tags": [["a", "b"][: i % 3] for i in range(count)],
      "score": [None if i % 5 == 0 else float(i) for i in range(count)],
    }
  )


@pytest.fixture
def files(folder, rng):
  whole = []
  for file, start in enumerate((0, 70)):
    part = table(rng, start, 70)
    pq.write_table(part, folder / f"pool-{file}.parquet", row_group_size=16)
    whole.append(part)
  return pa.concat_tables(whole)


@pytest.mark.parametrize("kind", rows.KINDS)
def test_all_columns_come_back_in_the_order_of_the_pool(kind, files, folder):
  pool = open_pool(f"{folder}/pool-*.parquet", {}, key="pool")
  index = np.array([139, 3, 17, 70, 69, 15, 16], np.int32)
  path = rows.write_rows(folder, pool, index, kind)
  expected = files.take(pa.array(np.sort(index))).to_pylist()
  if kind == "parquet":
    assert pq.read_table(path).to_pylist() == expected
  else:
    assert [json.loads(line) for line in path.read_text().splitlines()] == expected


def test_arrays_and_their_columns_are_written(folder, rng):
  x = rng.random((50, 3)).astype(np.float32)
  np.savez(folder / "pool.npz", embedding=x, id=np.arange(50) * 2)
  pool = open_pool(f"{folder}/pool.npz", {}, key="pool")
  found = pq.read_table(rows.write_rows(folder, pool, np.array([40, 2]), "parquet"))
  assert found["id"].to_pylist() == [4, 80]
  np.testing.assert_array_equal(np.stack(found["embedding"].to_pylist()), x[[2, 40]])


def test_lines_of_json_are_found_by_their_number(folder):
  lines = [json.dumps({"text": f"é{i}"}, ensure_ascii=False) for i in range(9)]
  (folder / "pool.jsonl").write_text("\n".join([*lines[:4], "", *lines[4:]]) + "\n")
  part = ArrayPart(np.zeros((9, 2), np.float32), path=f"{folder}/pool.jsonl")
  path = rows.write_rows(folder, Pool([part]), np.array([8, 0, 4]), "jsonl")
  assert path.read_text().splitlines() == [lines[0], lines[4], lines[8]]


def test_no_number_is_null_in_json_and_bytes_are_refused(folder):
  embedding = pa.array([[1.0, float("nan")]], pa.list_(pa.float32()))
  pq.write_table(pa.table({"embedding": embedding}), folder / "nan.parquet")
  pool = open_pool(f"{folder}/nan.parquet", {}, key="pool")
  path = rows.write_rows(folder, pool, np.array([0]), "jsonl")
  assert json.loads(path.read_text()) == {"embedding": [1.0, None]}
  before = path.read_text()
  pq.write_table(pa.table({"embedding": embedding, "image": [b"x"]}), folder / "bytes.parquet")
  pool = open_pool(f"{folder}/bytes.parquet", {}, key="pool")
  with pytest.raises(ValueError, match=r"column of bytes.*write_rows=parquet"):
    rows.write_rows(folder, pool, np.array([0]), "jsonl")
  assert path.read_text() == before


def test_files_of_other_columns_go_to_jsonl(files, folder):
  pq.write_table(files.select(["embedding"]), folder / "pool-2.parquet")
  pool = open_pool(f"{folder}/pool-*.parquet", {"score": ""}, key="pool")
  with pytest.raises(ValueError, match=r"pool-2.parquet has other columns.*jsonl"):
    rows.write_rows(folder, pool, np.array([1, 200]), "parquet")


def test_balance_counts_before_and_after(rng):
  source = [f"s{i % 103}" for i in range(1030)]
  columns = {"source": source, "length": np.arange(1030), "group": [None] * 1030}
  pool = Pool([ArrayPart(rng.random((1030, 2)), columns)])
  found = balance(pool, np.arange(100))
  assert found["length"]["subset"] == {
    "mean": 49.5, "q05": 4.95, "q25": 24.75, "q50": 49.5, "q75": 74.25, "q95": 94.05
  }  # fmt: skip
  assert len(found["source"]) == 101
  assert found["source"]["s0"] == {"pool": 10, "subset": 1}
  assert found["source"]["(others)"] == {"pool": 30, "subset": 0}
  assert found["group"] == {"None": {"pool": 1030, "subset": 100}}


@pytest.mark.parametrize(
  ("x", "columns"),
  [
    (np.zeros((40, 3)), {}),  # all the same point
    (np.arange(40.0)[:, None], {"length": np.full(40, 7)}),
    (np.random.default_rng(0).random((40, 5)), {"source": [f"s{i}" for i in range(40)]}),
  ],
)
def test_a_picture_of_any_pool(x, columns, folder):
  pool = Pool([ArrayPart(x.astype(np.float32), columns)])
  subset = Subset(np.arange(12, dtype=np.int32), np.full(12, np.nan, np.float32))
  sample, picks = picture.rows_to_draw(pool, subset, 0)
  drawn = np.concatenate([x[sample], x[subset.index[picks]]]).astype(np.float32)
  drawing = picture.Drawing(sample, picks, drawn)
  path = folder / "subset.png"
  picture.draw(path, pool, subset, drawing, title="random", balance=balance(pool, subset.index))
  pixels = matplotlib.image.imread(path)
  assert pixels.shape[1] > 1500
  assert pixels[..., :3].std() > 0.02
